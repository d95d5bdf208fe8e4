//! Several blocks, other locations, and what must not get lost.

use std::thread;

use nginx_consul_e2e::FakeConsul;
use nginx_consul_e2e::fake_consul::{Answer, instance};

use super::*;

/// Blocks that ask the same of the same servers share their services, but each has its own rule.
#[test]
fn each_block_has_its_own_patterns() {
    let consul = Agent::shared();
    let (web, _a) = new_service(&consul, "web-mine");
    let (api, _b) = new_service(&consul, "api-mine");
    let text = format!(
        "consul_server %%CONSUL%%;\n\
         upstream first {{ consul_dynamic $arg_s; consul_allow_service web-*; }}\n\
         upstream api {{ consul_dynamic $arg_s; consul_allow_service api-*; }}\n{}",
        SERVER
            .replace("location / {", "location /first { proxy_pass http://first; }\nlocation / {")
    );
    let mut nginx = Config::http(&text).set("CONSUL", consul.url()).start();
    let first = format!("/first?s={web}");
    for _ in 0..2 {
        assert_eq!((nginx.outcome(&first), nginx.outcome(&path(&api))), (web.clone(), api.clone()));
        assert_eq!(nginx.outcome(&path(&web)), "502");
        nginx.reload_and_wait();
    }
    assert_eq!(named(&nginx), [api, web]);
}

/// The pattern of a `map` must not replace those that the location has matched.
#[test]
fn the_captures_of_a_location_stay_its_own() {
    let consul = Agent::shared();
    let (service, _a) = new_service(&consul, "captured");
    let static_backend = Backend::start("static");
    let text = format!(
        "consul_server %%CONSUL%%;\n\
         map $arg_s $service {{ ~^(.)(.*)$ $1$2; }}\n\
         map $uri $other {{ default {}; }}\n\
         upstream api {{ consul_dynamic $service; }}\n{}",
        static_backend.address(),
        SERVER.replace(
            "location / {",
            "location ~ ^/other/(.*)$ { proxy_pass http://$other/$1; add_header X-Rest $1; }\n\
             location ~ ^/api/(.*)$ { proxy_pass http://api; add_header X-Rest $1; }\n\
             location / {"
        )
    );
    let nginx = Config::http(&text).set("CONSUL", consul.url()).start();
    for place in ["other", "api"] {
        for _ in 0..2 {
            let answer = nginx.get(&format!("/{place}/rest?s={service}"));
            assert_eq!((answer.status, answer.header("X-Rest")), (200, Some("rest")), "{place}");
        }
    }
}

#[test]
fn fewer_services_than_there_are_stay_after_a_reload() {
    let consul = Agent::shared();
    let text = format!(
        "consul_server %%CONSUL%%;\nconsul_max_services 4;\n\
         upstream api {{ consul_dynamic $arg_s; }}\n{SERVER}"
    );
    let mut nginx = Config::http(&text).set("CONSUL", consul.url()).start();
    let services: Vec<_> = (0..4).map(|_| new_service(&consul, "fewer")).collect();
    for (service, _) in &services {
        assert_eq!(&nginx.outcome(&path(service)), service);
    }
    nginx.rewrite(|text| text.replace("consul_max_services 4", "consul_max_services 2"));
    nginx.reload_and_wait();
    wait::until_eq("how many are followed", SOON, &2, || named(&nginx).len());
    for (service, _) in &services {
        assert_eq!(&nginx.outcome(&path(service)), service, "it may come again");
    }
}

/// That nobody could tell is not that there is none.
#[test]
fn the_status_of_unknown_services_is_not_that_of_a_consul_that_is_down() {
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    let lines = "consul_unknown_service status=404; consul_first_wait 300ms;";
    let nginx = by_argument(&proxy.url(), lines).start();
    assert_eq!(nginx.outcome(&path(&unique("none"))), "404");
    proxy.set(Fault::Refuse);
    let start = Instant::now();
    for n in 0..20 {
        assert_eq!(nginx.outcome(&path(&format!("down-{n}"))), "502");
    }
    let (lines, seconds) = (nginx.logged("service \"down-"), start.elapsed().as_secs() as usize);
    assert!(lines.len() <= 1 + seconds, "one a second at most: {lines:?} in {seconds} s");
    assert_eq!(nginx.logged("cannot read the catalog of services").len(), 1);
    proxy.set(Fault::BlackHole);
    assert_eq!(nginx.outcome(&path(&unique("late"))), "502");
}

