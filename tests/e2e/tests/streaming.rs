//! Agents that stream, as all since Consul 1.10 do: the real Consul behind a dressing.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nginx_consul_e2e::dressing::Seen;
use nginx_consul_e2e::fake_consul::{Answer, instance};
use nginx_consul_e2e::{
    Agent, Backend, Config, Dressing, FakeConsul, Nginx, consul, version, wait,
};
use serde_json::json;

use crate::support::{
    SERVER, SOON, gateway, register_one, tally, unique, until_peers, until_served_by,
};

/// An agent that streams.
struct Scene {
    consul: Arc<Agent>,
    dressing: Dressing,
}

impl Scene {
    fn new() -> Scene {
        // What the dressing adds must not be there already.
        let consul = match version::streams() {
            true => Arc::new(consul::Options::dev().without_streaming().start()),
            false => Agent::shared(),
        };
        let dressing = Dressing::start(consul.direct());
        Scene { consul, dressing }
    }

    /// One of its own, whose streams all break together with nobody else's.
    fn alone() -> Scene {
        let options = consul::Options::dev();
        let options = if version::streams() { options.without_streaming() } else { options };
        let consul = Arc::new(options.start());
        let dressing = Dressing::start(consul.direct());
        Scene { consul, dressing }
    }

    /// nginx that follows a service with the instance `a`, and its parameters.
    fn follow(&self, parameters: &str, more: &str) -> (String, Backend, Nginx) {
        let (service, backend) = (unique("web"), Backend::start("a"));
        register_one(&self.consul, &service, &backend);
        let upstream = format!("consul_dynamic %%SERVICE%% {parameters}; consul_wait 1s; {more}");
        let nginx = gateway(&self.dressing.url(), &service, &upstream).start();
        until_peers(&nginx, &service, &[&backend]);
        (service, backend, nginx)
    }

    /// nginx that follows so many services, each with an instance.
    fn follow_many(&self, count: usize, http: &str) -> (Vec<String>, Nginx) {
        let services: Vec<String> = (0..count).map(|_| unique("many")).collect();
        let backend = Backend::start("a");
        let mut text = format!("consul_server {}; {http}\n", self.dressing.url());
        for service in &services {
            register_one(&self.consul, service, &backend);
            let _ = writeln!(text, "upstream {service} {{ consul_dynamic {service}; }}");
        }
        text.push_str(
            "server { listen 127.0.0.1:%%PORT%%; location = /consul { consul_status; } }",
        );
        let nginx = Config::http(&text).start();
        for service in &services {
            until_peers(&nginx, service, &[&backend]);
        }
        (services, nginx)
    }

    /// Requests of services since there were `before`.
    fn since(&self, before: usize) -> Vec<Seen> {
        self.dressing.requests("/v1/health/service/").split_off(before)
    }

    fn count(&self) -> usize {
        self.dressing.requests("/v1/health/service/").len()
    }

    /// Waits until so many more queries of a service have been answered.
    fn until_expired(&self, service: &str, count: usize) {
        let before = self.dressing.requests(service).len();
        wait::until("waits that expire", SOON + Duration::from_secs(2) * count as u32, || {
            self.dressing.requests(service).len() > before + count
        });
    }
}

/// Lines of the module at `notice` and above.
fn lines(nginx: &Nginx) -> Vec<String> {
    let loud = ["[alert]", "[crit]", "[error]", "[warn]", "[notice]"];
    let all = nginx.logged("consul:");
    all.into_iter().filter(|line| loud.iter().any(|level| line.contains(level))).collect()
}

fn with<'a>(lines: &'a [String], text: &str) -> Vec<&'a String> {
    lines.iter().filter(|line| line.contains(text)).collect()
}

