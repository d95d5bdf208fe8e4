//! Faults that were found once.

use std::fmt::Write;

use nginx_consul_e2e::{Agent, Backend, Config, Manner, wait};

use crate::support::{SERVER, SOON, gateway, register, register_one, tally, unique, until_peers};

#[test]
fn a_single_instance_whose_kept_connection_is_stale_is_asked_over_a_new_one() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let nginx =
        gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%; keepalive 4;").start();
    until_peers(&nginx, &service, &[&backend]);
    backend.set(Manner::Stale);
    assert_eq!(tally(&nginx, "/", 6), "a: 6");
}

#[test]
fn a_single_fallback_server_is_treated_as_nginx_treats_a_single_server() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("fallback");
    let upstream =
        format!("consul_dynamic %%SERVICE%%; server {}; keepalive 4;", backend.address());
    let nginx = gateway(&consul.url(), &service, &upstream).start();
    backend.set(Manner::Stale);
    assert_eq!(tally(&nginx, "/", 6), "fallback: 6");
}

#[test]
fn a_reload_that_changes_most_services_of_a_small_zone_finds_room_for_them() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let blocks = 10;
    let mut text = "consul_server %%CONSUL%%; consul_zone small 128k;\n".to_owned();
    let mut locations = String::new();
    for n in 0..blocks {
        let _ = writeln!(text, "upstream u{n} {{ consul_dynamic %%SERVICE%% near=n{n}; }}");
        let _ = writeln!(locations, "location /u{n} {{ proxy_pass http://u{n}; }}");
    }
    text += "upstream api { consul_dynamic %%SERVICE%%; }\n";
    let mut nginx = Config::http(&(text + SERVER))
        .set("CONSUL", consul.url())
        .set("SERVICE", &service)
        .file("server.conf", locations)
        .start();
    let everywhere = |nginx: &nginx_consul_e2e::Nginx| {
        (0..blocks).all(|n| nginx.outcome(&format!("/u{n}")) == "a")
    };
    assert!(everywhere(&nginx), "before");
    nginx.rewrite(|text| text.replace("near=n", "near=other"));
    nginx.reload_and_wait();
    wait::until("every block has its peers", SOON, || everywhere(&nginx));
}

#[test]
fn every_instance_refusing_is_found_out_quickly_by_a_request() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register(&consul, &service, &backends);
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").start();
    backends.iter().for_each(|backend| backend.set(Manner::Reset));
    assert_eq!(nginx.get("/first").status, 502);
    assert_eq!(nginx.get("/second").status, 502);
    // Where nobody was left to try, nginx writes the name of the upstream.
    let tried = |path| {
        let line = nginx.access(path, 1).remove(0);
        let addresses = line.split('|').nth(2).unwrap_or("").split(", ").filter(|a| *a != "api");
        addresses.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(tried("/first").len(), 3, "all were tried");
    let mut second = tried("/second");
    let tries = second.len();
    second.sort_unstable();
    second.dedup();
    assert!(!second.is_empty(), "all are out: some are tried in spite of it");
    assert_eq!(second.len(), tries, "none is tried twice: {second:?}");
}

#[test]
fn a_bad_token_of_the_environment_matters_only_to_those_who_use_consul() {
    let start = |upstream: &str| {
        Config::http(upstream).environment("CONSUL_HTTP_TOKEN_FILE", "/nonexistent/token").check()
    };
    let without = start("upstream api { server 127.0.0.1:1; }");
    assert!(without.passed, "{}", without.output);
    let with = start("upstream api { consul_dynamic web; }");
    assert!(!with.passed, "{}", with.output);
    assert!(with.output.contains("CONSUL_HTTP_TOKEN_FILE"), "{}", with.output);
}
