//! `consul_allow` and `consul_deny`: addresses that nginx never connects to, whoever registers them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use nginx_consul_e2e::{Agent, Backend, Config, Instance, wait};
use serde_json::json;

use crate::support::{SERVER, SOON, register_one, tally, unique, until_peers, until_served_by};

const FIRST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const SECOND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// nginx with these lines in `http` and in its upstream.
fn filtered(consul: &Agent, service: &str, http: &str, upstream: &str) -> Config {
    let text = "consul_server %%CONSUL%%; include filter*.conf;
                upstream api { consul_dynamic %%SERVICE%%; %%LINES%% }";
    Config::http(&format!("{text} {SERVER}"))
        .file("filter.conf", http)
        .set("LINES", upstream)
        .set("CONSUL", consul.url())
        .set("SERVICE", service)
}

#[test]
fn an_excluded_address_is_never_used_and_named_once() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = [Backend::start_on("a", FIRST), Backend::start_on("b", SECOND)];
    backends.iter().for_each(|backend| drop(register_one(&consul, &service, backend)));
    for (lines, served) in [
        ("consul_deny 127.0.0.2;", "a: 4"),
        ("consul_allow 127.0.0.2/32 10.0.0.0/8;", "b: 4"),
        ("consul_allow 127.0.0.0/8; consul_deny 127.0.0.0/31;", "b: 4"),
        ("consul_deny 10.0.0.0/8 fd00::/8;", "a: 2, b: 2"),
    ] {
        let nginx = filtered(&consul, &service, lines, "").start();
        assert_eq!(tally(&nginx, "/", 4), served, "{lines}");
        let excluded: &[&str] = match served {
            "a: 4" => &["b"],
            "b: 4" => &["a"],
            _ => &[],
        };
        for name in excluded {
            let line = nginx.wait_for_log(&format!("instance \"{service}-{name}\""));
            assert!(line.contains("[warn]") && line.contains(" is excluded by consul_"), "{line}");
        }
        // Further answers say nothing new.
        let index = nginx.service(&service)["index"].clone();
        let late = register_one(&consul, &service, &Backend::start_on("late", FIRST));
        consul.deregister(&late);
        wait::until("another answer", SOON, || nginx.service(&service)["index"] != index);
        wait::holds("one line for each", Duration::from_millis(300), || {
            let told = nginx.logged(" skipped: ");
            told.iter().filter(|line| !line.contains("-late\"")).count() == excluded.len()
        });
    }
}

#[test]
fn an_upstream_has_its_own_list_instead_of_that_of_http() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = [Backend::start_on("a", FIRST), Backend::start_on("b", SECOND)];
    backends.iter().for_each(|backend| drop(register_one(&consul, &service, backend)));
    let nginx =
        filtered(&consul, &service, "consul_deny 127.0.0.1;", "consul_deny 127.0.0.2;").start();
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
    // The other directive is inherited.
    let nginx =
        filtered(&consul, &service, "consul_deny 127.0.0.1;", "consul_allow 127.0.0.0/8;").start();
    assert_eq!(tally(&nginx, "/", 2), "b: 2");
}

#[test]
fn a_name_that_leads_to_an_excluded_address_is_no_way_round() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = [Backend::start_on("a", FIRST), Backend::start_on("b", SECOND)];
    let by_name = Instance::new(&service, &format!("{service}-name"), backends[0].address());
    consul.register(&by_name.address("localhost"));
    // So is IPv4 in IPv6's clothes.
    let mapped = Instance::new(&service, &format!("{service}-mapped"), backends[0].address());
    consul.register(&mapped.address("::ffff:127.0.0.1"));
    register_one(&consul, &service, &backends[1]);
    let nginx = filtered(&consul, &service, "consul_deny 127.0.0.1 ::1;", "").start();
    until_peers(&nginx, &service, &[&backends[1]]);
    assert_eq!(tally(&nginx, "/", 4), "b: 4");
    for name in ["name", "mapped"] {
        let told = nginx.wait_for_log(&format!("instance \"{service}-{name}\""));
        assert!(told.contains(" is excluded by consul_deny"), "{told}");
    }
}