#[test]
fn sixty_expired_waits_write_no_line_and_cost_no_read_and_a_change_is_one_line() {
    let scene = Scene::new();
    for lower in [false, true] {
        scene.dressing.set(|quirks| quirks.lower_index = lower);
        let (services, nginx) = scene.follow_many(20, "consul_wait 1s;");
        wait::until("all block", SOON, || {
            let blocks = |s: &String| scene.dressing.requests(s).iter().any(|r| r.index.is_some());
            services.iter().all(blocks)
        });
        let (quiet, before) = (lines(&nginx).len(), scene.count());
        wait::until("sixty waits have expired", SOON * 3, || scene.count() >= before + 80);
        let seen = scene.since(before);
        assert!(seen.iter().all(|request| request.streamed), "{seen:#?}");
        assert_eq!(lines(&nginx).len(), quiet, "{:#?}", lines(&nginx));
        let second = Backend::start("b");
        register_one(&scene.consul, &services[0], &second);
        wait::until("the change is seen", SOON, || {
            nginx.service(&services[0])["peers"].as_array().map_or(0, Vec::len) == 2
        });
        nginx.wait_for_log("2 peers (+1 -0)");
        assert_eq!(lines(&nginx).len(), quiet + 1, "{:#?}", lines(&nginx));
        assert_eq!(nginx.service(&services[0])["refusals"], json!({}));
    }
}

#[test]
fn each_consistency_is_followed() {
    let scene = Scene::new();
    for (parameters, streamed) in [
        ("", true),
        ("consistency=stale", true),
        ("consistency=cached", true),
        ("consistency=consistent", false),
        ("near=_agent", false),
    ] {
        let (service, _a, nginx) = scene.follow(parameters, "");
        let b = Backend::start("b");
        let id = register_one(&scene.consul, &service, &b);
        until_served_by(&nginx, "/", "a b");
        scene.consul.deregister(&id);
        until_served_by(&nginx, "/", "a");
        scene.until_expired(&service, 2);
        let seen = scene.dressing.requests(&service);
        let of = |request: &Seen| request.streamed;
        assert_eq!(seen.iter().any(of), streamed, "{parameters}: {seen:#?}");
        assert_eq!(nginx.logged("[error]"), [""; 0], "{parameters}");
    }
}

#[test]
fn servers_that_do_not_stream_are_one_outage_and_then_asked_without() {
    let scene = Scene::alone();
    let (services, nginx) = scene.follow_many(20, "consul_wait 2s;");
    let before = scene.count();
    scene.dressing.set(|quirks| quirks.stream_error = Some("unknown service ServerReflection"));
    nginx.wait_for_log("recovered without streaming after");
    wait::until("all ask without a stream", SOON * 2, || {
        let asks = |service: &String| {
            let seen = scene.dressing.requests(service);
            seen.iter().filter(|request| request.target.contains("near=")).count() >= 2
        };
        services.iter().all(asks)
    });
    let seen = scene.since(before);
    let refused = seen.iter().filter(|request| request.streamed).count();
    assert!(refused <= 20 * 4, "{refused} queries were refused");
    let said = lines(&nginx);
    let (begun, ended) = (with(&said, "[error]"), with(&said, "recovered"));
    // Whoever is more than a moment later than the first has a line more.
    assert!((1..=2).contains(&begun.len()), "{said:#?}");
    assert!(begun[0].contains("HTTP 500: rpc error: code = Unknown"), "{said:#?}");
    assert!((1..=2).contains(&ended.len()), "{said:#?}");
    assert!(ended[0].contains("recovered without streaming after "), "{said:#?}");
    // It blocks as it did before, and stays quiet.
    let b = Backend::start("b");
    register_one(&scene.consul, &services[0], &b);
    let took = wait::until("the change is seen", SOON, || {
        nginx.service(&services[0])["peers"].as_array().map_or(0, Vec::len) == 2
    });
    assert!(took < Duration::from_secs(1), "{took:?}");
    nginx.wait_for_log("2 peers (+1 -0)");
    let quiet = lines(&nginx).len();
    scene.until_expired(&services[1], 2);
    assert_eq!(lines(&nginx).len(), quiet, "{:#?}", lines(&nginx));
    assert_eq!(nginx.service(&services[1])["mode"], "blocking");
}

