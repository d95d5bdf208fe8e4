//! `$consul_…`: what logs and headers tell of the instance that served.

use std::fs;

use nginx_consul_e2e::fake_consul::instance;
use nginx_consul_e2e::{Agent, Backend, Config, FakeConsul, Instance, Manner, Nginx, ports, wait};
use serde_json::json;

use crate::support::{SOON, register_one, unique, until_peers};

/// All of them, with two keys of metadata, and whom nginx has tried.
const FORMAT: &str = "$uri|$consul_service|$consul_service_id|$consul_node|$consul_datacenter|\
     $consul_tags|$consul_meta_zone|$consul_meta_canary_group|$consul_generation|$consul_age|$upstream_addr";

/// nginx that logs the variables of each request, after they were used before the pick too.
fn logging(consul: &str, upstream: &str, server: &str) -> Config {
    let text = format!(
        "consul_server %%CONSUL%%;\n\
         log_format variables '{FORMAT}';\n\
         upstream api {{ {upstream} }}\n\
         server {{\n\
         listen 127.0.0.1:%%PORT%%;\n\
         access_log variables.log variables;\n\
         proxy_set_header X-Early $consul_node$consul_age$consul_meta_zone;\n\
         {server}\n\
         location / {{ proxy_pass http://api; }}\n\
         location = /consul {{ access_log off; consul_status; }}\n\
         }}"
    );
    Config::http(&text).set("CONSUL", consul)
}

/// The fields of the `n`th logged request, the first being 1.
fn logged_line(nginx: &Nginx, n: usize) -> Vec<String> {
    wait::until_some("a line in the log", SOON, || {
        let log = fs::read_to_string(nginx.prefix().join("variables.log")).unwrap_or_default();
        let line = log.lines().nth(n - 1)?;
        Some(line.split('|').map(str::to_owned).collect())
    })
}

/// The fields of the `n`th logged request that are this module's variables.
fn logged(nginx: &Nginx, n: usize) -> Vec<String> {
    let mut fields = logged_line(nginx, n);
    fields.pop();
    fields
}

/// Addresses that the `n`th logged request was sent to.
fn addresses(nginx: &Nginx, n: usize) -> String {
    logged_line(nginx, n).pop().unwrap_or_default()
}

/// Which instance the `n`th logged request was served by, in the words of its log line.
fn service_id(nginx: &Nginx, n: usize) -> String {
    logged(nginx, n)[2].clone()
}

#[track_caller]
fn assert_is_time(text: &str) {
    let (seconds, millis) = text.split_once('.').unwrap_or(("", ""));
    let is_time = seconds.parse::<u64>().is_ok_and(|s| s < 60) && millis.len() == 3;
    assert!(is_time && millis.parse::<u64>().is_ok(), "{text:?} is no time");
}

/// Instances `a` and `b` of a service, on nodes of their own, and one without anything.
fn cast(consul: &Agent, service: &str) -> Vec<Backend> {
    let backends = Backend::start_all(&["a", "b"]);
    for (backend, zone) in backends.iter().zip(["left", "right"]) {
        let name = backend.name();
        let told = Instance::new(service, &format!("{service}-{name}"), backend.address())
            .tags(&["v1", name])
            .meta("zone", zone)
            .meta("Canary-Group", "blue")
            .meta("secret", "never shown");
        consul.register_external(&format!("node-of-{name}"), "127.0.0.1", &told);
    }
    backends
}

#[test]
fn they_tell_of_the_instance_that_served_whoever_picks() {
    let consul = Agent::shared();
    for upstream in [
        "consul_dynamic %%SERVICE%%;",
        "consul_dynamic %%SERVICE%%; keepalive 4;",
        "consul_dynamic %%SERVICE%%; consul_balance hash $request_uri consistent;",
        "least_conn; consul_dynamic %%SERVICE%%;",
        "random; consul_dynamic %%SERVICE%%; keepalive 4;",
    ] {
        let service = unique("web");
        let backends = cast(&consul, &service);
        let nginx = logging(&consul.url(), upstream, "").set("SERVICE", &service).start();
        until_peers(&nginx, &service, &backends.iter().collect::<Vec<_>>());
        let generation = nginx.service(&service)["generation"].to_string();
        for n in 1..=8 {
            let (uri, name) = (format!("/{n}"), nginx.outcome(&format!("/{n}")));
            let zone = if name == "a" { "left" } else { "right" };
            let fields = logged(&nginx, n);
            let expected = [
                &*uri,
                &*service,
                &format!("{service}-{name}"),
                &format!("node-of-{name}"),
                "dc1",
                &format!("v1,{name}"),
                zone,
                "blue",
                &*generation,
            ];
            assert_eq!(fields[..9], expected, "{upstream}");
            assert_is_time(&fields[9]);
        }
        ["node-of-a", "node-of-b"].iter().zip(["a", "b"]).for_each(|(node, name)| {
            consul.deregister_external(node, &format!("{service}-{name}"));
        });
    }
}

