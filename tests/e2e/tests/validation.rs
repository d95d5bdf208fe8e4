//! Which answers of Consul change anything, and how the others are counted.

use std::time::Duration;

use nginx_consul_e2e::cluster::Cluster;
use nginx_consul_e2e::fake_consul::{Answer, instance};
use nginx_consul_e2e::{Agent, Backend, FakeConsul, Fault, Nginx, Proxy, ports, wait};
use serde_json::{Value, json};

use crate::support::{
    SOON, gateway, register_one, scripted, tally, unique, until_peers, until_served_by,
};

/// How often answers of the service were refused for this reason.
fn refusals(nginx: &Nginx, service: &str, reason: &str) -> u64 {
    nginx.service(service)["refusals"][reason].as_u64().unwrap_or(0)
}

fn follow(consul: &FakeConsul, more: &str) -> Nginx {
    let upstream = format!("consul_dynamic web; consul_retry 10ms 30ms; {more}");
    gateway(&consul.url(), "web", &upstream).start()
}

/// A fake that lists `a`, and nginx that follows it.
fn following(more: &str) -> (FakeConsul, Vec<Backend>, Nginx) {
    let (consul, backends) = scripted();
    let nginx = follow(&consul, more);
    until_served_by(&nginx, "/", "a");
    (consul, backends, nginx)
}

/// Each reason with an answer that is refused for it.
fn refused(new: &Value) -> Vec<(&'static str, Answer)> {
    let good = || Answer::ok(50, new);
    let text = new.to_string();
    vec![
        ("status", Answer::error(500, "No cluster leader")),
        ("status", Answer::error(403, "ACL not found")),
        ("status", Answer::error(429, "")),
        ("index", Answer { index: None, ..good() }),
        ("index", Answer { index: Some(u64::MAX), ..good() }),
        ("content_type", good().header("Content-Type", "text/html")),
        ("json", Answer::ok(50, &text[..text.len() / 2])),
        ("json", Answer::ok(50, "{}")),
        ("truncated", Answer { missing: 10, ..Answer::ok(50, &text[..text.len() / 2]) }),
        ("too_large", Answer::ok(50, text.clone() + &" ".repeat(9000))),
        ("no_leader", good().header("X-Consul-Knownleader", "false")),
        ("stale", good().header("X-Consul-Lastcontact", "5001")),
        ("stale", good().header("X-Cache", "HIT").header("Age", "6")),
        ("filtered", good().header("X-Consul-Results-Filtered-By-Acls", "true")),
    ]
}

#[test]
fn every_refusal_keeps_the_peers_and_is_counted_by_its_reason() {
    let (consul, backends, nginx) = following("consul_max_body_size 8k;");
    let new = json!([instance("b", backends[1].address())]);
    let shown = nginx.service("web");
    assert_eq!(shown["refusals"], json!({}), "before any");
    for (reason, answer) in refused(&new) {
        let what = format!("{reason}: {answer:?}");
        let before = refusals(&nginx, "web", reason);
        consul.script(move |_| Some(answer.clone()));
        wait::until(&what, SOON, || refusals(&nginx, "web", reason) >= before + 2);
        assert_eq!(nginx.peers("web"), backends[0].address().to_string(), "{what}");
        assert_eq!(nginx.service("web")["generation"], shown["generation"], "{what}");
    }
    assert_eq!(tally(&nginx, "/", 3), "a: 3");
    consul.unscript();
    consul.publish("web", 51, &new);
    until_served_by(&nginx, "/", "b");
    let counted = nginx.service("web")["refusals"].clone();
    let words: Vec<_> = counted.as_object().expect("counters").keys().cloned().collect();
    assert_eq!(
        words.join(" "),
        "content_type filtered index json no_leader stale status too_large truncated"
    );
}

#[test]
fn refusals_are_logged_once_and_their_counters_survive_a_reload() {
    let (consul, backends, mut nginx) = following("");
    let body = json!([instance("b", backends[1].address())]).to_string();
    consul.script(move |_| Some(Answer::ok(9, &body).header("X-Consul-KnownLeader", "false")));
    nginx.wait_for_log("KnownLeader: false");
    let told = refusals(&nginx, "web", "no_leader");
    wait::until("many refusals", SOON, || refusals(&nginx, "web", "no_leader") >= told + 10);
    let errors = |nginx: &Nginx| -> Vec<_> {
        nginx.logged("[error]").into_iter().filter(|line| line.contains("KnownLeader")).collect()
    };
    assert_eq!(errors(&nginx).len(), 1, "{:#?}", errors(&nginx));
    let before = refusals(&nginx, "web", "no_leader");
    nginx.reload();
    // Or it would begin with a good answer, which ends nothing.
    wait::until("the next worker 0 is refused too", SOON, || errors(&nginx).len() == 2);
    assert!(refusals(&nginx, "web", "no_leader") >= before, "counted from 0 again");
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
    consul.unscript();
    nginx.wait_for_log("recovered after");
}

