//! Two services of different size, their requests interleaved: nobody's request reaches an instance
//! of the other, whichever method picks.

use std::net::Ipv4Addr;

use nginx_consul_e2e::{Agent, Backend, Config, Nginx, Tally, http};

use crate::conf_errors::{nginx_version, refused};
use crate::stock_methods::{METHODS, from};
use crate::support::{SERVER, gateway, register, unique};

/// Those of `consul_balance`.
const OURS: [&str; 6] = [
    "round_robin",
    "random",
    "least_conn",
    "least_time",
    "hash $arg_key",
    "hash $arg_key consistent",
];

/// Those of nginx's that keep nothing in the block, on every nginx.
const APART: [&str; 3] = ["least_conn", "hash $arg_key", "ip_hash"];

/// Two services, the one larger than the other.
struct Two {
    services: [String; 2],
    _backends: [Vec<Backend>; 2],
}

impl Two {
    fn register(consul: &Agent) -> Two {
        let services = ["large", "small"].map(unique);
        let backends = [Backend::start_all(&["l1", "l2", "l3"]), Backend::start_all(&["s1", "s2"])];
        for (service, backends) in services.iter().zip(&backends) {
            register(consul, service, backends);
        }
        Two { services, _backends: backends }
    }

    /// Sends requests of clients from many networks to both, in turns: the large one, the small
    /// one, the large one again. `path` goes before `key=`. Who has a key keeps it.
    #[track_caller]
    fn check(&self, nginx: &Nginx, method: &str, path: impl Fn(&str) -> String) {
        let worker = nginx.workers();
        let mut seen = [Tally::default(), Tally::default()];
        let mut request = |turn: u8| {
            let service = usize::from(turn % 3 == 1);
            let path = format!("{}key={turn}", path(&self.services[service]));
            let client = Ipv4Addr::new(127, turn, turn.wrapping_mul(13), 9);
            let outcome = from(client, nginx.address(), &path);
            seen[service].add(&*outcome);
            outcome
        };
        let owners: Vec<String> = (0..120).map(&mut request).collect();
        let again: Vec<String> = (0..120).map(&mut request).collect();
        assert!(
            !method.contains("hash") || owners == again,
            "{method}: {owners:?}, then {again:?}"
        );
        assert_eq!(seen.map(|tally| tally.outcomes()), ["l1 l2 l3", "s1 s2"], "{method}");
        assert_eq!(nginx.workers(), worker, "{method}");
    }

    /// In one block, whose requests name the service.
    #[track_caller]
    fn check_named(&self, consul: &Agent, upstream: &str) {
        for rest in ["", "keepalive 8;", "consul_keepalive 8;"] {
            let lines = format!("{upstream} {rest}");
            let nginx = gateway(&consul.url(), "unused", &lines).start();
            self.check(&nginx, &lines, |service| format!("/?s={service}&"));
        }
    }

    /// In a block for each of them.
    #[track_caller]
    fn check_fixed(&self, consul: &Agent, method: &str) {
        let [large, small] = &self.services;
        let upstreams = [large, small].map(|service| {
            format!("upstream {service} {{ {method}; consul_dynamic {service}; }}\n")
        });
        let locations = [large, small]
            .map(|service| format!("location /{service}/ {{ proxy_pass http://{service}; }}\n"));
        let nginx = Config::http(&format!(
            "consul_server %%CONSUL%%; {} upstream api {{ consul_dynamic {large}; }} {SERVER}",
            upstreams.concat()
        ))
        .file("server.conf", locations.concat())
        .set("CONSUL", consul.url())
        .start();
        self.check(&nginx, method, |service| format!("/{service}/?"));
    }
}

#[test]
fn in_one_block_with_every_method_that_may_serve_it() {
    let consul = Agent::shared();
    let two = Two::register(&consul);
    let ours = OURS.map(|method| format!("consul_dynamic $arg_s; consul_balance {method};"));
    let apart = APART.map(|method| format!("{method}; consul_dynamic $arg_s;"));
    for upstream in ours.iter().chain(&apart) {
        two.check_named(&consul, upstream);
    }
}

/// On an nginx without the directive: sees that it has none.
fn has_sticky() -> bool {
    let has = nginx_version() >= (1, 29, 6);
    if !has {
        let upstream = "upstream api {\nsticky cookie id; # here\nconsul_dynamic $arg_s;\n}";
        refused(upstream, &["unknown directive \"sticky\""]);
    }
    has
}

