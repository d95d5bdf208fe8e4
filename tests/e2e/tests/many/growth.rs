//! More than 64 connections: how many Consul takes is tried out.

use nginx_consul_e2e::Backend;

use super::*;

/// `consul_wait`, and how long Consul may let a query last that was asked for so long.
const WAIT: Duration = Duration::from_secs(10);
const WAIT_AND_MORE: Duration = Duration::from_secs(11);

/// The same as [`config`] with more connections than Consul takes, and a service that is served.
fn greedy(consul: &Agent, url: &str, backend: &Backend) -> Config {
    consul.register(&Instance::new("served", "served-0", backend.address()));
    let http = format!(
        "consul_connections 400; consul_wait {}s; upstream served {{ consul_dynamic served; }}",
        WAIT.as_secs()
    );
    config_at(url, 300, &http)
        .main("worker_rlimit_nofile 4096;")
        .file("server.conf", "location = /served { proxy_pass http://served; }")
}

/// Whether nginx knows the instance 1 of a service.
fn has_second(nginx: &Nginx, service: &str) -> bool {
    nginx.peers(service).contains("127.9.0.1:10001")
}

/// Sees that a change that another client makes is taken by Consul within one wait, that nginx
/// follows it, and that requests were answered all the time.
fn stays_usable(consul: &Agent, nginx: &Nginx, raise: &str) {
    let ended = AtomicBool::new(false);
    let line = thread::scope(|scope| {
        let served = scope.spawn(|| {
            let mut served = 0;
            while !ended.load(Ordering::SeqCst) {
                let answer = nginx.get("/served");
                assert_eq!(answer.body.trim(), "a", "{}", answer.status);
                served += 1;
            }
            served
        });
        let line = nginx.wait_for_log("Consul refused connection");
        let body = instance("s5", 1).for_agent();
        wait::until("another client registers", WAIT_AND_MORE, || {
            let answer = consul.request("PUT", "/v1/agent/service/register", &body);
            answer.is_ok_and(|answer| answer.status == 200)
        });
        wait::until("the change is seen", WAIT_AND_MORE, || has_second(nginx, "s5"));
        ended.store(true, Ordering::SeqCst);
        assert!(served.join().expect("requests") > 10);
        line
    });
    assert!(line.contains("[warn]") && line.contains(raise), "{line}");
    let connections = &nginx.status()["connections"];
    assert_eq!(connections["limited_by"], "consul", "{connections}");
    let allowed = connections["allowed"].as_u64().expect("allowed");
    assert!((64..200).contains(&allowed), "{connections}");
    assert!(connections["needed"].as_u64().expect("needed") > 300, "{connections}");
    assert!(overview(nginx).iter().all(|(_, peers)| *peers >= 1), "no set is lost");
    assert_eq!(nginx.logged("Consul refused connection").len(), 1, "{}", nginx.tail());
}

#[test]
fn an_agent_out_of_descriptors_answers_again_and_keeps_its_other_clients() {
    let unlimited = "limits { http_max_conns_per_client = 0 }";
    let consul = Options::dev().argument("-hcl").argument(unlimited).descriptors(200).start();
    let backend = Backend::start("a");
    register(&consul, 300);
    let nginx = greedy(&consul, &consul.url(), &backend).start();
    stays_usable(&consul, &nginx, "raise LimitNOFILE");
}

#[test]
fn the_connections_that_consul_allows_a_client_are_not_exceeded_for_long() {
    let (limit, addresses) =
        ("limits { http_max_conns_per_client = 100 }", "addresses { http = \"127.0.0.1 ::1\" }");
    let consul = Options::dev().hcl(addresses).argument("-hcl").argument(limit).start();
    let backend = Backend::start("a");
    register(&consul, 300);
    // From ::1 all connections have the same address.
    let url = format!("http://[::1]:{}", consul.direct().port());
    let nginx = greedy(&consul, &url, &backend).start();
    stays_usable(&consul, &nginx, "raise limits.http_max_conns_per_client");
}

#[test]
fn a_restart_of_the_agent_is_no_refusal() {
    let mut consul = Options::server("restarts").start();
    register(&consul, 120);
    let http = "consul_connections 200;";
    let nginx = config(&consul, 120, http).main("worker_rlimit_nofile 4096;").start();
    wait::until("all block", SOON * 2, || count(&nginx, "blocking") == 120);
    consul.kill();
    nginx.wait_for_log("retrying in");
    consul.start();
    register(&consul, 120);
    wait::until("all block again", SOON * 4, || count(&nginx, "blocking") == 120);
    consul.register(&instance("s7", 1));
    wait::until("a change is seen", SOON, || has_second(&nginx, "s7"));
    assert!(nginx.logged("refused connection").is_empty(), "{}", nginx.tail());
    assert!(nginx.status()["connections"]["limited_by"].is_null());
}

#[test]
fn descriptors_that_worker_connections_need_are_left_to_them() {
    let consul = Options::dev().start();
    register(&consul, 150);
    let nginx = config(&consul, 150, "consul_connections 400;")
        .connections(400)
        .main("worker_rlimit_nofile 500;")
        .start();
    let line = nginx.wait_for_log("more services than consul_connections");
    assert!(line.contains("RLIMIT_NOFILE less worker_connections"), "{line}");
    assert!(line.contains("a blocking query for each needs 166"), "{line}");
    let connections = &nginx.status()["connections"];
    assert_eq!(connections["limited_by"], "descriptors", "{connections}");
    assert_eq!(connections["needed"], 166, "{connections}");
    assert!(connections["allowed"].as_u64().is_some_and(|n| n < 100), "{connections}");
}
