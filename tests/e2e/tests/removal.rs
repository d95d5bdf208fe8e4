//! What an answer may take away, and when: `consul_empty` and `consul_max_removal`.

use std::time::{Duration, Instant};

use nginx_consul_e2e::fake_consul::{Answer, instance};
use nginx_consul_e2e::{Agent, Backend, FakeConsul, Load, Nginx, load, process, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::secured::with_acl;
use crate::support::{
    SOON, follow, gateway, register, register_one, tally, unique, until_peers, until_served_by,
};

/// The default: three more reads over a second and a half.
const CONFIRMED: Duration = Duration::from_millis(1500);

fn list(backends: &[Backend]) -> Value {
    backends.iter().map(|b| instance(b.name(), b.address())).collect()
}

/// A fake that lists these, and nginx that follows it.
fn following(names: &[&str], more: &str) -> (FakeConsul, Vec<Backend>, Nginx) {
    let consul = FakeConsul::start();
    let backends = Backend::start_all(names);
    consul.publish("web", 7, &list(&backends));
    let upstream = format!("consul_dynamic web; consul_retry 50ms 200ms; {more}");
    let nginx = gateway(&consul.url(), "web", &upstream).allow("exited on signal 9").start();
    until_served_by(&nginx, "/", &names.join(" "));
    // The poll is on its way.
    wait::until("a poll", SOON, || consul.queries().iter().any(|query| query.index == Some(7)));
    (consul, backends, nginx)
}

fn pending(nginx: &Nginx) -> Value {
    nginx.service("web")["pending"].clone()
}

#[test]
fn the_last_instance_leaves_when_three_more_reads_agree() {
    let (consul, _backends, nginx) = following(&["a"], "");
    assert_eq!(pending(&nginx), Value::Null);
    let before = consul.queries().len();
    let start = Instant::now();
    consul.publish("web", 8, &json!([]));
    wait::until("it waits", SOON, || {
        pending(&nginx) == json!({ "removals": 1, "confirmed": 1, "of": 3 })
    });
    assert_eq!(nginx.outcome("/"), "a");
    wait::until_eq("who answers", SOON, "502", || nginx.outcome("/"));
    let took = start.elapsed();
    assert!(took > CONFIRMED && took < CONFIRMED * 2, "gone after {took:?}");
    assert_eq!(pending(&nginx), Value::Null);
    // The poll's own answer was to an older query.
    let reads = consul.queries().split_off(before);
    let unblocked = reads.iter().filter(|query| query.index.is_none()).count();
    assert_eq!(unblocked, 3, "{reads:#?}");
    let begin = nginx.wait_for_log(
        "1 of 1 peers are missing from the answer, kept until confirmed by 3 more reads",
    );
    let end = nginx.wait_for_log("1 removal confirmed by 3 more reads within");
    assert!(begin.contains("[warn]") && end.contains("[warn]"), "{begin}\n{end}");
    nginx.wait_for_log("0 peers (+0 -1), index 8");
    assert_eq!(nginx.logged("[warn]").len(), 2, "{:#?}", nginx.logged("[warn]"));
}

#[test]
fn a_real_consuls_last_instance_leaves_within_the_stated_time() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    let ids = register(&consul, &service, &backends);
    let nginx = follow(&consul.url(), &service);
    assert_eq!(tally(&nginx, "/", 3), "a: 1, b: 1, c: 1");
    // One of several leaves at once, critical or deregistered.
    let start = Instant::now();
    consul.set_check(&ids[0], "critical");
    until_peers(&nginx, &service, &[&backends[1], &backends[2]]);
    consul.deregister(&ids[1]);
    until_peers(&nginx, &service, &[&backends[2]]);
    assert!(start.elapsed() < CONFIRMED, "two left after {:?}", start.elapsed());
    let start = Instant::now();
    consul.deregister(&ids[2]);
    until_peers(&nginx, &service, &[]);
    let took = start.elapsed();
    assert!(took > CONFIRMED && took < CONFIRMED * 2, "gone after {took:?}");
}

