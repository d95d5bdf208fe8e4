//! The host name of a Consul agent, as the resolver knows it or not.

use std::fs;
use std::time::{Duration, Instant};

use nginx_consul_e2e::{Agent, Backend, Instance, Load, Proxy, load, wait};
use tempfile::TempDir;

use crate::support::{SOON, gateway, register_one, tally, unique, until_served_by};

const NAME: &str = "consul.test";

/// Longest pause between two tries, and what a busy machine may add to it.
const STEP: Duration = Duration::from_millis(500);
const LENIENCE: Duration = Duration::from_millis(1500);

/// Most tries in [`SPAN`].
const MOST: u64 = 20;
const SPAN: Duration = Duration::from_secs(2);

/// `/etc/hosts` as one nginx sees it, in a mount namespace of its own; it asks no other resolver.
struct Hosts(TempDir);

impl Hosts {
    /// One with [`NAME`] in it.
    fn new() -> Hosts {
        let hosts = Hosts(tempfile::tempdir().expect("a folder"));
        fs::write(hosts.path("nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files\n")
            .expect("nsswitch.conf");
        hosts.say(&format!("127.0.0.1 localhost {NAME}\n"));
        hosts
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Writes the file in place: a mount shows a file, not what later has its name.
    fn say(&self, text: &str) {
        fs::write(self.path("hosts"), text).expect("hosts");
    }

    /// What is to start nginx.
    fn starter(&self) -> Vec<String> {
        let script = format!(
            "mount --bind {} /etc/hosts && mount --bind {} /etc/nsswitch.conf && exec \"$@\"",
            self.path("hosts"),
            self.path("nsswitch.conf"),
        );
        // The right to mount, where this is not root.
        let map = if rustix::process::getuid().is_root() { "" } else { "--map-root-user" };
        let words = ["unshare", map, "--mount", "--propagation", "private", "sh", "-c", &script];
        let words = words.into_iter().chain(["sh"]).filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    }
}

#[test]
fn a_name_that_is_no_more_and_is_again() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register_one(&consul, &service, &backends[0]);
    let proxy = Proxy::start(consul.address());
    let hosts = Hosts::new();
    let starter = hosts.starter();
    let url = format!("http://{NAME}:{}", proxy.address().port());
    let upstream =
        "consul_dynamic %%SERVICE%%; consul_retry 50ms 500ms; consul_wait 1s; keepalive 4;";
    let nginx = gateway(&url, &service, upstream)
        .started_by(&starter.iter().map(String::as_str).collect::<Vec<_>>())
        .start();
    until_served_by(&nginx, "/", "a");
    let load = Load::start_paced(nginx.address(), "/", 1, true, Duration::from_millis(1));
    let failures = || nginx.service(&service)["failures"].as_u64().unwrap_or(0);

    // An open connection needs no name.
    hosts.say("127.0.0.1 localhost\n");
    register_one(&consul, &service, &backends[1]);
    until_served_by(&nginx, "/", "a b");
    assert_eq!(failures(), 0);

    proxy.cut_all();
    let error = format!("cannot resolve \"{NAME}\"");
    wait::until("the error is in status", SOON, || {
        nginx.service(&service)["last_error"].as_str().is_some_and(|text| text.contains(&error))
    });
    wait::until("the error is in the log", SOON, || {
        let lines = nginx.logged(&error);
        lines.iter().any(|line| line.contains(&format!("service \"{service}\": ")))
    });
    wait::until("an outage is an error", SOON, || {
        nginx.logged("[error]").iter().any(|line| line.contains("retrying in"))
    });
    register_one(&consul, &service, &backends[2]);
    let before = failures();
    wait::holds("few tries", SPAN, || failures() <= before + MOST);
    println!("{} tries in {SPAN:?}", failures() - before);
    assert!(failures() > before, "it tries no more");
    load.open_window();
    wait::until("a and b serve", SOON, || load.seen("a").is_some() && load.seen("b").is_some());
    assert!(load.seen("c").is_none(), "{:?}", load.window());

    hosts.say(&format!("127.0.0.1 localhost {NAME}\n"));
    let healed = Instant::now();
    wait::until("the news is served", STEP + LENIENCE, || load.seen("c").is_some());
    println!("followed again after {:?}", healed.elapsed());
    nginx.wait_for_log(&format!("service \"{service}\": recovered after"));
    wait::until("no more failures", SOON, || failures() == 0);
    let shown = nginx.service(&service)["last_error"].clone();
    assert!(shown.is_null(), "{shown}");
    assert_eq!(load::failures(&load.finish(), &["a", "b", "c"]), "");
}

/// nginx answers with 500 if the kernel makes no socket for a peer, and asks no other one.
#[test]
fn on_a_system_without_ipv6_only_ipv4_addresses_are_peers() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    let port = backend.address().port();
    for (name, address) in [("both", "both.test"), ("six", "six.test"), ("literal", "::1")] {
        let id = format!("{service}-{name}");
        consul.register(&Instance::new(&service, &id, backend.address()).address(address));
    }
    let hosts = Hosts::new();
    hosts.say("::1 both.test six.test\n127.0.0.1 both.test\n");
    let mut starter = hosts.starter();
    starter.push(env!("CARGO_BIN_EXE_without_ipv6").to_owned());
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;")
        .started_by(&starter.iter().map(String::as_str).collect::<Vec<_>>())
        .start();
    assert_eq!(nginx.peers(&service), format!("127.0.0.1:{port}"));
    assert_eq!(tally(&nginx, "/", 6), "a: 6");
    for (name, reason) in [
        ("six", "it has IPv6 addresses only, this system has no IPv6"),
        ("literal", "address ::1 is an IPv6 address, and this system has no IPv6"),
    ] {
        let told = nginx.wait_for_log(&format!("instance \"{service}-{name}\""));
        assert!(told.contains(" skipped: ") && told.contains(reason), "{told}");
    }
}

#[test]
fn an_instance_s_name_that_moves_is_followed_within_consul_resolve() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let first = Backend::start_on("first", [127, 0, 0, 1]);
    let port = first.address().port();
    let second = Backend::start_at("second", ([127, 0, 0, 2], port), None);
    let instance = Instance::new(&service, &service, first.address()).address("app.test");
    consul.register(&instance);
    let hosts = Hosts::new();
    hosts.say("127.0.0.1 app.test\n");
    let starter = hosts.starter();
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%; consul_resolve 1s;")
        .started_by(&starter.iter().map(String::as_str).collect::<Vec<_>>())
        .start();
    until_served_by(&nginx, "/", "first");
    hosts.say("127.0.0.2 app.test\n");
    until_served_by(&nginx, "/", "second");
    hosts.say("");
    // Two lookups later it still has the last addresses.
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(2500) {
        assert_eq!(nginx.outcome("/"), "second");
    }
    drop(second);
}
