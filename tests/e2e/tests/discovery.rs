//! Which instances become peers, and how soon.

use std::time::{Duration, Instant};

use nginx_consul_e2e::{Agent, Backend, Config, Instance, Proxy, Tally, http, wait};

use crate::support::{
    SERVER, SOON, follow, gateway, register, register_one, tally, unique, until_peers,
    until_served_by,
};

#[test]
fn a_registered_instance_is_served_and_a_deregistered_one_is_not() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let nginx = follow(&consul.url(), &service);
    assert_eq!(tally(&nginx, "/", 4), "a: 4");
    let id = register_one(&consul, &service, &backends[1]);
    until_served_by(&nginx, "/", "a b");
    consul.deregister(&id);
    until_served_by(&nginx, "/", "a");
}

#[test]
fn the_first_answers_are_there_before_the_first_request() {
    let consul = Agent::shared();
    let services: Vec<String> = (0..20).map(|_| unique("first")).collect();
    let backend = Backend::start("a");
    let mut text = "consul_server %%CONSUL%%;\n".to_owned();
    let mut server = "server { listen 127.0.0.1:%%PORT%%;\n".to_owned();
    for (n, service) in services.iter().enumerate() {
        consul.register(&Instance::new(service, service, backend.address()));
        text += &format!("upstream u{n} {{ consul_dynamic {service}; }}\n");
        server += &format!("location /{n} {{ proxy_pass http://u{n}; }}\n");
    }
    let config = Config::http(&format!("{text}{server}}}")).set("CONSUL", consul.url());
    let nginx = config.launch();
    // The very first connection that nginx takes carries the first request.
    let first = wait::until_some("nginx listens", SOON, || nginx.try_get("/0").ok());
    assert_eq!(first.outcome(), "a");
    let seen: Tally = (0..services.len()).map(|n| nginx.outcome(&format!("/{n}"))).collect();
    assert_eq!(seen.to_string(), "a: 20");
}

#[test]
fn a_critical_instance_leaves_and_returns_when_it_passes() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let nginx = follow(&consul.url(), &service);
    assert_eq!(tally(&nginx, "/", 4), "a: 2, b: 2");
    consul.set_check(&ids[0], "critical");
    until_served_by(&nginx, "/", "b");
    consul.set_check(&ids[0], "passing");
    until_served_by(&nginx, "/", "a b");
}

#[test]
fn an_instance_in_maintenance_leaves() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let nginx = follow(&consul.url(), &service);
    consul.set_maintenance(&ids[1], true);
    until_served_by(&nginx, "/", "a");
    consul.set_maintenance(&ids[1], false);
    until_served_by(&nginx, "/", "a b");
}

const POLICIES: &str = "consul_server %%CONSUL%%;
    upstream passing { consul_dynamic %%SERVICE%%; }
    upstream warning { consul_dynamic %%SERVICE%% status=warning; }
    upstream any { consul_dynamic %%SERVICE%% status=any; }
    server { listen 127.0.0.1:%%PORT%%;
        location /passing { proxy_pass http://passing; }
        location /warning { proxy_pass http://warning; }
        location /any { proxy_pass http://any; } }";

#[test]
fn status_says_how_healthy_an_instance_must_be() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["critical", "passing", "warning"]);
    for backend in &backends {
        let instance = Instance::new(&service, &unique("id"), backend.address());
        consul.register(&instance.status(backend.name()));
    }
    let config = Config::http(POLICIES).set("CONSUL", consul.url()).set("SERVICE", &service);
    let nginx = config.start();
    assert_eq!(tally(&nginx, "/passing", 6), "passing: 6");
    assert_eq!(tally(&nginx, "/warning", 6), "passing: 3, warning: 3");
    assert_eq!(tally(&nginx, "/any", 6), "critical: 2, passing: 2, warning: 2");
}

#[test]
fn an_instance_admitted_in_warning_has_its_warning_weight() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["passing", "warning"]);
    for backend in &backends {
        let instance = Instance::new(&service, &unique("id"), backend.address()).weights(6, 2);
        consul.register(&instance.status(backend.name()));
    }
    let nginx =
        gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%% status=warning;").start();
    assert_eq!(tally(&nginx, "/", 16), "passing: 12, warning: 4");
}