#[test]
fn what_a_reload_excludes_is_gone_at_once_whatever_the_policy() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start_on("a", FIRST);
    register_one(&consul, &service, &backend);
    let mut nginx = filtered(&consul, &service, "", "consul_empty keep;").start();
    until_served_by(&nginx, "/", "a");
    std::fs::write(nginx.prefix().join("filter.conf"), "consul_deny 127.0.0.0/8;")
        .expect("another filter");
    let start = Instant::now();
    nginx.reload_and_wait();
    assert_eq!(tally(&nginx, "/", 3), "502: 3");
    assert!(start.elapsed() < Duration::from_secs(2), "gone after {:?}", start.elapsed());
}

/// `0` is this host for the kernel, and the C library's resolver knows addresses that no other has.
#[test]
fn no_way_of_writing_an_address_leads_round_a_filter() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = [Backend::start_on("a", FIRST), Backend::start_on("b", Ipv4Addr::UNSPECIFIED)];
    let port = backends[1].address().port();
    let spellings = [
        "0",
        "0.0",
        "0x0",
        "00.0.0.0",
        "::ffff:0:0",
        "::0",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "017700000001",
        "2130706433",
        "::ffff:127.0.0.1",
        "[::ffff:7f00:1]",
        "127.0.0.1.",
        "localhost",
    ];
    for (number, spelling) in spellings.iter().enumerate() {
        let id = format!("{service}-{number}");
        let there = SocketAddr::from((FIRST, port));
        consul.register(&Instance::new(&service, &id, there).address(spelling));
    }
    // Of a node, and in the key/value store.
    let of_node = Instance::new(&service, &format!("{service}-node"), (FIRST, port)).address("");
    consul.register_external("zero", "0.0.0.0", &of_node);
    let keys = unique("keys");
    for name in ["0.0.0.0", "0", "[::]", "127.0.0.1"] {
        let response = consul.request("PUT", &format!("/v1/kv/{keys}/{name}:{port}"), &json!({}));
        assert_eq!(response.expect("an answer").status, 200);
    }
    let nginx = filtered(&consul, &service, "consul_deny 127.0.0.0/8 ::1;", "")
        .more("upstream keys { consul_dynamic %%KEYS%% source=kv; }")
        .set("KEYS", &keys)
        .start();
    assert_eq!((nginx.peers(&service), nginx.peers(&keys)), (String::new(), String::new()));
    assert_eq!(tally(&nginx, "/", 3), "502: 3");
    assert_eq!(backends[1].connections(), 0);
    let told = nginx.wait_for_log(&format!("instance \"{service}-0\" on node"));
    assert!(told.contains(" skipped: invalid address \"0\""), "{told}");
}

#[test]
fn host_bits_of_a_network_are_warned_of_as_in_nginxs_allow() {
    let config =
        filtered(Agent::shared().as_ref(), "web", "consul_allow 10.0.0.1/8 10.0.0.0/8;", "");
    let checked = config.allow("low address bits").check();
    let warnings: Vec<&str> =
        checked.output.lines().filter(|line| line.contains("[warn]")).collect();
    assert_eq!(warnings.len(), 1, "{}", checked.output);
    assert!(warnings[0].contains("low address bits of 10.0.0.1/8 are meaningless in "));
}

#[test]
fn an_instance_where_nginx_itself_listens_is_used_and_warned_of_once() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start_on("a", FIRST);
    register_one(&consul, &service, &backend);
    let nginx = filtered(&consul, &service, "", "").start();
    until_served_by(&nginx, "/", "a");
    let own = Instance::new(&service, &format!("{service}-own"), nginx.address());
    consul.register(&own);
    let told = nginx.wait_for_log("this nginx itself listens on");
    let expected = format!("instance \"{service}-own\"");
    assert!(told.contains("[warn]") && told.contains(&expected), "{told}");
    assert!(nginx.peers(&service).contains(&nginx.address().to_string()));
    // Another answer says nothing new.
    let index = nginx.service(&service)["index"].clone();
    let late = register_one(&consul, &service, &Backend::start_on("late", FIRST));
    wait::until("another answer", SOON, || nginx.service(&service)["index"] != index);
    consul.deregister(&late);
    assert_eq!(nginx.logged("this nginx itself listens on").len(), 1);
}
