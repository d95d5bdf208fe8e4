//! What `nginx -t` accepts, without asking anybody.

use std::io::ErrorKind;
use std::net::TcpListener;

use nginx_consul_e2e::Config;

#[track_caller]
fn accepted(http: &str) {
    let checked = Config::http(http).check();
    assert!(checked.passed, "{}\n{http}", checked.output);
    for bad in ["[warn]", "[error]", "[alert]"] {
        assert!(!checked.output.contains(bad), "{}", checked.output);
    }
}

#[test]
fn consul_dynamic_may_be_the_only_line_of_the_block() {
    accepted("upstream api { consul_dynamic web; }");
}

#[test]
fn the_recipes_placeholder_is_accepted() {
    accepted("upstream api { server 0.0.0.1 down; consul_dynamic web; }");
    accepted("upstream api { consul_dynamic web; server 0.0.0.1 down; }");
}

#[test]
fn a_placeholder_without_down_is_warned_of() {
    for (line, warned) in [
        ("server 0.0.0.1;", true),
        ("server 0.0.0.1:80 weight=2;", true),
        ("server 0.1.2.3 backup;", true),
        ("server 0.0.0.1 down;", false),
        ("server 0.0.0.0:8080;", false),
        ("server 127.0.0.1:1;", false),
        ("server [::1]:1;", false),
        ("server unix:/run/web.sock;", false),
    ] {
        for (before, after) in [("consul_dynamic web;", ""), ("", "consul_dynamic web;")] {
            let upstream = format!("upstream api {{\n{before}\n{line} # here\n{after}\n}}");
            // Where `backup` is the only one nginx refuses the block, with us or without.
            let checked = Config::http(&upstream).check();
            assert!(checked.passed, "{}", checked.output);
            let place = format!("in {}", checked.place("# here"));
            let address = line.trim_end_matches(';').split(' ').nth(1).expect("an address");
            let warnings: Vec<&str> =
                checked.output.lines().filter(|line| line.contains("[warn]")).collect();
            let fits = |line: &&str| {
                line.ends_with(&place)
                    && line.contains(&format!("server \"{address}\" without \"down\""))
            };
            assert_eq!(warnings.iter().filter(|line| fits(line)).count(), usize::from(warned));
            assert_eq!(warnings.len(), usize::from(warned), "{warnings:?}");
        }
    }
    // Without consul_dynamic it is nobody's business.
    accepted("upstream api { server 0.0.0.1; }");
}

#[test]
fn the_forms_of_the_policies_are_accepted() {
    for line in [
        "consul_empty keep;",
        "consul_empty drop;",
        "consul_empty confirm=1;",
        "consul_empty confirm=100 for=10m;",
        "consul_empty confirm=3 for=0;",
        "consul_max_removal off;",
        "consul_max_removal 0%;",
        "consul_max_removal 100%;",
        "consul_panic off;",
        "consul_panic 0%;",
        "consul_panic 100%;",
        "consul_max_stale off;",
        "consul_max_stale 500ms;",
        "consul_allow 10.0.0.0/8 fd00::/8 192.0.2.1;\nconsul_allow ::1;",
        "consul_deny 169.254.169.254;\nconsul_deny ::ffff:10.0.0.0/104;",
    ] {
        accepted(&format!("{line}\nupstream api {{ consul_dynamic web; }}"));
        accepted(&format!("upstream api {{ consul_dynamic web;\n{line} }}"));
    }
}

#[test]
fn keepalive_may_follow() {
    accepted("upstream api { consul_dynamic web; keepalive 32; keepalive_requests 100; }");
}

#[test]
fn more_idle_connections_than_a_worker_has_are_warned_of() {
    let upstreams = |first: usize| {
        let text = format!(
            "consul_server http://127.0.0.1:1;
             upstream a {{ consul_dynamic web; consul_keepalive {first}; }}
             upstream b {{ consul_dynamic $arg_s; consul_keepalive 20; }}
             server {{ listen 127.0.0.1:%%PORT%%; location / {{ proxy_pass http://a; }} }}"
        );
        let checked = Config::http(&text).connections(64).allow("consul_keepalive").check();
        assert!(checked.passed, "{}", checked.output);
        let warning =
            checked.output.lines().find(|line| line.contains("[warn]")).map(str::to_owned);
        warning.unwrap_or_default()
    };
    // One socket listens, one is the master's channel, and a request has two connections.
    assert_eq!(upstreams(40), "");
    let warning = upstreams(41);
    let said = "consul: \"consul_keepalive\" keeps up to 61 idle connections in a worker, and \
                \"worker_connections\" leaves 60 for them";
    assert!(warning.contains(said), "{warning}");
}

#[test]
fn several_datacenters_and_servers_of_every_kind_are_accepted() {
    accepted(
        "upstream api { consul_dynamic web dc=dc1,dc2,dc-3; server 127.0.0.1:1 weight=2 backup;
                        server 127.0.0.1:2 max_fails=3; consul_panic 30%; }
         upstream other { consul_dynamic web dc=dc2,dc1; }",
    );
}

#[test]
fn two_upstreams_may_follow_one_service() {
    accepted(
        "upstream one { consul_dynamic web; }
         upstream two { consul_dynamic web tag=v2; keepalive 8; }",
    );
}

#[test]
fn proxy_pass_may_name_the_upstream_by_a_variable() {
    accepted(
        "upstream api { consul_dynamic web; }
         server { listen 127.0.0.1:%%PORT%%; set $name api;
                  location / { proxy_pass http://$name; } }",
    );
}

#[test]
fn every_parameter_of_consul_dynamic_is_accepted() {
    accepted(
        "upstream api {
             consul_dynamic web tag=v1 tag=blue \"filter=Service.Meta.zone == a\" dc=dc1 ns=team
                 partition=part near=_agent status=warning consistency=stale
                 max_fails=3 fail_timeout=10s max_conns=100 slow_start=30s;
         }",
    );
    for value in [
        "status=passing",
        "status=any",
        "consistency=default",
        "consistency=consistent",
        "consistency=cached",
        "max_fails=0",
        "max_conns=0",
    ] {
        accepted(&format!("upstream api {{ consul_dynamic web {value}; }}"));
    }
}

#[test]
fn every_setting_has_its_place_in_http_and_in_an_upstream() {
    let both = "consul_server http://127.0.0.1:8500 https://consul.example:8501 unix:/run/c.sock;
        consul_balance least_conn; consul_token secret; consul_wait 30s;
        consul_connect_timeout 500ms; consul_retry 100ms 5s; consul_max_body_size 32m;
        consul_ssl_verify off; consul_ssl_name consul.example;";
    accepted(&format!(
        "{both} consul_init_timeout 500ms; consul_zone mine 2m; consul_connections 16;
         upstream api {{ consul_dynamic web; {both} }}"
    ));
}

#[test]
fn the_module_loads_without_any_directive() {
    accepted("server { listen 127.0.0.1:%%PORT%%; return 200 ok; }");
}

#[test]
fn nginx_t_opens_no_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("non-blocking");
    let address = listener.local_addr().expect("its address");
    let checked = Config::http(
        "consul_server http://%%CONSUL%%;
         upstream one { consul_dynamic web; }
         upstream two { consul_dynamic other; }",
    )
    .set("CONSUL", address)
    .check();
    assert!(checked.passed, "{}", checked.output);
    let came = listener.accept().map(|(_, from)| from);
    assert!(
        came.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
        "nginx -t connected: {came:?}"
    );
}