#[test]
fn tags_narrow_the_set_and_have_no_case() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let tags: [&[&str]; 3] = [&["V1"], &["v1", "blue"], &["v2", "blue"]];
    let backends = Backend::start_all(&["a", "b", "c"]);
    for (backend, tags) in backends.iter().zip(tags) {
        let instance = Instance::new(&service, &unique("id"), backend.address());
        consul.register(&instance.tags(tags));
    }
    let nginx = Config::http(
        "consul_server %%CONSUL%%;
         upstream v1 { consul_dynamic %%SERVICE%% tag=v1; }
         upstream both { consul_dynamic %%SERVICE%% tag=BLUE tag=v1; }
         upstream none { consul_dynamic %%SERVICE%% tag=v3; }
         server { listen 127.0.0.1:%%PORT%%;
             location /v1 { proxy_pass http://v1; }
             location /both { proxy_pass http://both; }
             location /none { proxy_pass http://none; } }",
    )
    .set("CONSUL", consul.url())
    .set("SERVICE", &service)
    .start();
    assert_eq!(tally(&nginx, "/v1", 4), "a: 2, b: 2");
    assert_eq!(tally(&nginx, "/both", 4), "b: 4");
    assert_eq!(tally(&nginx, "/none", 2), "502: 2");
    let late = Backend::start("d");
    consul.register(&Instance::new(&service, &unique("id"), late.address()).tags(&["v3"]));
    until_served_by(&nginx, "/none", "d");
    assert_eq!(tally(&nginx, "/v1", 4), "a: 2, b: 2");
}

#[test]
fn consul_evaluates_a_filter() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    for (backend, version) in backends.iter().zip(["1.0", "2.0"]) {
        let instance = Instance::new(&service, &unique("id"), backend.address());
        consul.register(&instance.meta("version", version));
    }
    let nginx = Config::http(&format!(
        "consul_server %%CONSUL%%;
         upstream all {{ consul_dynamic %%SERVICE%%; }}
         upstream api {{ consul_dynamic %%SERVICE%% 'filter=Service.Meta.version == \"2.0\"'; }}
         {SERVER} server {{ listen 127.0.0.1:%%OTHER%%; location / {{ proxy_pass http://all; }} }}"
    ))
    .set("OTHER", nginx_consul_e2e::ports::free())
    .set("CONSUL", consul.url())
    .set("SERVICE", &service)
    .start();
    assert_eq!(tally(&nginx, "/", 4), "b: 4");
    let late = Backend::start("c");
    let instance = Instance::new(&service, &unique("id"), late.address());
    consul.register(&instance.meta("version", "2.0"));
    until_served_by(&nginx, "/", "b c");
}

#[test]
fn a_filter_that_consul_refuses_is_an_error_and_costs_nobody_else() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let nginx = Config::http(&format!(
        "consul_server %%CONSUL%%; consul_init_timeout 300ms;
         upstream bad {{ consul_dynamic %%SERVICE%% 'filter=this is none'; }}
         upstream api {{ consul_dynamic %%SERVICE%%; }} {SERVER}"
    ))
    .set("CONSUL", consul.url())
    .set("SERVICE", &service)
    .start();
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
    let line = nginx.wait_for_log("expression");
    assert!(line.contains("[error]") && line.contains(&service), "{line}");
}

#[test]
fn two_upstreams_on_one_service_share_one_watch() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let proxy = Proxy::start(consul.address());
    let config = Config::http(POLICIES).set("CONSUL", proxy.url()).set("SERVICE", &service);
    let nginx = config.start();
    let target = format!("/v1/health/service/{service}");
    // The start-up question, the watch's first and its first that blocks, once and not thrice.
    wait::until("the watch blocks", SOON, || {
        proxy.requests(&target).iter().any(|request| request.line.contains("index="))
    });
    let before = proxy.requests(&target).len();
    assert!(before <= 3, "{:#?}", proxy.requests(&target));
    wait::until_eq("connections for one watch", SOON, &1, || proxy.open());
    register_one(&consul, &service, &backends[1]);
    for path in ["/passing", "/warning", "/any"] {
        until_served_by(&nginx, path, "a b");
    }
    let after = proxy.requests(&target).len();
    assert!(after <= before + 3, "{:#?}", proxy.requests(&target));
    wait::until_eq("connections for one watch", SOON, &1, || proxy.open());
}

#[test]
fn the_parameters_of_a_query_reach_consul() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let proxy = Proxy::start(consul.address());
    let nginx = gateway(
        &proxy.url(),
        &service,
        "consul_dynamic %%SERVICE%% dc=dc1 near=_agent consistency=stale tag=v1 status=warning;
         consul_wait 7s;",
    )
    .start();
    let request = wait::until_some("a blocking query", SOON, || {
        let all = proxy.requests(&format!("/v1/health/service/{service}"));
        all.into_iter().find(|request| request.line.contains("index="))
    });
    for part in ["dc=dc1", "near=_agent", "stale", "wait=7s"] {
        assert!(request.line.contains(part), "no {part:?} in {}", request.line);
    }
    for part in ["tag=", "passing", "warning"] {
        assert!(!request.line.contains(part), "{part:?} would need a watch: {}", request.line);
    }
    drop(nginx);
}

#[test]
fn a_name_with_special_characters_is_asked_for_as_it_is() {
    let consul = Agent::shared();
    let service = unique("so & so/ü%41?");
    let backend = Backend::start("a");
    consul.register(&Instance::new(&service, &unique("id"), backend.address()));
    let nginx = gateway(&consul.url(), &service, "consul_dynamic \"%%SERVICE%%\";").start();
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
}

#[test]
fn a_change_is_served_within_milliseconds() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let nginx = follow(&consul.url(), &service);
    let mut spans = Vec::new();
    for _ in 0..9 {
        let start = Instant::now();
        let id = register_one(&consul, &service, &backends[1]);
        until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
        spans.push(start.elapsed());
        consul.deregister(&id);
        until_peers(&nginx, &service, &[&backends[0]]);
    }
    spans.sort_unstable();
    // Far above what `scripts/bench` measures, far below any polling interval: tests share a machine.
    assert!(spans[4] < Duration::from_millis(150), "{spans:?}");
}

#[test]
fn more_services_than_connections_share_them_in_a_sweep() {
    let consul = Agent::shared();
    let backends = Backend::start_all(&["a", "b"]);
    let services: Vec<String> = (0..16).map(|_| unique("swept")).collect();
    let proxy = Proxy::start(consul.address());
    let mut text = "consul_server %%CONSUL%%; consul_connections 4;\n".to_owned();
    let mut server = "server { listen 127.0.0.1:%%PORT%%;
        location = /consul { consul_status; }\n"
        .to_owned();
    for (n, service) in services.iter().enumerate() {
        register_one(&consul, service, &backends[0]);
        text += &format!("upstream u{n} {{ consul_dynamic {service}; }}\n");
        server += &format!("location /{n} {{ proxy_pass http://u{n}; }}\n");
    }
    let config = Config::http(&format!("{text}{server}}}")).set("CONSUL", proxy.url());
    let nginx = config.start();
    let seen: Tally = (0..services.len()).map(|n| nginx.outcome(&format!("/{n}"))).collect();
    assert_eq!(seen.to_string(), "a: 16");
    wait::until("connections settle", SOON, || proxy.open() <= 4);
    let threads = nginx_consul_e2e::process::threads(nginx.worker_zero());
    assert!(threads.len() <= 1 + 4 + 2, "more threads than connections need: {threads:?}");
    for service in &services {
        register_one(&consul, service, &backends[1]);
    }
    // From the first answers on the status doesn't know yet who will be swept.
    let delay = wait::until_some("12 of 16 services in a sweep", SOON, || {
        let status = nginx.status();
        let services = status["services"].as_array().expect("services");
        let swept = services.iter().filter(|service| service["mode"] == "polling");
        let delays: Vec<f64> = swept.map(|s| s["delay_ms"].as_f64().expect("delay_ms")).collect();
        (delays.len() >= 12).then(|| delays[0])
    });
    assert!(delay > 0.0 && delay < 60_000.0, "delay_ms: {delay}");
    let patience = Duration::from_millis(delay as u64) * 3 + SOON;
    wait::until("every service's change is served", patience, || {
        (0..services.len()).all(|n| tally(&nginx, &format!("/{n}"), 4) == "a: 2, b: 2")
    });
    assert!(proxy.open() <= 4, "{} connections", proxy.open());
}

#[test]
fn polls_keep_their_connection() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let proxy = Proxy::start(consul.address());
    let nginx = follow(&proxy.url(), &service);
    until_peers(&nginx, &service, &[&backends[0]]);
    let before = proxy.accepted();
    assert!(before <= 2, "{before} connections to start with");
    for _ in 0..3 {
        let id = register_one(&consul, &service, &backends[1]);
        until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
        consul.deregister(&id);
        until_peers(&nginx, &service, &[&backends[0]]);
    }
    wait::until("the second connection, if one was due", SOON, || proxy.open() == 1);
    assert!(proxy.accepted() <= 2, "{} connections", proxy.accepted());
    assert!(http::get(consul.address(), "/v1/status/leader").is_ok());
}