#[test]
fn while_no_query_that_blocks_is_answered_reads_come_every_poll_interval() {
    let (consul, backends) = (FakeConsul::start(), Backend::start_all(&["a", "b"]));
    let list = |n: usize| json!([instance(backends[n].name(), backends[n].address())]).to_string();
    let text = list(0);
    let answer = move |text: &str, blocks: bool| match blocks {
        true => Answer::error(500, "rpc error: code = Unavailable desc = closing"),
        false => Answer::ok(7, text),
    };
    consul.script(move |query| Some(answer(&text, query.index.is_some())));
    let upstream = "consul_dynamic web; consul_retry 100ms 30s; consul_poll 500ms;";
    let nginx = gateway(&consul.url(), "web", upstream).start();
    until_served_by(&nginx, "/", "a");
    let begin = Instant::now();
    wait::until("it polls", SOON, || {
        let service = nginx.service("web");
        service["mode"] == "polling" && service["delay_ms"] == 500
    });
    wait::until("the backoff has grown", SOON * 2, || {
        consul.queries().iter().filter(|query| query.index.is_some()).count() >= 7
    });
    // A read that was due when the next one blocked came a moment later.
    let reads: Vec<Instant> =
        consul.queries().iter().filter(|query| query.index.is_none()).map(|q| q.at).collect();
    let apart = reads.windows(2).map(|pair| pair[1] - pair[0]).max().expect("reads");
    assert!(apart < Duration::from_secs(1), "{apart:?}");
    let rate = consul.queries().len() as f64 / begin.elapsed().as_secs_f64();
    assert!(rate < 8.0, "{rate} requests a second");
    let text = list(1);
    consul.script(move |query| Some(answer(&text, query.index.is_some())));
    until_served_by(&nginx, "/", "b");
    assert_eq!(nginx.logged("[error]").len(), 1, "{:#?}", nginx.logged("consul:"));
    assert_eq!(nginx.logged("recovered"), [""; 0]);
    // The first good answer to one that blocks is the end of it.
    consul.unscript();
    consul.publish_one("web", 9, &backends[0]);
    let stop = |nginx: &Nginx| nginx.logged("recovered").len();
    wait::until("the end of the outage", Duration::from_secs(40), || stop(&nginx) == 1);
    until_served_by(&nginx, "/", "a");
}

#[test]
fn a_view_that_stands_still_is_found_out_and_does_not_come_back() {
    let scene = Scene::alone();
    let (service, a, nginx) = scene.follow("", "");
    scene.until_expired(&service, 1);
    scene.dressing.freeze();
    let ids = [format!("{service}-a")];
    let b = Backend::start("b");
    register_one(&scene.consul, &service, &b);
    ids.iter().for_each(|id| scene.consul.deregister(id));
    // A server is asked every one to two minutes.
    wait::until_eq("peers", Duration::from_secs(130), &b.address().to_string(), || {
        nginx.peers(&service)
    });
    let line = nginx.wait_for_log("streamed answers are outdated");
    assert!(line.contains("[warn]") && line.contains(&service), "{line}");
    // The old view is there, and nobody asks for it.
    let before = scene.count();
    scene.until_expired(&service, 3);
    assert!(scene.since(before).iter().all(|request| !request.streamed));
    assert_eq!(tally(&nginx, "/", 3), "b: 3");
    let changes = nginx.logged(" peer");
    assert_eq!(changes.len(), 2, "no set comes twice: {changes:#?}");
    register_one(&scene.consul, &service, &a);
    until_served_by(&nginx, "/", "a b");
    assert_eq!(nginx.logged("[error]"), [""; 0]);
}