#[test]
fn the_last_try_counts() {
    let consul = Agent::shared();
    for upstream in ["consul_dynamic %%SERVICE%%;", "least_conn; consul_dynamic %%SERVICE%%;"] {
        let service = unique("web");
        let backends = Backend::start_all(&["a", "b", "c"]);
        backends.iter().for_each(|backend| drop(register_one(&consul, &service, backend)));
        let nginx = logging(&consul.url(), upstream, "").set("SERVICE", &service).start();
        until_peers(&nginx, &service, &backends.iter().collect::<Vec<_>>());
        backends[..2].iter().for_each(|backend| backend.set(Manner::Reset));
        for n in 1..=3 {
            assert_eq!(nginx.outcome("/"), "c");
            assert_eq!(service_id(&nginx, n), format!("{service}-c"), "{upstream}");
        }
        // If nobody can serve, it is who failed last.
        backends[2].set(Manner::Reset);
        assert_eq!(nginx.outcome("/"), "502");
        let tried = addresses(&nginx, 4);
        let is_last = |backend: &&Backend| {
            let last = tried.split(", ").filter(|at| *at != "api").last();
            last == Some(&*backend.address().to_string())
        };
        let last = backends.iter().find(is_last).map(|backend| backend.name().to_owned());
        let last = last.unwrap_or_else(|| panic!("nobody was tried: {tried}"));
        assert_eq!(service_id(&nginx, 4), format!("{service}-{last}"), "{upstream}: {tried}");
    }
}

#[test]
fn they_are_those_of_the_pick_whatever_has_changed_since() {
    let consul = Agent::shared();
    for upstream in ["consul_dynamic %%SERVICE%%;", "least_conn; consul_dynamic %%SERVICE%%;"] {
        let service = unique("web");
        let backends = Backend::start_all(&["a", "b"]);
        let tagged = |tag: &str| {
            let id = format!("{service}-a");
            consul.register(&Instance::new(&service, &id, backends[0].address()).tags(&[tag]));
            id
        };
        let id = tagged("old");
        let nginx = logging(&consul.url(), upstream, "").set("SERVICE", &service).start();
        until_peers(&nginx, &service, &[&backends[0]]);
        let generation = nginx.service(&service)["generation"].to_string();
        backends[0].set(Manner::Hold);
        let address = nginx.address();
        let request = std::thread::spawn(move || {
            nginx_consul_e2e::http::get(address, "/held").map(|answer| answer.outcome())
        });
        wait::until("the request is on its way", SOON, || backends[0].busy() == 1);
        // Its tags change, then it goes; others are served meanwhile.
        tagged("new");
        wait::until("the change shows", SOON, || {
            nginx.service(&service)["peers"][0]["tags"] == json!(["new"])
        });
        register_one(&consul, &service, &backends[1]);
        consul.deregister(&id);
        until_peers(&nginx, &service, &[&backends[1]]);
        assert_eq!(nginx.outcome("/other"), "b");
        backends[0].release();
        assert_eq!(request.join().expect("the client").expect("an answer"), "a");
        assert_eq!(service_id(&nginx, 1), format!("{service}-b"), "{upstream}");
        let fields = logged(&nginx, 2);
        let (tags, picked) = (&*fields[5], &fields[8]);
        assert_eq!((&*fields[2], tags, picked), (&*id, "old", &generation), "{upstream}");
    }
}

