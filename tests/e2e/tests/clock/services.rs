//! What is known of services, and how they are followed.

use super::*;

/// A service of its own, and its backend.
fn add(consul: &Agent, name: &str) -> (String, Backend) {
    let service = unique(name);
    let backend = Backend::start(&service);
    register_one(consul, &service, &backend);
    (service, backend)
}

fn path(service: &str) -> String {
    format!("/?s={service}")
}

fn by_argument(consul: &Agent, lines: &str) -> (Nginx, WallClock) {
    start(gateway(&consul.url(), "unused", &format!("consul_dynamic $arg_s; {lines}")))
}

fn named(nginx: &Nginx) -> Vec<Value> {
    nginx.status()["on_demand"]["services"].as_array().expect("named services").clone()
}

#[test]
fn an_absent_name_is_looked_up_again_in_its_time_and_not_before() {
    let consul = Agent::shared();
    let (nginx, clock) = by_argument(&consul, "consul_unknown_service status=404 valid=2s;");
    let service = unique("later");
    assert_eq!(nginx.outcome(&path(&service)), "404");
    clock.step(&nginx, BACK);
    let backend = Backend::start("late");
    register_one(&consul, &service, &backend);
    until_served_by(&nginx, &path(&service), "late");

    let (nginx, clock) = by_argument(&consul, "consul_unknown_service status=404 valid=10m;");
    let service = unique("later");
    assert_eq!(nginx.outcome(&path(&service)), "404");
    clock.step(&nginx, FORWARD);
    register_one(&consul, &service, &backend);
    assert_eq!(tally(&nginx, &path(&service), 5), "404: 5");
}

#[test]
fn a_service_is_dropped_after_consul_idle_and_not_before() {
    let consul = Agent::shared();
    let (service, _backend) = add(&consul, "idle");
    let (nginx, clock) = by_argument(&consul, "consul_idle 2s;");
    assert_eq!(nginx.outcome(&path(&service)), service);
    clock.step(&nginx, BACK);
    wait::until("it is dropped", SOON, || named(&nginx).is_empty());

    let (nginx, clock) = by_argument(&consul, "consul_idle 10m;");
    assert_eq!(nginx.outcome(&path(&service)), service);
    clock.step(&nginx, FORWARD);
    // It is judged once a second.
    wait::holds("it is followed", Duration::from_millis(2500), || {
        let used = named(&nginx).first().and_then(|of| of["last_used_seconds"].as_f64());
        used.is_some_and(|seconds| seconds < MINUTES)
    });
}

#[test]
fn a_first_request_waits_for_consul_first_wait() {
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    let lines = "consul_dynamic $arg_s; consul_first_wait 3s;";
    let (nginx, clock) = start(gateway(&proxy.url(), "unused", lines));
    proxy.set(Fault::BlackHole);
    for step in [BACK, FORWARD] {
        let (address, path) = (nginx.address(), path(&unique("unknown")));
        let begun = proxy.accepted();
        let client = thread::spawn(move || {
            let start = std::time::Instant::now();
            http::get(address, &path).map(|answer| (answer.status, start.elapsed()))
        });
        wait::until("Consul is asked", SOON, || proxy.accepted() > begun || client.is_finished());
        clock.step(&nginx, step);
        let (status, took) = client.join().expect("a client").expect("an answer");
        assert!((500..=504).contains(&status), "{status}");
        assert!((2..8).contains(&took.as_secs()), "{took:?} after {step} s");
    }
}

#[test]
fn ages_and_the_pause_before_a_retry_are_what_they_are() {
    for step in [BACK, FORWARD] {
        let (consul, service) = (Agent::shared(), unique("web"));
        let backend = Backend::start("a");
        register_one(&consul, &service, &backend);
        let proxy = Proxy::start(consul.address());
        let config =
            gateway(&proxy.url(), &service, "consul_dynamic %%SERVICE%%; consul_retry 20s 20s;");
        let probes = "location = /fresh { consul_status ready max_age=4s; }
            location = /lasting { consul_status ready max_age=10m; }
            add_header X-Age $consul_age;";
        let (nginx, clock) = start(config.file("server.conf", probes));
        until_served_by(&nginx, "/", "a");
        proxy.set(Fault::Refuse);
        proxy.cut_all();
        let shown = |field: &str| nginx.service(&service)[field].as_f64();
        wait::until("it has failed", SOON, || shown("backoff_ms") > Some(0.0));
        clock.step(&nginx, step);
        let pause = shown("backoff_ms").expect("a pause");
        assert!(pause > 0.0 && pause <= 20_000.0, "{pause} ms after {step} s");
        for field in ["last_good_seconds", "last_change_seconds"] {
            let age = shown(field).expect("an age");
            assert!(age > 0.0 && age < MINUTES, "{field}: {age} s after {step} s");
        }
        let age: f64 = nginx.get("/").header("x-age").expect("an age").parse().expect("a number");
        assert!(age > 0.0 && age < MINUTES, "{age} s after {step} s");
        assert_eq!(nginx.get("/lasting").status, 200, "{step}");
        wait::until("its data is old", SOON, || nginx.get("/fresh").status == 503);
    }
}

const SERVICES: usize = 24;

/// nginx that follows so many services over `http`, and the services that have a query of their own.
fn many(consul: &Agent, http: &str) -> Config {
    let services: Vec<String> = (0..SERVICES).map(|_| unique("many")).collect();
    let mut text = format!("consul_server {}; consul_connections 32; {http}\n", consul.url());
    for (number, service) in services.iter().enumerate() {
        consul.register(&Instance::new(service, service, ([127, 9, 0, 1], 10_000)));
        text.push_str(&format!("upstream u{number} {{ consul_dynamic {service}; }}\n"));
    }
    text.push_str(
        "server { listen 127.0.0.1:%%PORT%%; include server*.conf;
         location = /consul { consul_status; } }",
    );
    Config::http(&text)
}

fn blocking(nginx: &Nginx) -> usize {
    let status = nginx.status();
    let services = status["services"].as_array().expect("services");
    services.iter().filter(|service| service["mode"] == "blocking").count()
}

#[test]
fn after_a_reload_consul_s_connections_are_counted_for_as_long_as_it_counts_them() {
    let consul = Agent::shared();
    let (mut nginx, clock) = start(many(&consul, "consul_wait 3s;"));
    wait::until_eq("queries", SOON * 2, &SERVICES, || blocking(&nginx));
    nginx.reload();
    clock.step(&nginx, BACK);
    wait::until_eq("queries after the reload", SOON * 2, &SERVICES, || blocking(&nginx));

    let (mut nginx, clock) = start(many(&consul, "consul_wait 60s;"));
    wait::until_eq("queries", SOON * 2, &SERVICES, || blocking(&nginx));
    nginx.reload_and_wait();
    wait::until("the new one has some", SOON, || blocking(&nginx) < SERVICES);
    clock.step(&nginx, FORWARD);
    wait::holds("others wait", Duration::from_secs(3), || blocking(&nginx) < SERVICES);
    let used = nginx.status()["connections"]["used"].as_u64().expect("connections");
    assert!((25..=32).contains(&used), "{used}");
}
