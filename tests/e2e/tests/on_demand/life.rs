//! How long a service that requests name stays.

use std::thread;

use nginx_consul_e2e::FakeConsul;
use nginx_consul_e2e::fake_consul::{Answer, instance};

use super::*;

#[test]
fn the_least_recently_used_service_makes_room() {
    let consul = Agent::shared();
    let text = format!(
        "consul_server %%CONSUL%%;\nconsul_max_services 2;\n\
         upstream api {{ consul_dynamic $arg_s; }}\n{SERVER}"
    );
    let nginx = Config::http(&text).set("CONSUL", consul.url()).start();
    let services: Vec<_> = (0..3).map(|_| new_service(&consul, "lru")).collect();
    let name = |n: usize| services[n].0.clone();
    let last_used = |nginx: &Nginx, service: &str| {
        let status = nginx.status();
        let all = status["on_demand"]["services"].as_array().expect("services").clone();
        let of = all.into_iter().find(|s| s["service"] == service).expect("it is followed");
        of["last_used_seconds"].as_f64().expect("a time")
    };
    for n in [0, 1] {
        assert_eq!(nginx.outcome(&path(&name(n))), name(n));
    }
    // The time of use is good to a second.
    wait::until("0 is used later than 1", SOON, || {
        nginx.outcome(&path(&name(0)));
        last_used(&nginx, &name(0)) + 1.0 < last_used(&nginx, &name(1))
    });
    assert_eq!(nginx.outcome(&path(&name(2))), name(2));
    let mut left = [name(0), name(2)];
    left.sort_unstable();
    assert_eq!(named(&nginx), left);
    nginx.wait_for_log("1 service named by requests evicted for newer ones");
    assert_eq!(nginx.outcome(&path(&name(1))), name(1), "it may come again");
}

#[test]
fn a_service_that_nobody_names_any_more_is_dropped() {
    let consul = Agent::shared();
    let nginx = by_argument(&consul.url(), "consul_idle 1s;").log_level("info").start();
    let (idle, _a) = new_service(&consul, "idle");
    let (busy, _b) = new_service(&consul, "busy");
    assert_eq!(nginx.outcome(&path(&idle)), idle);
    assert_eq!(nginx.outcome(&path(&busy)), busy);
    let load = Load::start_paced(nginx.address(), &path(&busy), 1, true, Duration::from_millis(50));
    wait::until_eq("who is followed", SOON, &busy, || named(&nginx).join(" "));
    nginx.wait_for_log(&format!(
        "service \"{idle}\": dropped, no request named it within consul_idle"
    ));
    assert_eq!(nginx.outcome(&path(&idle)), idle, "it may come again");
    let tally = load.finish();
    assert_eq!(tally.outcomes(), busy, "{tally}");
}

/// What was served goes on being served, whatever keeps Consul from being asked: the watch may not
/// even know it yet.
#[test]
fn a_service_is_not_dropped_for_idleness_while_consul_can_not_be_asked() {
    let backend = Backend::start("kept");
    let faults = ["refused", "silent", "one datacenter silent", "no leader", "token", "restarted"];
    thread::scope(|scope| {
        for fault in faults {
            scope.spawn(|| is_kept_over(fault, &backend));
        }
    });
}

fn is_kept_over(fault: &str, backend: &Backend) {
    let text = format!(
        "consul_server %%CONSUL%%;\nconsul_idle 1s;\nconsul_retry 100ms 200ms;\n\
         consul_state %%STATE%%;\n\
         upstream api {{ consul_dynamic $arg_s dc=a,b; consul_first_wait 300ms; }}\n{SERVER}"
    );
    let consul = FakeConsul::start();
    let proxy = Proxy::start(consul.address());
    consul.publish_one("idle", 7, backend);
    let folder = open_folder();
    let state = folder.path().join("state");
    let config = Config::http(&text).set("CONSUL", proxy.url()).set("STATE", state.display());
    let mut nginx = config.workers(2).allow_kills().start();
    until_served_by(&nginx, &path("idle"), "kept");
    match fault {
        "refused" => proxy.set(Fault::Refuse),
        "silent" => proxy.set(Fault::BlackHole),
        "one datacenter silent" => consul.silence(&["dc=a"]),
        "no leader" => consul.script(|_| Some(Answer::error(500, "No cluster leader"))),
        "token" => consul.script(|_| Some(Answer::error(403, "ACL not found"))),
        _ => {
            proxy.set(Fault::Refuse);
            let killed = nginx.worker_zero();
            kill(killed);
            nginx.until_replaced(killed);
        }
    }
    // One in each datacenter.
    wait::holds(fault, Duration::from_millis(3500), || named(&nginx) == ["idle"; 2]);
    assert_eq!(nginx.outcome(&path("idle")), "kept", "{fault}");
    let saved = std::fs::read_to_string(&state).expect("the state");
    assert!(saved.contains("idle"), "{fault}: {saved}");
    if fault == "refused" {
        nginx.reload_and_wait();
        wait::holds(fault, Duration::from_millis(3500), || named(&nginx) == ["idle"; 2]);
    }
    consul.unscript();
    consul.silence(&[]);
    proxy.set(Fault::Pass);
    wait::until(fault, SOON, || named(&nginx).is_empty());
}