#[test]
fn a_server_line_has_none_and_a_request_without_a_peer_has_its_service() {
    let consul = Agent::shared();
    for method in ["", "least_conn;"] {
        let service = unique("web");
        let backends = Backend::start_all(&["a", "last"]);
        let id = register_one(&consul, &service, &backends[0]);
        let upstream = format!("{method} consul_dynamic %%SERVICE%%; server %%LAST%% backup;");
        let nginx = logging(&consul.url(), &upstream, "")
            .set("SERVICE", &service)
            .set("LAST", backends[1].address())
            .start();
        until_peers(&nginx, &service, &[&backends[0]]);
        assert_eq!(nginx.outcome("/"), "a");
        assert_eq!(service_id(&nginx, 1), id);
        backends[0].set(Manner::Reset);
        // From the instance to the server, then the server at once.
        for n in 2..=3 {
            assert_eq!(nginx.outcome("/"), "last");
            assert_eq!(logged(&nginx, n)[1..], ["-"; 9], "{method} {n}");
        }
        consul.deregister(&id);
        until_peers(&nginx, &service, &[]);
        assert_eq!(nginx.outcome("/"), "last");
        assert_eq!(logged(&nginx, 4)[1..], ["-"; 9], "{method}");

        let empty = unique("empty");
        let upstream = format!("{method} consul_dynamic %%SERVICE%%;");
        let nginx = logging(&consul.url(), &upstream, "").set("SERVICE", &empty).start();
        wait::until("Consul has answered", SOON, || {
            nginx.service(&empty)["last_good_seconds"].is_number()
        });
        assert_eq!(nginx.outcome("/"), "502");
        assert_eq!(logged(&nginx, 1)[1..3], [&*empty, "-"], "{method}");
    }
}