#[test]
fn a_moment_of_emptiness_costs_nothing() {
    let (consul, backends, nginx) = following(&["a", "b"], "");
    let load = Load::start_paced(nginx.address(), "/", 1, false, Duration::from_millis(1));
    for (n, index) in [(1, 20), (2, 30), (3, 40)] {
        consul.publish("web", index, &json!([]));
        wait::until_eq("lines", SOON, &n, || {
            nginx.logged("2 of 2 peers are missing from the answer").len()
        });
        wait::until("a read agrees", SOON, || pending(&nginx)["confirmed"] == 1);
        consul.publish("web", index + 1, &list(&backends));
        wait::until_eq("lines", SOON, &n, || nginx.logged("2 removals cancelled").len());
        assert_eq!(pending(&nginx), Value::Null);
    }
    assert_eq!(load::failures(&load.finish(), &["a", "b"]), "");
    assert_eq!(nginx.service("web")["generation"], 1, "the peers were never touched");
}

#[test]
fn errors_between_the_reads_neither_confirm_nor_cancel() {
    let (consul, _backends, nginx) = following(&["a"], "");
    consul.publish("web", 8, &json!([]));
    wait::until("it waits", SOON, || !pending(&nginx).is_null());
    consul.script(|_| Some(Answer::error(500, "No cluster leader")));
    wait::until("errors", SOON, || nginx.service("web")["refusals"]["status"].as_u64() >= Some(20));
    assert_eq!(tally(&nginx, "/", 3), "a: 3");
    assert!(!pending(&nginx).is_null());
    consul.unscript();
    until_served_by(&nginx, "/", "502");
    assert_eq!(nginx.logged("missing from the answer").len(), 1);
}

#[test]
fn keep_never_empties_a_set_but_follows_all_else() {
    let (consul, backends, nginx) = following(&["a", "b"], "consul_empty keep;");
    consul.publish("web", 8, &json!([]));
    nginx.wait_for_log("2 of 2 peers are missing from the answer, kept (consul_empty keep)");
    assert_eq!(pending(&nginx), json!({ "removals": 2, "confirmed": 0, "of": 0 }));
    wait::holds("somebody serves", CONFIRMED * 2, || nginx.outcome("/") != "502");
    consul.publish("web", 9, &list(&backends[..1]));
    until_served_by(&nginx, "/", "a");
    assert_eq!(pending(&nginx), Value::Null);
}

#[test]
fn drop_believes_an_empty_answer_at_once() {
    let (consul, _backends, nginx) = following(&["a"], "consul_empty drop; consul_max_removal 0%;");
    let start = Instant::now();
    consul.publish("web", 8, &json!([]));
    until_served_by(&nginx, "/", "502");
    assert!(start.elapsed() < Duration::from_secs(1), "gone after {:?}", start.elapsed());
    assert_eq!(nginx.logged("[warn]"), Vec::<String>::new());
}

#[test]
fn number_and_time_of_the_reads_can_be_set() {
    let (consul, _backends, nginx) = following(&["a"], "consul_empty confirm=1 for=4s;");
    let start = Instant::now();
    consul.publish("web", 8, &json!([]));
    wait::holds("it serves", Duration::from_millis(3500), || nginx.outcome("/") == "a");
    until_served_by(&nginx, "/", "502");
    assert!(start.elapsed() < Duration::from_secs(6), "gone after {:?}", start.elapsed());
    nginx.wait_for_log("1 removal confirmed by 1 more read within 4.");
}

#[test]
fn a_large_removal_is_confirmed_and_a_small_one_is_not() {
    let (consul, backends, nginx) =
        following(&["a", "b", "c", "d", "e"], "consul_max_removal 50%;");
    let start = Instant::now();
    consul.publish("web", 8, &list(&backends[..3]));
    until_served_by(&nginx, "/", "a b c");
    assert!(start.elapsed() < Duration::from_secs(1), "two left after {:?}", start.elapsed());
    let start = Instant::now();
    consul.publish("web", 9, &list(&backends[..1]));
    nginx.wait_for_log(
        "2 of 3 peers are missing from the answer, kept until confirmed by 3 more reads",
    );
    until_served_by(&nginx, "/", "a");
    let took = start.elapsed();
    assert!(took > CONFIRMED && took < CONFIRMED * 2, "gone after {took:?}");
    // What an answer adds is not held up.
    consul.publish("web", 10, &list(&backends));
    until_served_by(&nginx, "/", "a b c d e");
    assert_eq!(nginx.logged("kept until confirmed").len(), 1);
}

