//! What `nginx -t` refuses: in nginx's own style, with directive, file and line.

use nginx_consul_e2e::Config;

mod keepalive;
mod named;
mod parameters;

/// Has `nginx -t` refuse an `http` block, with these words and the place of the line marked `# here`.
#[track_caller]
pub(crate) fn refused(http: &str, words: &[&str]) {
    let checked = Config::http(http).check();
    assert!(!checked.passed, "accepted:\n{http}");
    let place = format!("in {}", checked.place("# here"));
    let fits = |line: &str| {
        line.contains("[emerg]")
            && line.contains(&place)
            && words.iter().all(|word| line.contains(word))
    };
    assert!(
        checked.output.lines().any(fits),
        "no [emerg] line with {words:?} and {place:?}:\n{}",
        checked.output
    );
}

/// As [`refused`], for one line in an `upstream` block.
#[track_caller]
fn refused_in_upstream(line: &str, words: &[&str]) {
    refused(&format!("upstream api {{\n{line} # here\n}}"), words);
}

/// As [`refused`], for one line in the `http` block; followed by an upstream that makes it matter.
#[track_caller]
fn refused_in_http(line: &str, words: &[&str]) {
    refused(&format!("{line} # here\nupstream api {{ consul_dynamic web; }}"), words);
}

#[test]
fn a_doubled_directive_is_refused() {
    refused(
        "upstream api {\nconsul_dynamic web;\nconsul_dynamic other; # here\n}",
        &["\"consul_dynamic\" directive is duplicate"],
    );
    for line in [
        "consul_server http://127.0.0.1:8500;",
        "consul_balance random;",
        "consul_token secret;",
        "consul_wait 10s;",
        "consul_connect_timeout 1s;",
        "consul_retry 1s 2s;",
        "consul_init_timeout 1s;",
        "consul_zone consul 2m;",
        "consul_connections 8;",
        "consul_state state;",
        "consul_max_body_size 1m;",
        "consul_ssl_verify on;",
        "consul_ssl_name consul;",
        "consul_max_stale 5s;",
        "consul_empty keep;",
        "consul_max_removal 50%;",
        "consul_panic 30%;",
        "consul_allow_service web-*;",
        "consul_first_wait 2s;",
        "consul_idle 1m;",
        "consul_max_services 10;",
        "consul_unknown_service status=404;",
    ] {
        let name = line.split(' ').next().expect("a name");
        refused(
            &format!("{line}\n{line} # here"),
            &[&format!("\"{name}\" directive is duplicate")],
        );
    }
}

#[test]
fn a_doubled_directive_is_refused_in_an_upstream_too() {
    for line in
        ["consul_server http://127.0.0.1:8500;", "consul_balance random;", "consul_wait 9s;"]
    {
        let name = line.split(' ').next().expect("a name");
        refused(
            &format!("upstream api {{\nconsul_dynamic web;\n{line}\n{line} # here\n}}"),
            &[&format!("\"{name}\" directive is duplicate")],
        );
    }
}

#[test]
fn a_doubled_status_page_is_refused() {
    refused(
        "server { location / {\nconsul_status;\nconsul_status; # here\n} }",
        &["\"consul_status\" directive is duplicate"],
    );
}

#[test]
fn bad_parameters_of_a_status_page_are_refused() {
    for (parameters, words) in [
        ("metrics=all", "invalid parameter \"metrics=all\""),
        ("metrics", "invalid parameter \"metrics\""),
        ("colour=red", "invalid parameter \"colour=red\""),
        ("metrics=peer metrics=peer", "duplicate parameter \"metrics=peer\""),
    ] {
        refused(
            &format!("server {{ location / {{\nconsul_status {parameters}; # here\n}} }}"),
            &[&format!("{words} in \"consul_status\" directive")],
        );
    }
}