#[test]
fn a_cache_that_is_wrongly_empty_empties_nothing() {
    let scene = Scene::alone();
    let confirm = "consul_empty confirm=2 for=200ms;";
    let (service, _a, nginx) = scene.follow("consistency=cached", confirm);
    scene.until_expired(&service, 1);
    scene.dressing.set(|quirks| quirks.empty_cache = true);
    let b = Backend::start("b");
    register_one(&scene.consul, &service, &b);
    nginx.wait_for_log("1 removal cancelled");
    until_served_by(&nginx, "/", "a b");
    // An empty answer that isn't newer is the end of asking the cache.
    nginx.wait_for_log("streamed answers are outdated");
    scene.until_expired(&service, 3);
    assert_eq!(nginx.logged("removal confirmed by"), [""; 0]);
    assert_eq!(nginx.logged("[error]"), [""; 0]);
    scene.consul.deregister(&format!("{service}-b"));
    until_served_by(&nginx, "/", "a");
    // nginx starts while it is so.
    let upstream = "consul_dynamic %%SERVICE%% consistency=cached;";
    let late = gateway(&scene.dressing.url(), &service, upstream).start();
    until_served_by(&late, "/", "a");
    // What a server confirms is believed.
    scene.consul.deregister(&format!("{service}-a"));
    until_served_by(&nginx, "/", "502");
}

#[test]
fn streams_that_break_all_at_once_are_a_line_for_the_server_and_reads_are_paced() {
    let scene = Scene::alone();
    let (_services, nginx) = scene.follow_many(40, "consul_wait 60s;");
    wait::until("all block", SOON, || {
        scene.since(0).iter().filter(|request| request.index.is_some()).count() >= 40
    });
    let (quiet, before) = (lines(&nginx).len(), scene.count());
    scene.dressing.break_streams();
    let line = nginx.wait_for_log("recovered after");
    assert!(line.contains(" and 39 others: "), "{line}");
    let said = lines(&nginx).split_off(quiet);
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(said[0].contains("[error]") && said[0].contains(" and 39 others: HTTP 500: rpc error"));
    let seen = scene.since(before);
    let reads: Vec<Instant> =
        seen.iter().filter(|request| request.index.is_none()).map(|request| request.at).collect();
    assert!((40..=45).contains(&reads.len()), "{}", reads.len());
    let most = reads
        .iter()
        .map(|from| {
            let within = |at: &&Instant| **at >= *from && **at < *from + Duration::from_millis(500);
            reads.iter().filter(within).count()
        })
        .max();
    assert!(most <= Some(20), "{most:?} reads in half a second");
}

#[test]
fn an_empty_streamed_answer_with_index_1_is_a_revoked_token_and_empties_nothing() {
    let (consul, backend) = (FakeConsul::start(), Backend::start("a"));
    consul.publish_one("web", 7, &backend);
    let upstream = "consul_dynamic web; consul_empty drop; consul_retry 50ms 200ms;";
    let nginx = gateway(&consul.url(), "web", upstream).start();
    until_served_by(&nginx, "/", "a");
    consul.script(|query| match query.index {
        Some(_) => {
            let streamed = Answer::ok(1, "[]").header("X-Consul-Query-Backend", "streaming");
            Some(streamed.header("X-Consul-Knownleader", "false"))
        }
        None => Some(Answer::error(403, "ACL not found")),
    });
    consul.publish_one("web", 8, &backend);
    wait::until("the error", SOON, || !nginx.logged("[error]").is_empty());
    let errors = nginx.logged("[error]");
    assert!(errors.len() == 1 && errors[0].contains("HTTP 403: ACL not found"), "{errors:#?}");
    assert_eq!(tally(&nginx, "/", 3), "a: 3");
}

#[test]
fn what_is_not_streamed_is_asked_as_ever() {
    let scene = Scene::new();
    let (service, backend) = (unique("web"), Backend::start("a"));
    register_one(&scene.consul, &service, &backend);
    let nginx = Config::http(&format!(
        "consul_server %%CONSUL%%; consul_wait 1s;
         upstream api {{ consul_dynamic %%SERVICE%% source=catalog; }} {SERVER}"
    ))
    .set("CONSUL", scene.dressing.url())
    .set("SERVICE", &service)
    .start();
    until_served_by(&nginx, "/", "a");
    let before = scene.dressing.requests(&service).len();
    wait::until("waits expire", SOON, || scene.dressing.requests(&service).len() > before + 3);
    let seen = scene.dressing.requests(&service).split_off(before);
    let is_plain = |request: &Seen| request.index.is_some() && !request.target.contains("near");
    assert!(seen.iter().all(is_plain), "{seen:#?}");
}