#[test]
fn refused_and_cut_connections_are_counted_too() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let proxy = Proxy::start(consul.address());
    let upstream = "consul_dynamic %%SERVICE%%; consul_retry 10ms 100ms;";
    let nginx = gateway(&proxy.url(), &service, upstream).start();
    until_peers(&nginx, &service, &[&backend]);
    for (fault, reason) in [(Fault::Refuse, "connect"), (Fault::Cut(0), "closed")] {
        proxy.set(fault);
        proxy.cut_all();
        wait::until(reason, SOON, || refusals(&nginx, &service, reason) >= 2);
    }
    proxy.set(Fault::Pass);
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
}

#[test]
fn the_bound_on_stale_answers_can_be_set_and_lifted() {
    for (line, taken) in [
        ("consul_max_stale 20s;", true),
        ("consul_max_stale off;", true),
        ("consul_max_stale 5s;", false),
    ] {
        let consul = FakeConsul::start();
        let backend = Backend::start("a");
        let body = json!([instance("a", backend.address())]).to_string();
        consul.publish_text("web", 7, body.clone());
        consul.script(move |query| {
            let late = Answer::ok(7, &body).header("X-Consul-LastContact", "19000");
            query.index.is_none().then_some(late)
        });
        let nginx = follow(&consul, line);
        if taken {
            until_served_by(&nginx, "/", "a");
        } else {
            wait::until("a refusal", SOON, || refusals(&nginx, "web", "stale") > 0);
            assert_eq!(nginx.get("/").status, 502, "{line}");
        }
    }
}

#[test]
fn a_real_cluster_without_a_leader_is_not_believed() {
    let mut cluster = Cluster::start();
    let service = unique("web");
    let backend = Backend::start("a");
    register_one(&cluster.client, &service, &backend);
    let upstream = "consul_dynamic %%SERVICE%% consistency=stale; consul_wait 1s;
                    consul_retry 50ms 200ms;";
    let nginx = gateway(&cluster.client.url(), &service, upstream).start();
    wait::until_eq("who answers", Duration::from_secs(20), "a", || nginx.outcome("/"));
    assert_eq!(nginx.service(&service)["refusals"], json!({}));
    // One of three knows no leader, but answers stale queries with status 200.
    cluster.joined.iter_mut().for_each(Agent::kill);
    wait::until("refusals", Duration::from_secs(40), || {
        refusals(&nginx, &service, "no_leader") + refusals(&nginx, &service, "stale") >= 2
    });
    assert_eq!(tally(&nginx, "/", 3), "a: 3");
}

#[test]
fn the_first_server_is_in_use_again_when_it_returns() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let first = Proxy::start(consul.address());
    let second = Proxy::start(consul.address());
    let servers = format!("{} {} http://127.0.0.1:{}", first.url(), second.url(), ports::free());
    let upstream = "consul_dynamic %%SERVICE%%; consul_retry 50ms 300ms;";
    let nginx = gateway(&servers, &service, upstream).start();
    until_peers(&nginx, &service, &[&backends[0]]);
    first.set(Fault::Refuse);
    wait::until_eq("server in use", SOON, &json!(second.url()), || {
        nginx.service(&service)["server"].clone()
    });
    // After the first query that blocks on it, another thread may go on, over its own connection.
    wait::until("two queries have blocked on the second", SOON, || {
        second.requests("index=").len() >= 2
    });
    let connections = second.accepted();
    first.set(Fault::Pass);
    // It is asked after 24 to 36 s, between two polls of the other.
    let took = wait::until("the first is in use", Duration::from_secs(45), || {
        nginx.service(&service)["server"] == first.url()
    });
    assert!(took > Duration::from_secs(20), "asked after {took:?} already");
    nginx.wait_for_log("using the first server again");
    assert_eq!(second.accepted(), connections, "the connection to the second was lost meanwhile");
    register_one(&consul, &service, &backends[1]);
    until_served_by(&nginx, "/", "a b");
    assert_eq!(nginx.logged("retrying in").len(), 0, "{:#?}", nginx.logged("consul:"));
}