#[test]
fn an_api_beside_another_answer_or_in_no_prefix_is_refused() {
    let refused_beside = |lines: &str, words: &str| {
        let upstream = "upstream api { consul_dynamic web; }";
        refused(&format!("{upstream} server {{ {lines} }}"), &["\"consul_api\" directive", words]);
    };
    let other = "can't be used together with another directive that makes the answer";
    for content in ["proxy_pass http://api;", "consul_status;", "stub_status;"] {
        refused_beside(&format!("location /a {{ {content}\nconsul_api; # here\n }}"), other);
        if content != "consul_status;" {
            refused_beside(&format!("location /a {{\nconsul_api; # here\n {content} }}"), other);
        }
    }
    refused_beside("location /a {\nconsul_api;\nconsul_api; # here\n}", "is duplicate");
    for location in ["= /a", "~ ^/a", "~* a"] {
        let lines = format!("location {location} {{\nconsul_api; # here\n}}");
        refused_beside(&lines, "must be in a location that is a prefix");
    }
    refused(
        "upstream api { consul_dynamic web; } server {\nconsul_api; # here\n}",
        &["\"consul_api\" directive is not allowed here"],
    );
    refused(
        "server { location /a {\nconsul_api on; # here\n} }",
        &["invalid number of arguments in \"consul_api\""],
    );
}

#[test]
fn a_bad_value_is_refused_and_named_with_its_directive() {
    for (line, words) in [
        ("consul_server ftp://127.0.0.1;", &["ftp://127.0.0.1"][..]),
        ("consul_server nonsense;", &["nonsense"]),
        ("consul_server 127.0.0.1:8500;", &["127.0.0.1:8500"]),
        ("consul_server http://;", &["http://"]),
        ("consul_server http://a:b@c;", &["\"http://…@c\"", "credentials are not allowed"]),
        ("consul_server http://127.0.0.1:99999;", &["invalid host or port \"127.0.0.1:99999\""]),
        ("consul_server unix:;", &["unix:"]),
        ("consul_server unix:run;", &["unix:run", "absolute path"]),
        ("consul_server http://127.0.0.1:8500 http://:8500;", &["http://:8500"]),
        ("consul_server;", &["invalid number of arguments"]),
        ("consul_wait soon;", &["\"soon\""]),
        ("consul_wait 0;", &["\"0\""]),
        ("consul_wait 11m;", &["\"11m\"", "it must be from 1s to 10m"]),
        ("consul_connect_timeout 1x;", &["\"1x\""]),
        ("consul_init_timeout -1s;", &["\"-1s\""]),
        ("consul_retry 1s never;", &["\"never\""]),
        ("consul_retry 30s 1s;", &["the longest pause is shorter than the shortest"]),
        ("consul_zone consul big;", &["\"big\""]),
        ("consul_zone consul 1k;", &["at least 128k"]),
        ("consul_zone consul 0;", &["\"0\""]),
        ("consul_max_body_size 1x;", &["\"1x\""]),
        ("consul_connections 0;", &["\"0\""]),
        ("consul_connections many;", &["\"many\""]),
        ("consul_allow all;", &["\"all\"", "CIDR"]),
        ("consul_deny 10.0.0.0/33;", &["\"10.0.0.0/33\""]),
        ("consul_deny 10.0.0.1 localhost;", &["\"localhost\""]),
        ("consul_allow fe80::/129;", &["\"fe80::/129\""]),
        ("consul_allow;", &["invalid number of arguments"]),
        ("consul_state state valid=soon;", &["soon"]),
        ("consul_state state valid=0;", &["0"]),
        ("consul_state state age=1h;", &["age=1h"]),
        ("consul_state off valid=1h;", &["valid=1h"]),
        ("consul_state \"\";", &["invalid value"]),
        ("consul_state;", &["invalid number of arguments"]),
        ("consul_state /nowhere/else/state;", &["\"/nowhere/else\": No such file or directory"]),
        ("consul_state /etc/passwd/state;", &["\"/etc/passwd\" is no directory"]),
        ("consul_balance fastest;", &["\"fastest\""]),
        ("consul_balance random two;", &["\"two\""]),
        ("consul_balance random reuse;", &["\"reuse\""]),
        ("consul_balance hash;", &["no key of \"hash\""]),
        ("consul_balance hash $uri evenly;", &["\"evenly\""]),
        ("consul_token_file /nowhere/token;", &["/nowhere/token", "No such file or directory"]),
        (
            "consul_ssl_trusted_certificate /nowhere/ca.pem;",
            &["/nowhere/ca.pem", "No such file or directory"],
        ),
    ] {
        let name = format!("\"{}\"", line.split([' ', ';']).next().expect("a name"));
        refused_in_http(line, &[&[name.as_str()], words].concat());
    }
}

