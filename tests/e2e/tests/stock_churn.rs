//! nginx's own balancing methods while the set changes all the time.

use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::{Agent, Backend, Config, Instance, Load, Manner, http, wait};

use crate::methods::register_weighted;
use crate::stock_methods::{METHODS, busy, hanging, picking, release, until_idle};
use crate::support::{SERVER, SOON, gateway, register, register_one, unique, until_peers};

/// One nginx with an upstream for each method, at `/0/`, `/1/` and so on.
fn each_method(consul: &Agent, service: &str, parameters: &str) -> Config {
    let upstreams: String = METHODS
        .iter()
        .enumerate()
        .map(|(n, method)| {
            format!("upstream m{n} {{ {method}; consul_dynamic %%SERVICE%% {parameters}; keepalive 8; }}\n")
        })
        .collect();
    let locations: String = (0..METHODS.len())
        .map(|n| format!("location /{n}/ {{ proxy_pass http://m{n}; }}\n"))
        .collect();
    Config::http(&format!(
        "consul_server %%CONSUL%%; {upstreams} upstream api {{ consul_dynamic %%SERVICE%%; }}
         proxy_http_version 1.1; proxy_set_header Connection \"\"; {SERVER}"
    ))
    .file("server.conf", locations)
    .set("CONSUL", consul.url())
    .set("SERVICE", service)
}

/// Has instances come and go, ten times a second.
fn churn(consul: &Agent, service: &str, backends: &[Backend], lasts: Duration) {
    let start = Instant::now();
    while start.elapsed() < lasts {
        for backend in backends {
            let id = register_one(consul, service, backend);
            thread::sleep(Duration::from_millis(100));
            consul.deregister(&id);
            thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn churn_with_slow_retries_costs_no_worker_and_hardly_a_request() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let names: Vec<String> = (0..10).map(|n| format!("n{n}")).collect();
    let backends: Vec<Backend> = names.iter().map(|name| Backend::start(name)).collect();
    register(&consul, &service, &backends[..7]);
    for backend in backends.iter().step_by(2) {
        backend.set(Manner::ResetAfter(Duration::from_millis(300)));
    }
    let nginx = each_method(&consul, &service, "max_fails=0").workers(2).start();
    let workers = nginx.workers();
    let loads: Vec<Load> = (0..METHODS.len())
        .map(|n| Load::start(nginx.address(), &format!("/{n}/?key={n}"), 4, false))
        .collect();
    churn(&consul, &service, &backends[7..], Duration::from_secs(6));
    for (load, method) in loads.into_iter().zip(METHODS) {
        let seen = load.finish();
        let bad = seen.total() - names.iter().map(|name| seen.of(name)).sum::<usize>();
        // A retry may meet a second bad one, or one that has left.
        assert!(seen.total() > 5 && bad * 20 <= seen.total().max(20), "{method}: {seen}");
    }
    assert_eq!(nginx.workers(), workers, "none has died");
    until_idle(&nginx);
}

/// What a line of the debug log says that work took.
fn cost(line: &str) -> Duration {
    let text = line.rsplit(" in ").next().unwrap_or("").split(',').next().unwrap_or("").trim();
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number: f64 = text[..text.len() - unit.len()].parse().expect("a number");
    let seconds = match unit {
        "ns" => 1e-9,
        "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => panic!("no unit of time: {line}"),
    };
    Duration::from_secs_f64(number * seconds)
}

#[test]
fn a_storm_of_changes_takes_a_twentieth_of_a_worker_at_most() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    // 160 points on the ring for each unit of weight.
    register_weighted(&consul, &service, &backends[..2], &[400, 400]);
    let start = Instant::now();
    let nginx =
        picking(&consul, &service, "hash $arg_key consistent", "").log_level("debug").start();
    let load = Load::start_paced(nginx.address(), "/", 1, true, Duration::from_millis(2));
    let lines = || -> Vec<String> {
        let said = ["peers made anew", "first request prepared"];
        said.iter().flat_map(|what| nginx.logged(what)).collect()
    };
    churn(&consul, &service, &backends[2..], Duration::from_secs(5));
    // On a machine where it takes long, the rests are long too.
    while lines().len() <= 2 && start.elapsed() < Duration::from_secs(60) {
        churn(&consul, &service, &backends[2..], Duration::from_secs(1));
    }
    let lines = lines();
    let costs: Vec<Duration> = lines.iter().map(|line| cost(line)).collect();
    let (all, most) = (costs.iter().sum::<Duration>(), costs.iter().max().copied());
    let most = most.expect("peers were made");
    // The last one's rest may lie ahead.
    assert!((all - most) * 20 < start.elapsed(), "{lines:#?}");
    assert!(costs.len() > 2 && most > Duration::from_millis(5), "{lines:#?}");
    // What waited is made up for.
    register_weighted(&consul, &service, &backends[2..], &[400]);
    wait::until("c gets its keys", SOON, || {
        (0..40).any(|key| nginx.outcome(&format!("/?key={key}")) == "c")
    });
    assert_eq!(nginx_consul_e2e::load::failures(&load.finish(), &["a", "b", "c"]), "");
}

#[test]
fn nothing_leaks_under_churn() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c", "d"]);
    register(&consul, &service, &backends[..2]);
    let nginx = each_method(&consul, &service, "").start();
    let loads: Vec<Load> = (0..METHODS.len())
        .map(|n| Load::start(nginx.address(), &format!("/{n}/wait/5"), 2, true))
        .collect();
    churn(&consul, &service, &backends[2..], Duration::from_secs(4));
    register(&consul, &service, &backends[2..]);
    until_peers(&nginx, &service, &backends.iter().collect::<Vec<_>>());
    for (load, method) in loads.into_iter().zip(METHODS) {
        let seen = load.finish();
        let good: usize = ["a", "b", "c", "d"].map(|name| seen.of(name)).iter().sum();
        assert_eq!(good, seen.total(), "{method}: {seen}");
    }
    until_idle(&nginx);
    // What least_conn counts itself is right as well.
    let address = nginx.address();
    backends.iter().for_each(|backend| backend.set(Manner::Hold));
    let all = || backends.iter().map(Backend::busy).sum::<usize>();
    let one = |n| {
        let client = thread::spawn(move || http::get(address, "/0/"));
        wait::until("the request hangs", SOON, || all() == n);
        client
    };
    let clients = (1..=12).map(one).collect();
    assert_eq!(busy(&backends), "a: 3, b: 3, c: 3, d: 3");
    release(&backends, clients);
}