#[test]
fn in_one_block_with_sticky() {
    if !has_sticky() {
        return;
    }
    let consul = Agent::shared();
    let two = Two::register(&consul);
    for method in ["", "least_conn;", "hash $arg_key;"] {
        let upstream = format!("{method} sticky cookie id; consul_dynamic $arg_s;");
        two.check_named(&consul, &upstream);
    }
    // Whoever has the cookie of one service is no client of that instance at the other.
    let nginx =
        gateway(&consul.url(), "unused", "sticky cookie id; consul_dynamic $arg_s;").start();
    let paths = two.services.each_ref().map(|service| format!("/?s={service}"));
    for path in &paths {
        let answer = nginx.get(path);
        let (own, cookie) = (answer.outcome(), answer.header("set-cookie").expect("a cookie"));
        let cookie = cookie.split(';').next().unwrap_or_default();
        for _ in 0..6 {
            let with_cookie = |path: &str| {
                let headers = [("Cookie", cookie)];
                let answer = http::request(nginx.address(), "GET", path, &headers, b"");
                answer.expect("an answer").outcome()
            };
            let outcomes = paths.each_ref().map(|path| with_cookie(path));
            assert!(outcomes[0].starts_with('l') && outcomes[1].starts_with('s'), "{outcomes:?}");
            assert!(outcomes.contains(&own), "{outcomes:?} without {own}");
        }
    }
}

#[test]
fn in_a_block_each_with_every_method() {
    let consul = Agent::shared();
    let two = Two::register(&consul);
    for method in METHODS {
        two.check_fixed(&consul, method);
    }
}

#[test]
fn a_method_that_keeps_its_table_in_the_block_is_refused_with_a_variable() {
    for (method, instead) in [
        ("random", "consul_balance random;"),
        ("random two", "consul_balance least_conn;"),
        ("random two least_conn", "consul_balance least_conn;"),
        ("hash $arg_key consistent", "consul_balance hash $arg_key consistent;"),
        ("hash $host$uri consistent", "consul_balance hash $host$uri consistent;"),
    ] {
        let upstream = |service: &str| {
            format!("upstream api {{\n{method}; # there\nconsul_dynamic {service}; # here\n}}")
        };
        for service in ["$arg_s", "web-$arg_s"] {
            let checked = Config::http(&upstream(service)).check();
            let (here, there) = (checked.place("# here"), checked.place("# there"));
            assert!(!checked.passed, "accepted: {method} with {service}");
            let words = ["[emerg]", "\"consul_dynamic\"", method, &there, instead, &here];
            let fits = |line: &str| words.iter().all(|word| line.contains(word));
            assert!(checked.output.lines().any(fits), "{words:?}: {}", checked.output);
            // What it says instead is good.
            let other = format!("upstream api {{ consul_dynamic {service}; {instead} }}");
            let checked = Config::http(&other).check();
            assert!(checked.passed, "{instead}: {}", checked.output);
        }
        let checked = Config::http(&upstream("web")).check();
        assert!(checked.passed, "{method}: {}", checked.output);
    }
}

/// nginx warns that the method is redefined.
#[test]
fn a_method_that_was_replaced_by_another_is_not_refused() {
    let consul = Agent::shared();
    let two = Two::register(&consul);
    two.check_named(&consul, "random; least_conn; consul_dynamic $arg_s;");
    let upstream = "upstream api {\nleast_conn; random; consul_dynamic $arg_s; # here\n}";
    refused(upstream, &["\"consul_dynamic\"", "\"random\"", "consul_balance random;"]);
    let upstream = "upstream api {\nrandom; random two; consul_dynamic $arg_s; # here\n}";
    refused(upstream, &["\"consul_dynamic\"", "\"random two\"", "consul_balance least_conn;"]);
}

#[test]
fn sticky_hides_no_method_that_is_refused_nor_sessions_of_the_block() {
    if !has_sticky() {
        return;
    }
    for (method, word) in [
        ("random; sticky cookie id", "random"),
        ("hash $uri consistent; sticky route $arg_r", "hash $uri consistent"),
        ("sticky learn create=$cookie_a lookup=$cookie_a zone=s:1m", "sticky learn"),
    ] {
        let upstream = format!("upstream api {{\n{method}; consul_dynamic $arg_s; # here\n}}");
        refused(&upstream, &["\"consul_dynamic\"", word, "consul_balance"]);
        let upstream = upstream.replace("$arg_s", "web");
        let checked = Config::http(&upstream).check();
        assert!(checked.passed, "{method}: {}", checked.output);
    }
    // One that was replaced is nobody's business.
    let consul = Agent::shared();
    let two = Two::register(&consul);
    two.check_named(&consul, "sticky cookie id; least_conn; consul_dynamic $arg_s;");
}
