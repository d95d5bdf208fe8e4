//! Load balancing methods that nginx doesn't ship, beside `consul_dynamic`.

use std::path::PathBuf;
use std::sync::OnceLock;

use nginx_consul_e2e::{Agent, Backend, Config, nginx, wait};
use rustix::process::Signal;

use crate::conf_errors::nginx_version;
use crate::native::{headers, library};
use crate::support::{SERVER, SOON, gateway, register, tally, unique, until_peers};

mod lua;

/// The module with the directive `test_method`, compiled for the nginx under test.
fn method() -> PathBuf {
    static MODULE: OnceLock<PathBuf> = OnceLock::new();
    let compile = || {
        let (major, minor, patch) = nginx_version();
        let name = format!("ngx_http_test_method_module-{major}.{minor}.{patch}");
        library(&name, include_str!("foreign/method.c"), &headers())
    };
    MODULE.get_or_init(compile).clone()
}

/// `load_module` lines of ours and of others, in both orders.
fn orders(others: &[PathBuf]) -> [String; 2] {
    let line = |path: &PathBuf| format!("load_module {};\n", path.display());
    let (ours, others) = (line(&nginx::module()), others.iter().map(line).collect::<String>());
    [format!("{ours}{others}"), format!("{others}{ours}")]
}

/// Has `nginx -t` refuse this block of the `http` block with our module and others, whatever the
/// order they are loaded in, with these words and the place of the line marked `# here`.
#[track_caller]
fn refused_beside(others: &[PathBuf], upstream: &str, words: &[&str]) {
    for modules in orders(others) {
        let checked = Config::http(upstream).without_module().main(&modules).check();
        assert!(!checked.passed, "accepted with {modules}:\n{upstream}");
        let (place, theirs) = (checked.place("# here"), checked.place("# theirs"));
        let fits = |line: &str| {
            let rest = line.split_once("[emerg]").map_or("", |(_, rest)| rest);
            let is_here =
                rest.contains(&format!(", in {place} ")) || rest.ends_with(&format!(" in {place}"));
            is_here && rest.contains(&theirs) && words.iter().all(|word| rest.contains(word))
        };
        assert!(
            checked.output.lines().any(fits),
            "no [emerg] line with {words:?}, {place:?} and {theirs:?}:\n{}",
            checked.output
        );
    }
}

fn with_method(text: &str) -> Config {
    Config::http(text).main(&format!("load_module {};", method().display()))
}

#[test]
fn another_modules_method_before_consul_dynamic_is_refused() {
    let (module, file) = (method(), method().display().to_string());
    let words = ["\"consul_dynamic\"", "\"test_method\"", "ngx_http_test_method_module", &file];
    for mode in ["picks", "ignores", "diverts", "wraps"] {
        for service in ["web", "$arg_s"] {
            let upstream = format!(
                "upstream api {{\ntest_method {mode} 127.0.0.1:1; # theirs\n\
                 consul_dynamic {service}; # here\n}}"
            );
            refused_beside(std::slice::from_ref(&module), &upstream, &words);
        }
    }
    // One of nginx's that wraps it hides nothing.
    if nginx_version() >= (1, 29, 6) {
        let upstream = "upstream api {\ntest_method picks 127.0.0.1:1; # theirs\n\
                        sticky cookie id;\nconsul_dynamic web; # here\n}";
        refused_beside(&[module], upstream, &words);
    }
}

#[test]
fn another_modules_method_that_takes_the_block_after_consul_dynamic_is_refused() {
    let file = method().display().to_string();
    let words = ["\"consul_dynamic\"", "\"test_method\"", "ngx_http_test_method_module", &file];
    for rest in ["", "keepalive 8;"] {
        let upstream = format!(
            "upstream api {{\nconsul_dynamic web; # here\n\
             test_method picks 127.0.0.1:1; # theirs\n{rest}\n}}"
        );
        refused_beside(&[method()], &upstream, &words);
    }
}

#[test]
fn a_request_that_another_module_picks_a_peer_for_is_refused_and_logged() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let [ours, theirs] = ["ours", "theirs"].map(Backend::start);
    register(&consul, &service, std::slice::from_ref(&ours));
    let rests = ["", "least_conn;", "keepalive 8;", "server 127.0.0.1:1;"];
    for (mode, rest) in ["ignores", "diverts"].into_iter().flat_map(|m| rests.map(|r| (m, r))) {
        // nginx's methods stand before.
        let (before, after) = if rest == "least_conn;" { (rest, "") } else { ("", rest) };
        for name in [&*service, "$arg_s"] {
            let address = theirs.address();
            let nginx = with_method(&format!(
                "consul_server {};\nupstream api {{ {before} consul_dynamic {name};\n\
                 test_method {mode} {address};\n{after} }}\n{SERVER}",
                consul.url()
            ))
            .start();
            let path = format!("/?s={service}");
            assert_eq!(tally(&nginx, &path, 4), "500: 4", "{mode} {rest} {name}");
            let line = nginx.wait_for_log("picks peers of its own in upstream \"api\"");
            let words = ["[error]", "\"test_method\"", "nginx.conf:", "_test_method_module"];
            assert!(words.iter().all(|word| line.contains(word)), "{line}");
            assert_eq!(nginx.logged("picks peers of its own").len(), 1, "one line a second");
        }
    }
    assert_eq!((ours.requests(), theirs.requests()), (0, 0));
}