#[test]
fn headers_and_conditions_have_them_once_somebody_was_picked() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = cast(&consul, &service);
    let server = "set $early \"[$consul_node]\";
        error_page 502 504 = @failed;
        location /headers {
            if ($consul_node) { return 500; }
            proxy_pass http://api/;
            add_header X-Node $consul_node;
            add_header X-Side $side;
            add_header X-Early $early;
        }
        location /fails { proxy_pass http://api/; proxy_next_upstream off; }
        location @failed { return 503; }
        location /internal { proxy_pass http://api/; error_page 418 = @other; \
                             proxy_intercept_errors on; }
        location @other { proxy_pass http://other; }
        location /own { return 204; }";
    let other = Backend::start("other");
    let text = "} map $consul_meta_zone $side { volatile; default none; left L; right R; }
        upstream other { server %%OTHER%%;";
    let nginx =
        logging(&consul.url(), &format!("consul_dynamic %%SERVICE%% max_fails=0; {text}"), server)
            .set("SERVICE", &service)
            .set("OTHER", other.address())
            .start();
    until_peers(&nginx, &service, &backends.iter().collect::<Vec<_>>());
    for n in 1..=4 {
        let answer = nginx.get("/headers");
        let name = answer.outcome();
        let side = if name == "a" { "L" } else { "R" };
        assert_eq!(answer.header("x-node"), Some(&*format!("node-of-{name}")));
        assert_eq!(answer.header("x-side"), Some(side));
        assert_eq!(answer.header("x-early"), Some("[]"), "before there is a pick");
        assert_eq!(logged(&nginx, n)[3], format!("node-of-{name}"));
    }
    // The error page of a request that failed is still that request's.
    backends.iter().for_each(|backend| backend.set(Manner::Reset));
    assert_eq!(nginx.outcome("/fails"), "503");
    assert!(logged(&nginx, 5)[3].starts_with("node-of-"));
    // Who sends it elsewhere has its answer from there.
    backends.iter().for_each(|backend| backend.set(Manner::Status(418)));
    assert_eq!(nginx.outcome("/internal"), "other");
    assert_eq!(logged(&nginx, 6)[1..], ["-"; 9]);
    assert_eq!(nginx.get("/own").status, 204);
    assert_eq!(logged(&nginx, 7)[1..], ["-"; 9]);
    for (node, name) in [("node-of-a", "a"), ("node-of-b", "b")] {
        consul.deregister_external(node, &format!("{service}-{name}"));
    }
}

#[test]
fn named_services_and_other_datacenters_have_their_own() {
    let consul = Agent::shared();
    let backends = Backend::start_all(&["a", "b"]);
    let services = [unique("one"), unique("two")];
    for (service, backend) in services.iter().zip(&backends) {
        register_one(&consul, service, backend);
    }
    for method in ["", "least_conn;"] {
        let upstream = format!("{method} consul_dynamic $arg_s dc=dc1;");
        let nginx = logging(&consul.url(), &upstream, "").start();
        for (n, (service, backend)) in services.iter().zip(&backends).enumerate() {
            assert_eq!(nginx.outcome(&format!("/?s={service}")), backend.name());
            let fields = logged(&nginx, n + 1);
            let id = format!("{service}-{}", backend.name());
            assert_eq!((&fields[1], &fields[2], &*fields[4]), (service, &id, "dc1"));
        }
        assert_eq!(nginx.outcome("/?s=bad/name"), "502");
        assert_eq!(logged(&nginx, 3)[1..], ["-"; 9]);
    }
}

#[test]
fn what_others_registered_can_not_end_a_header() {
    let (consul, backend) = (FakeConsul::start(), Backend::start("a"));
    let hostile = "x\r\nX-Injected: yes\r\n\r\n<h1>\u{0}\u{1b}[31m";
    let mut told = instance(hostile, backend.address());
    told["Node"]["Node"] = hostile.into();
    told["Node"]["Datacenter"] = hostile.into();
    told["Service"]["Tags"] = json!([hostile, "v1"]);
    told["Service"]["Meta"] = json!({ "zone": hostile });
    consul.publish("web", 7, &json!([told]));
    let names = ["service_id", "node", "datacenter", "tags", "meta_zone"];
    let headers: Vec<String> =
        names.iter().map(|name| format!("add_header X-{name} $consul_{name};")).collect();
    let nginx = logging(&consul.url(), "consul_dynamic web;", &headers.join(" ")).start();
    until_peers(&nginx, "web", &[&backend]);
    let answer = nginx.get("/");
    assert_eq!((answer.status, &*answer.outcome()), (200, "a"));
    assert_eq!(answer.header("x-injected"), None);
    for name in names {
        let value = answer.header(&format!("x-{name}")).unwrap_or_default();
        assert!(value.starts_with(r"x\r\nX-Injected: yes\r\n\r\n<h1>\0\u{1b}[31m"), "{value:?}");
        assert!(!value.contains(char::is_control), "{value:?}");
    }
    assert_eq!(logged(&nginx, 1)[1], "web");
    let line = fs::read_to_string(nginx.prefix().join("variables.log")).expect("a log");
    assert_eq!(line.lines().count(), 1, "{line:?}");
}

#[test]
fn a_reload_that_names_a_key_of_metadata_gets_it_and_keeps_the_peers() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    let id = format!("{service}-a");
    consul.register(&Instance::new(&service, &id, backend.address()).meta("zone", "left"));
    let server = "location /zone { proxy_pass http://api; add_header X-Zone later; }";
    let mut nginx = logging(&consul.url(), "consul_dynamic %%SERVICE%%;", server)
        .set("SERVICE", &service)
        .start();
    until_peers(&nginx, &service, &[&backend]);
    let picks = |nginx: &Nginx| nginx.service(&service)["peers"][0]["picks"].as_u64();
    for _ in 0..3 {
        assert_eq!(nginx.outcome("/"), "a");
    }
    assert_eq!(picks(&nginx), Some(3));
    consul.register(
        &Instance::new(&service, &id, backend.address()).meta("zone", "left").meta("rack", "r7"),
    );
    nginx.rewrite(|text| text.replace("X-Zone later", "X-Zone $consul_meta_rack"));
    nginx.reload_and_wait();
    wait::until_eq("the key's value", SOON, "r7", || {
        nginx.get("/zone").header("x-zone").unwrap_or_default().to_owned()
    });
    assert!(picks(&nginx) > Some(3), "the counters stay");
}

#[test]
fn a_name_that_only_a_page_says_is_known_too() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let port = ports::free();
    let page = "<!--# echo var=\"consul_node\" -->|<!--# echo var=\"consul_service_id\" -->";
    let text = "consul_server %%CONSUL%%;
        upstream api { consul_dynamic %%SERVICE%%; }
        server { listen 127.0.0.1:%%PAGES%%; root %%PREFIX%%; }
        server {
            listen 127.0.0.1:%%PORT%%;
            location / { ssi on; ssi_types *; proxy_pass http://api; }
            location = /consul { consul_status; }
        }";
    consul.register(&Instance::new(&service, "page", ([127, 0, 0, 1], port)));
    let nginx = Config::http(text)
        .set("CONSUL", consul.url())
        .set("SERVICE", &service)
        .set("PAGES", port)
        .file("page.html", page)
        .start();
    wait::until("the instance is known", SOON, || !nginx.peers(&service).is_empty());
    let told = format!("{}|page", consul.node());
    wait::until_eq("what the page says", SOON, &told, || nginx.outcome("/page.html"));
    consul.deregister("page");
}