#[test]
fn a_bad_policy_is_refused() {
    for line in [
        "consul_empty sometimes;",
        "consul_empty confirm;",
        "consul_empty confirm=0;",
        "consul_empty confirm=101;",
        "consul_empty confirm=3 for=soon;",
        "consul_empty confirm=3 for=1h;",
        "consul_empty confirm=3 over=1s;",
        "consul_empty keep for=1s;",
        "consul_empty drop 3;",
        "consul_empty;",
        "consul_empty confirm=3 for=1s now;",
        "consul_max_removal 101%;",
        "consul_max_removal 50;",
        "consul_max_removal -1%;",
        "consul_max_removal none;",
        "consul_panic 101%;",
        "consul_panic 30;",
        "consul_panic on;",
        "consul_max_stale never;",
        "consul_max_stale 0;",
    ] {
        let name = line.split([' ', ';']).next().expect("a name");
        refused_in_http(line, &[&format!("\"{name}\"")]);
        refused_in_upstream(line, &[&format!("\"{name}\"")]);
    }
}

#[test]
fn an_authority_file_without_a_certificate_is_refused() {
    let checked = Config::http(
        "consul_ssl_trusted_certificate ca.pem;
         upstream api { consul_dynamic web; } # here",
    )
    .file("ca.pem", "this is no certificate\n")
    .check();
    assert!(!checked.passed, "accepted");
    let place = checked.place("# here");
    for word in ["[emerg]", "consul_ssl_", "consul_dynamic", place.as_str()] {
        assert!(checked.output.contains(word), "no {word:?} in {}", checked.output);
    }
}

#[test]
fn a_zone_in_the_same_block_is_refused() {
    for block in [
        "upstream api {\nzone api 64k;\nconsul_dynamic web; # here\n}",
        "upstream api {\nconsul_dynamic web; # here\nzone api 64k;\n}",
    ] {
        refused(block, &["\"zone\"", "consul_dynamic"]);
    }
}

#[test]
fn keepalive_before_consul_dynamic_is_refused_where_that_loses_it() {
    // Since 1.29.7 nginx sets keepalive up after all balancers, and the order is free.
    if nginx_version() >= (1, 29, 7) {
        let checked = Config::http("upstream api { keepalive 8; consul_dynamic web; }").check();
        assert!(checked.passed, "{}", checked.output);
    } else {
        refused(
            "upstream api {\nkeepalive 8;\nconsul_dynamic web; # here\n}",
            &["\"keepalive\"", "consul_dynamic"],
        );
    }
}

#[test]
fn a_balancing_method_after_it_is_refused() {
    for method in ["least_conn;", "ip_hash;", "hash $uri consistent;", "random;"] {
        refused(
            &format!("upstream api {{\nconsul_dynamic web; # here\n{method}\n}}"),
            &["consul_dynamic", "must stand before"],
        );
        // One before it doesn't help.
        refused(
            &format!("upstream api {{\nleast_conn;\nconsul_dynamic web; # here\n{method}\n}}"),
            &["consul_dynamic", "must stand before"],
        );
    }
}

#[test]
fn directives_outside_their_block_are_refused() {
    refused_in_http("consul_dynamic web;", &["\"consul_dynamic\" directive is not allowed here"]);
    refused_in_http("consul_status;", &["\"consul_status\" directive is not allowed here"]);
    refused_in_upstream(
        "consul_zone consul 1m;",
        &["\"consul_zone\" directive is not allowed here"],
    );
    refused_in_upstream(
        "consul_connections 4;",
        &["\"consul_connections\" directive is not allowed here"],
    );
    refused_in_upstream("consul_state state;", &["\"consul_state\" directive is not allowed here"]);
}

/// Version of the nginx under test.
pub(crate) fn nginx_version() -> (u32, u32, u32) {
    let output = std::process::Command::new(nginx_consul_e2e::nginx::binary())
        .arg("-v")
        .output()
        .expect("nginx -v runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let version = text.split('/').nth(1).unwrap_or_default().split_whitespace().next();
    let mut parts = version.unwrap_or_default().split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}