#[test]
fn a_request_that_a_module_without_a_directive_in_the_block_picks_a_peer_for_is_refused() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let [ours, theirs] = ["ours", "theirs"].map(Backend::start);
    register(&consul, &service, std::slice::from_ref(&ours));
    for modules in orders(&[method()]) {
        let text = format!(
            "consul_server {};\ntest_method_everywhere {};\n\
             upstream api {{ consul_dynamic {service}; }}\n\
             upstream static {{ server {}; }}\n{SERVER}",
            consul.url(),
            theirs.address(),
            ours.address()
        );
        let nginx = Config::http(&text)
            .without_module()
            .main(&modules)
            .file("server.conf", "location /static { proxy_pass http://static; }")
            .start();
        assert_eq!(tally(&nginx, "/", 4), "500: 4");
        let line = nginx.wait_for_log("picks peers of its own in upstream \"api\"");
        assert!(line.contains(&method().display().to_string()), "{line}");
        // Other blocks are none of our business.
        assert_eq!(nginx.outcome("/static"), "theirs");
    }
    assert_eq!(ours.requests(), 0);
}

#[test]
fn a_module_that_wraps_and_picks_nobody_is_as_good_as_keepalive() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let line = Backend::start("line");
    let ids = register(&consul, &service, &backends);
    for (before, after) in
        [("", ""), ("least_conn;", ""), ("", "keepalive 8;"), ("least_conn;", "keepalive 8;")]
    {
        for name in [&*service, "$arg_s"] {
            let nginx = with_method(&format!(
                "consul_server {};\nupstream api {{ {before} consul_dynamic {name};\n\
                 test_method wraps 127.0.0.1:1;\n{after} }}\n{SERVER}",
                consul.url()
            ))
            .start();
            let path = format!("/?s={service}");
            assert_eq!(tally(&nginx, &path, 6), "a: 3, b: 3", "{before} {name} {after}");
            assert_eq!(nginx.outcome("/?s=nobody-here"), expected(name), "{name}");
        }
    }
    // The block's `server` lines are no peers of another.
    let upstream = format!(
        "consul_dynamic %%SERVICE%%; test_method wraps 127.0.0.1:1; server {};",
        line.address()
    );
    let nginx = gateway(&consul.url(), &service, &upstream)
        .main(&format!("load_module {};", method().display()))
        .start();
    assert_eq!(tally(&nginx, "/", 6), "a: 3, b: 3");
    ids.iter().for_each(|id| consul.deregister(id));
    until_peers(&nginx, &service, &[]);
    assert_eq!(tally(&nginx, "/", 3), "line: 3");
}

/// Who answers a request that names another service than there is.
fn expected(name: &str) -> &'static str {
    if name == "$arg_s" { "502" } else { "a" }
}

#[test]
fn idle_connections_of_ours_and_a_module_that_wraps_go_together_or_are_refused() {
    let upstream = "upstream api {\nconsul_dynamic web;\n\
                    consul_keepalive 8; # here\ntest_method wraps 127.0.0.1:1; # theirs\n}";
    if nginx_version() >= (1, 29, 7) {
        // There nginx's own keepalive is around all of it.
        refused_beside(&[method()], upstream, &["\"consul_keepalive\"", "\"test_method\""]);
    } else {
        let checked = with_method(upstream).check();
        assert!(checked.passed, "{}", checked.output);
    }
}

#[test]
fn a_refused_configuration_leaves_the_directives_of_other_modules_as_they_were() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a"]);
    register(&consul, &service, &backends);
    let text = format!(
        "consul_server %%CONSUL%%;\nupstream api {{\n%%BEFORE%%\nconsul_dynamic %%SERVICE%%;\n}}\n\
         {SERVER}"
    );
    let mut nginx = with_method(&text)
        .set("BEFORE", "least_conn; # line")
        .set("CONSUL", consul.url())
        .set("SERVICE", &service)
        .allow("can't be used together")
        .start();
    let bad = "test_method picks 127.0.0.1:1; # line";
    for refusals in 1..=2 {
        nginx.rewrite(|text| text.replace("least_conn; # line", bad));
        nginx.signal(Signal::HUP);
        wait::until_eq("refusals", SOON, &refusals, || {
            nginx.logged("can't be used together").len()
        });
        nginx.rewrite(|text| text.replace(bad, "least_conn; # line"));
        nginx.reload_and_wait();
        assert_eq!(tally(&nginx, "/", 3), "a: 3");
    }
    // Nor does a configuration without our module find anything of it.
    let server = format!("server {};", backends[0].address());
    nginx.rewrite(|text| {
        let ours = |line: &&str| !line.contains("consul");
        let text: Vec<&str> = text.lines().filter(ours).collect();
        text.join("\n").replace("least_conn; # line", &format!("least_conn; {server}"))
    });
    nginx.reload_and_wait();
    assert_eq!(tally(&nginx, "/", 3), "a: 3");
}