#[test]
fn least_conn_knows_who_is_busy_when_an_instance_was_a_backup_meanwhile() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    for method in ["least_conn;", "consul_balance least_conn;"] {
        let ids = register(&consul, &service, &backends);
        let lines = format!("{method} consul_dynamic %%SERVICE%%;");
        let nginx = gateway(&consul.url(), &service, &lines).start();
        let until_backup = |is: bool| {
            wait::until_eq("backup", SOON, &is, || {
                let shown = nginx.service(&service);
                let peers = shown["peers"].as_array().into_iter().flatten();
                peers.into_iter().any(|peer| peer["backup"] == true)
            });
        };
        until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
        let mut clients = hanging(&nginx, &backends, 4);
        assert_eq!(busy(&backends), "a: 2, b: 2", "{method}");
        let a = Instance::new(&service, &ids[0], backends[0].address());
        consul.register(&a.meta("nginx_backup", "true"));
        until_backup(true);
        clients.extend(hanging(&nginx, &backends, 2));
        assert_eq!(busy(&backends), "a: 2, b: 4", "{method}");
        register_one(&consul, &service, &backends[0]);
        until_backup(false);
        clients.extend(hanging(&nginx, &backends, 4));
        assert_eq!(busy(&backends), "a: 5, b: 5", "{method}");
        release(&backends, clients);
        until_idle(&nginx);
    }
}