#[test]
fn a_reload_and_a_killed_worker_know_what_there_was() {
    let (consul, _backends, mut nginx) = following(&["a", "b"], "consul_empty confirm=2 for=3s;");
    for restart in ["reload", "kill", "reload with another block"] {
        // From here on Consul is wrong, but nobody is asked before the new worker does.
        consul.script(|query| query.index.is_none().then(|| Answer::ok(3, "[]")));
        let start = Instant::now();
        match restart {
            "reload" => drop(nginx.reload()),
            "kill" => {
                let worker = nginx.worker_zero();
                process::send(worker, Signal::KILL);
            }
            _ => {
                // The master asks for the new block's instances, in the same query.
                nginx.rewrite(|text| {
                    text.replace(
                        "upstream api",
                        "upstream more { consul_dynamic web tag=x; }\nupstream api",
                    )
                });
                nginx.reload();
            }
        }
        wait::until(restart, SOON, || {
            nginx.try_get("/consul?format=json").is_ok() && !pending(&nginx).is_null()
        });
        wait::holds(restart, Duration::from_millis(500), || nginx.outcome("/") != "502");
        consul.unscript();
        wait::until(restart, SOON, || pending(&nginx).is_null());
        assert!(start.elapsed() < Duration::from_secs(8), "{restart}: {:?}", start.elapsed());
        assert_eq!(tally(&nginx, "/", 4), "a: 2, b: 2", "{restart}");
    }
}

/// The service's status while its token is doubted.
fn doubted(nginx: &Nginx, service: &str) -> Value {
    wait::until("the token is doubted", SOON, || {
        nginx.service(service)["refusals"]["token"].as_u64() >= Some(2)
    });
    nginx.service(service)
}

#[test]
fn a_token_that_loses_its_policy_empties_nothing() {
    let (consul, token) = with_acl();
    let service = unique("web");
    let backend = Backend::start("a");
    let id = register_one(&consul, &service, &backend);
    let upstream = "consul_dynamic %%SERVICE%%; consul_token %%TOKEN%%;
                    consul_wait 1s; consul_retry 50ms 500ms;";
    let nginx = gateway(&consul.url(), &service, upstream).set("TOKEN", &token).start();
    until_peers(&nginx, &service, &[&backend]);
    let policy = consul.get("/v1/acl/policy/name/gateway");
    let path = format!("/v1/acl/policy/{}", policy["ID"].as_str().expect("an id"));
    // Consul answers `200 []` with a good index from now on.
    consul.request("DELETE", &path, &Value::Null).expect("the policy is deleted");
    wait::until("the cached policy is gone", Duration::from_secs(40), || {
        nginx.logged("1 of 1 peers are missing from the answer").len() == 1
    });
    let shown = doubted(&nginx, &service);
    let error = shown["last_error"].as_str().expect("an error");
    assert!(error.contains("the token lost its rights (it has no policy)"), "{error}");
    assert_eq!(tally(&nginx, "/", 3), "a: 3");
    nginx.wait_for_log("[error]");
    assert_eq!(nginx.logged("[error]").len(), 1, "{:#?}", nginx.logged("[error]"));
    // With its right back, the token can say that the instance is gone.
    consul.deregister(&id);
    let accessor = consul.get("/v1/acl/tokens");
    let own = |t: &&Value| t["Description"] == "" && t["AccessorID"].is_string();
    let accessor = accessor.as_array().into_iter().flatten().find(own).expect("the token");
    consul.put(
        "/v1/acl/policy",
        &json!({
            "Name": "again",
            "Rules": "service_prefix \"\" { policy = \"read\" } node_prefix \"\" { policy = \"read\" }",
        }),
    );
    let path = format!("/v1/acl/token/{}", accessor["AccessorID"].as_str().expect("an id"));
    consul.put(&path, &json!({ "SecretID": token, "Policies": [{ "Name": "again" }] }));
    until_peers(&nginx, &service, &[]);
}

#[test]
fn with_a_good_token_and_where_acls_are_off_the_last_instance_leaves() {
    let (with_acl, token) = with_acl();
    let without = Agent::shared();
    for (consul, token) in
        [(&with_acl, &*token), (&*without, "11111111-1111-4111-8111-111111111111")]
    {
        let service = unique("web");
        let backend = Backend::start("a");
        let id = register_one(consul, &service, &backend);
        let upstream = "consul_dynamic %%SERVICE%%; consul_token %%TOKEN%%;";
        let nginx = gateway(&consul.url(), &service, upstream).set("TOKEN", token).start();
        until_peers(&nginx, &service, &[&backend]);
        consul.deregister(&id);
        until_peers(&nginx, &service, &[]);
        assert_eq!(nginx.logged("[error]"), Vec::<String>::new());
    }
}