#[test]
fn a_change_just_after_the_first_request_is_seen_at_once() {
    let consul = Agent::shared();
    let backends = Backend::start_all(&["a", "b"]);
    let nginx = by_argument(&consul.url(), "").workers(1).start();
    for delay in [0, 100, 300, 600, 1000, 1400].map(Duration::from_millis) {
        let service = unique("young");
        register_one(&consul, &service, &backends[0]);
        assert_eq!(nginx.outcome(&path(&service)), "a");
        thread::sleep(delay);
        register_one(&consul, &service, &backends[1]);
        let start = Instant::now();
        until_served_by(&nginx, &path(&service), "a b");
        let took = start.elapsed();
        assert!(took < Duration::from_millis(500), "{took:?}, {delay:?} after the first request");
    }
}

#[test]
fn named_services_are_served_from_the_state_file_while_consul_is_down() {
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    let (service, _backend) = new_service(&consul, "saved");
    let config = |folder: &std::path::Path| {
        let text = format!(
            "consul_server %%CONSUL%%;\nconsul_init_timeout 100ms;\nconsul_state %%STATE%%;\n\
             upstream api {{ consul_dynamic $arg_s; consul_first_wait 50ms; }}\n{SERVER}"
        );
        let state = folder.join("state");
        Config::http(&text).set("CONSUL", proxy.url()).set("STATE", state.display())
    };
    let folder = open_folder();
    let nginx = config(folder.path()).start();
    wait::until_eq("the service is served", SOON, &service, || nginx.outcome(&path(&service)));
    wait::until("it is saved", SOON, || {
        let text = std::fs::read_to_string(folder.path().join("state")).unwrap_or_default();
        text.contains(&service)
    });
    drop(nginx);
    proxy.set(Fault::Refuse);
    let nginx = config(folder.path()).start();
    assert_eq!(nginx.outcome(&path(&service)), service);
    assert_eq!(nginx.outcome(&path(&unique("unknown"))), "502");
}

#[test]
fn a_named_service_is_followed_over_reload_and_kill() {
    let consul = Agent::shared();
    let service = unique("kept");
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let config = by_argument(&consul.url(), "").workers(2).allow_kills();
    let mut nginx = config.start();
    until_served_by(&nginx, &path(&service), "a");
    let came_and_went = |nginx: &Nginx| {
        let id = register_one(&consul, &service, &backends[1]);
        until_served_by(nginx, &path(&service), "a b");
        consul.deregister(&id);
        until_served_by(nginx, &path(&service), "a");
    };
    came_and_went(&nginx);
    nginx.reload_and_wait();
    came_and_went(&nginx);
    let killed = nginx.worker_zero();
    kill(killed);
    nginx.until_replaced(killed);
    came_and_went(&nginx);
    assert_eq!(named(&nginx), [service]);
}

#[test]
fn no_request_for_a_named_service_fails_over_reloads() {
    let consul = Agent::shared();
    let (service, _backend) = new_service(&consul, "steady");
    let mut nginx = by_argument(&consul.url(), "").workers(2).start();
    assert_eq!(nginx.outcome(&path(&service)), service);
    let load = Load::start(nginx.address(), &path(&service), 4, false);
    for _ in 0..5 {
        nginx.reload_and_wait();
        let (new, _b) = new_service(&consul, "meanwhile");
        assert_eq!(nginx.outcome(&path(&new)), new);
    }
    let tally = load.finish();
    assert_eq!(tally.outcomes(), service, "{tally}");
}