/// A fake Consul with two datacenters; `web` is in the second one.
fn two_datacenters(backend: &Backend) -> FakeConsul {
    let consul = FakeConsul::start();
    let body = Value::Array(vec![instance("there", backend.address())]).to_string();
    consul.script(move |query| {
        let is_there = query.target.contains("dc=b");
        let is_first = query.index.is_none();
        match (query.target.starts_with("/v1/catalog/services"), is_there) {
            (true, true) => Some(Answer::ok(7, r#"{"web":[]}"#)),
            (true, false) => Some(Answer::ok(7, "{}")),
            (false, true) if is_first => Some(Answer::ok(7, &body)),
            (false, false) if is_first => Some(Answer::ok(7, "[]")),
            (false, _) => None,
        }
    });
    consul
}

#[test]
fn a_service_of_the_second_datacenter_is_served_on_its_first_request() {
    let backend = Backend::start("there");
    let consul = two_datacenters(&backend);
    let lines = "consul_dynamic $arg_s dc=a,b; consul_unknown_service status=404;";
    let nginx = gateway(&consul.url(), "unused", lines).start();
    assert_eq!(nginx.outcome("/?s=none"), "404");
    assert_eq!(nginx.outcome("/?s=web"), "there");
}

/// Whoever can be found elsewhere, or is none of its services, is not held up by a catalog that
/// does not answer.
#[test]
fn a_catalog_that_hangs_holds_up_only_its_own_services() {
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    proxy.set(Fault::BlackHole);
    let text = format!(
        "consul_server %%CONSUL%%;\nconsul_first_wait 2s;\n\
         upstream hung {{ consul_dynamic $arg_s; consul_server {}; }}\n\
         upstream api {{ consul_dynamic $arg_s; }}\n{}",
        proxy.url(),
        SERVER.replace("location / {", "location /hung { proxy_pass http://hung; }\nlocation / {")
    );
    let nginx = Config::http(&text).set("CONSUL", consul.url()).start();
    let hung: Vec<Connection> = (0..20)
        .map(|n| {
            let mut connection = Connection::open(nginx.address()).expect("a connection");
            connection.send("GET", &format!("/hung?s=hung-{n}"), &[], b"").expect("sent");
            connection
        })
        .collect();
    wait::until("the other Consul is asked", SOON, || proxy.open() > 0);
    for _ in 0..3 {
        let (service, _backend) = new_service(&consul, "free");
        let start = Instant::now();
        assert_eq!(nginx.outcome(&path(&service)), service);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
    for mut connection in hung {
        assert_eq!(connection.receive().expect("an answer").status, 502);
    }
}

/// The status page proxies nothing.
#[test]
fn the_status_page_waits_for_nobody() {
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    let nginx = by_argument(&proxy.url(), "consul_first_wait 3s;").start();
    proxy.set(Fault::BlackHole);
    let start = Instant::now();
    assert_eq!(nginx.get(&format!("/consul?s={}", unique("new"))).status, 200);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

/// Worker 0 is killed with the question in its hand, and the other worker's requests for the
/// service never end.
#[test]
fn a_question_that_is_lost_is_asked_again() {
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    let (service, _a) = new_service(&consul, "lost");
    let nginx = by_argument(&proxy.url(), "consul_first_wait 1s;")
        .file("server.conf", "add_header X-Worker $pid always;")
        .workers(2)
        .allow_kills()
        .start();
    let zero = nginx.worker_zero();
    let mut others = Vec::new();
    let mut all = Vec::new();
    wait::until("three connections to the other worker", SOON, || {
        let mut connection = Connection::open(nginx.address()).expect("a connection");
        let answer = connection.get("/consul").expect("an answer");
        let is_other = answer.header("X-Worker") != Some(&zero.to_string());
        if is_other { &mut others } else { &mut all }.push(connection);
        others.len() >= 3
    });
    proxy.set(Fault::BlackHole);
    let end = Instant::now() + Duration::from_secs(6);
    let outcomes: Vec<String> = thread::scope(|scope| {
        let clients: Vec<_> = others
            .into_iter()
            .take(3)
            .enumerate()
            .map(|(n, mut connection)| {
                let path = path(&service);
                scope.spawn(move || {
                    thread::sleep(Duration::from_millis(330 * n as u64));
                    let mut last = String::new();
                    while Instant::now() < end && !last.starts_with("lost") {
                        last = connection.get(&path).expect("an answer").outcome();
                        // nginx closes a connection after a thousand requests.
                        thread::sleep(Duration::from_millis(5));
                    }
                    last
                })
            })
            .collect();
        wait::until("Consul is asked", SOON, || !proxy.requests("/v1/catalog/").is_empty());
        kill(zero);
        nginx.until_replaced(zero);
        proxy.set(Fault::Pass);
        clients.into_iter().map(|client| client.join().expect("a client")).collect()
    });
    assert_eq!(outcomes, vec![service; 3]);
}

/// Subrequests, redirects and the locations of error pages wait as the request itself does.
#[test]
fn whoever_comes_to_the_block_waits() {
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    proxy.set(Fault::Delay(Duration::from_millis(50)));
    let static_backend = Backend::start("static");
    let text = format!(
        "consul_server %%CONSUL%%;\nconsul_first_wait 5s;\n\
         map $request_uri $service {{ \"~s=(?<name>[^&]+)\" $name; }}\n\
         upstream api {{ consul_dynamic $service; consul_unknown_service status=404; \
         keepalive 8; }}\n{}",
        SERVER.replace(
            "location / {",
            &format!(
                "location = /ask {{ internal; proxy_pass http://api/; proxy_method GET; }}\n\
                 location /auth {{ auth_request /ask; proxy_pass http://{0}; }}\n\
                 location /mirrored {{ mirror /ask; proxy_pass http://{0}; }}\n\
                 location /tried {{ try_files /nothing @named; }}\n\
                 location @named {{ proxy_pass http://api; }}\n\
                 location /paged {{ error_page 418 = @named; return 418; }}\n\
                 location /limited {{ limit_except POST {{ }} proxy_pass http://api; }}\n\
                 location /tested {{ if ($arg_s) {{ set $x 1; }} proxy_pass http://api; }}\n\
                 location / {{",
                static_backend.address()
            )
        )
    );
    let nginx = Config::http(&text).set("CONSUL", proxy.url()).log_level("info").start();
    for _ in 0..2 {
        for place in ["tried", "paged", "limited", "tested"] {
            let (service, _backend) = new_service(&consul, place);
            assert_eq!(nginx.outcome(&format!("/{place}?s={service}")), service);
            let none = unique("none");
            assert_eq!(nginx.outcome(&format!("/{place}?s={none}")), "404", "{place}");
        }
        let (service, asked) = new_service(&consul, "auth");
        assert_eq!(nginx.outcome(&format!("/auth?s={service}")), "static");
        assert_eq!(asked.requests(), 1);
        assert_eq!(nginx.outcome(&format!("/auth?s={}", unique("none"))), "500");
        let (service, mirror) = new_service(&consul, "mirror");
        let mut connection = Connection::open(nginx.address()).expect("a connection");
        let target = format!("/mirrored?s={service}");
        let answer = connection.request("POST", &target, &[], &[b'x'; 100_000]).expect("an answer");
        assert_eq!(answer.outcome(), "static");
        wait::until_eq("mirrored requests", SOON, &1, || mirror.requests());
        let answer = connection.get(&path(&service)).expect("an answer");
        assert_eq!(answer.outcome(), service, "the connection is kept");
    }
    assert_eq!(nginx.in_flight(), 0);
}

/// The block that may see the service goes; the other one must not take its place.
#[test]
fn what_one_token_shows_is_not_another_blocks_after_a_reload() {
    let consul = FakeConsul::start();
    let backend = Backend::start("secret");
    let body = Value::Array(vec![instance("secret", backend.address())]).to_string();
    consul.script(move |query| {
        let may = query.token.as_deref() == Some("strong");
        let (all, none) = match query.target.starts_with("/v1/catalog/services") {
            true => (r#"{"hidden":[]}"#, "{}"),
            false => (&*body, "[]"),
        };
        let filtered = || Answer::ok(7, none).header("X-Consul-Results-Filtered-By-ACLs", "true");
        Some(if may { Answer::ok(7, all) } else { filtered() })
    });
    let first = "upstream first { consul_dynamic $arg_s; consul_token strong; }";
    let place = "location /first { proxy_pass http://first; }";
    let text = format!(
        "consul_server %%CONSUL%%;\n{first}\n\
         upstream api {{ consul_dynamic $arg_s; consul_token weak; }}\n{}",
        SERVER.replace("location / {", &format!("{place}\nlocation / {{"))
    );
    let mut nginx = Config::http(&text).set("CONSUL", consul.url()).start();
    assert_eq!(nginx.outcome("/first?s=hidden"), "secret");
    assert_eq!(nginx.outcome("/?s=hidden"), "502");
    nginx.rewrite(|text| text.replace(first, "").replace(place, ""));
    nginx.reload_and_wait();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        assert_eq!(nginx.outcome("/?s=hidden"), "502");
    }
}