/// Blocks that name the service, whatever the tag, and requests that do share one watch.
#[test]
fn fixed_and_named_blocks_share_the_watch_of_a_service() {
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    let (service, _backend) = new_service(&consul, "shared");
    let text = format!(
        "consul_server %%CONSUL%%;\nconsul_empty drop;\n\
         upstream fixed {{ consul_dynamic {service}; }}\n\
         upstream tagged {{ consul_dynamic $arg_s; consul_allow_service tag=v1; }}\n\
         upstream api {{ consul_dynamic $arg_s; }}\n{}",
        SERVER.replace(
            "location / {",
            "location /tagged { proxy_pass http://tagged; }\nlocation / {"
        )
    );
    let nginx = Config::http(&text).set("CONSUL", proxy.url()).start();
    let tagged = Backend::start("tagged");
    consul.register(&Instance::new(&service, "tagged", tagged.address()).tags(&["v1"]));
    let tagged_path = format!("/tagged?s={service}");
    wait::until_eq("the tagged one", SOON, "tagged", || nginx.outcome(&tagged_path));
    until_served_by(&nginx, &path(&service), &format!("{service} tagged"));
    let blocking = |text: &str| {
        let all = proxy.requests(&format!("/v1/health/service/{service}"));
        all.iter().filter(|request| request.line.contains(text)).count()
    };
    let watching = || blocking("index=");
    let index = consul.index(&format!("/v1/health/service/{service}"));
    wait::until("the watch blocks on what is known", SOON, || {
        blocking(&format!("index={index}&")) > 0
    });
    let before = watching();
    consul.deregister("tagged");
    until_served_by(&nginx, &path(&service), &service);
    wait::until_eq("the tagged one is gone", SOON, "502", || nginx.outcome(&tagged_path));
    wait::until("the watch blocks again", SOON, || watching() > before);
    assert_eq!(watching(), before + 1, "one watch asks once more");
}

/// A folder that any worker may write in.
fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .expect("an open folder");
    folder
}

/// More services than may be followed, all asked for all the time: entries pass from one to the
/// next hundreds of times a second.
#[test]
fn a_churn_of_services_mixes_nobody_up() {
    let consul = Agent::shared();
    let text = format!(
        "consul_server %%CONSUL%%;\nconsul_max_services 6;\nconsul_first_wait 5s;\n\
         upstream api {{ consul_dynamic $arg_s; }}\n{SERVER}"
    );
    let config = Config::http(&text).set("CONSUL", consul.url()).workers(2).allow_kills();
    let mut nginx = config.start();
    let services: Vec<_> = (0..18).map(|_| new_service(&consul, "churn")).collect();
    let loads: Vec<_> = services
        .iter()
        .map(|(service, _)| (service, Load::start(nginx.address(), &path(service), 1, false)))
        .collect();
    let sent = || loads.iter().map(|(_, load)| load.sent()).sum::<usize>();
    for turn in 0..6 {
        let before = sent();
        wait::until("a few hundred requests", SOON * 2, || sent() >= before + 300);
        if turn % 2 == 0 {
            nginx.reload_and_wait();
        } else {
            let killed = nginx.worker_zero();
            kill(killed);
            nginx.until_replaced(killed);
        }
    }
    for (service, load) in loads {
        let tally = load.finish();
        let others = services.iter().filter(|(name, _)| name != service);
        for (other, _) in others {
            assert!(!tally.outcomes().split(' ').any(|o| o == other), "{service}: {tally}");
        }
    }
}

/// Most of them have no connection that waits for their changes.
#[test]
fn more_services_than_connections_are_each_served_on_the_first_request() {
    let consul = Agent::shared();
    for connections in [1, 4] {
        let text = format!(
            "consul_server %%CONSUL%%;\nconsul_connections {connections};\n\
             upstream api {{ consul_dynamic $arg_s; }}\n{SERVER}"
        );
        let nginx = Config::http(&text).set("CONSUL", consul.url()).start();
        for _ in 0..12 {
            let (service, _backend) = new_service(&consul, "crowd");
            assert_eq!(nginx.outcome(&path(&service)), service, "{connections}");
        }
    }
}

/// A full zone has no room for counters long before it has none for one more service.
#[test]
fn a_service_finds_room_in_a_zone_that_is_full_of_others_instances() {
    let consul = FakeConsul::start();
    let backend = Backend::start_on("here", [0, 0, 0, 0]);
    let address = |i: u8| SocketAddr::from(([127, 0, 0, i], backend.address().port()));
    let services: Vec<String> = (0..12).map(|_| unique("many")).collect();
    for (n, service) in services.iter().enumerate() {
        let instances: Vec<Value> =
            (1..=60).map(|i| instance(&format!("i{i}"), address(i))).collect();
        consul.publish(service, 7 + n as u64, &Value::Array(instances));
    }
    let text = format!(
        "consul_server %%CONSUL%%;\nconsul_zone consul 192k;\nconsul_first_wait 5s;\n\
         upstream api {{ consul_dynamic $arg_s; }}\n{SERVER}"
    );
    let nginx = Config::http(&text).set("CONSUL", consul.url()).allow("consul_zone").start();
    for service in &services {
        assert_eq!(nginx.outcome(&path(service)), "here", "{service}");
    }
    assert!(named(&nginx).len() < services.len());
}
