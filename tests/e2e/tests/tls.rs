//! TLS to a real Consul with certificates made here, and what becomes of the token.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use nginx_consul_e2e::acl;
use nginx_consul_e2e::consul::Options;
use nginx_consul_e2e::process;
use nginx_consul_e2e::tls::{Authority, Identity};
use nginx_consul_e2e::{Agent, Backend, Config, Load, Nginx, load, ports, version, wait};
use tempfile::TempDir;

use crate::support::{
    SERVER, SOON, gateway, on_socket, register_one, tally, unique, until_served_by,
};

/// An agent with an HTTPS port, whose certificate can be changed while it is down.
struct Secure {
    agent: Agent,
    folder: TempDir,
    url: String,
}

impl Secure {
    fn start(authority: &Authority, names: &[&str]) -> Secure {
        Secure::new(authority, names, false)
    }

    /// One that takes only clients with a certificate of the same authority.
    fn demanding(authority: &Authority, names: &[&str]) -> Secure {
        Secure::new(authority, names, true)
    }

    fn new(authority: &Authority, names: &[&str], demanding: bool) -> Secure {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str| folder.path().join(name);
        fs::write(file("ca.pem"), authority.pem()).expect("the authority");
        write(folder.path(), &authority.issue(names));
        let (port, demanded) = (ports::free(), demanding.then(|| file("ca.pem")));
        let hcl = version::https(port, &file("cert.pem"), &file("key.pem"), demanded.as_deref());
        let agent = Options::dev().hcl(&hcl).start();
        Secure { agent, folder, url: format!("https://127.0.0.1:{port}") }
    }

    /// Restarts it with another certificate; a `-dev` agent forgets all.
    fn restart_with(&mut self, identity: &Identity) {
        self.agent.kill();
        write(self.folder.path(), identity);
        self.agent.start();
    }
}

fn write(folder: &Path, identity: &Identity) {
    fs::write(folder.join("cert.pem"), &identity.certificate).expect("a certificate");
    fs::write(folder.join("key.pem"), &identity.key).expect("a key");
}

#[test]
fn a_certificate_of_another_authority_is_refused_and_the_last_good_set_served() {
    let authority = Authority::new();
    let mut consul = Secure::start(&authority, &["127.0.0.1"]);
    let service = unique("web");
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul.agent, &service, &backends[0]);
    let nginx = gateway(
        &consul.url,
        &service,
        "consul_dynamic %%SERVICE%%; consul_ssl_trusted_certificate ca.pem; consul_retry 50ms 300ms;",
    )
    .file("ca.pem", authority.pem())
    .start();
    until_served_by(&nginx, "/", "a");
    let load = Load::start_paced(nginx.address(), "/", 1, true, Duration::from_millis(1));
    consul.restart_with(&Authority::new().issue(&["127.0.0.1"]));
    register_one(&consul.agent, &service, &backends[1]);
    wait::until("an error in status", SOON, || {
        let shown = nginx.service(&service)["last_error"].clone();
        shown.as_str().is_some_and(|text| text.contains("ertificate"))
    });
    let line = nginx.wait_for_log("ertificate");
    assert!(line.contains(&service) && line.contains(&consul.url), "{line}");
    assert!(nginx.logged(&service).iter().any(|line| line.contains("[error]")), "{line}");
    wait::holds("an impostor is not followed", Duration::from_secs(1), || load.seen("b").is_none());
    consul.restart_with(&authority.issue(&["127.0.0.1"]));
    register_one(&consul.agent, &service, &backends[1]);
    until_served_by(&nginx, "/", "b");
    assert_eq!(load::failures(&load.finish(), &["a", "b"]), "");
}

#[test]
fn the_systems_authorities_dont_vouch_for_a_private_one() {
    let consul = Secure::start(&Authority::new(), &["127.0.0.1"]);
    let service = unique("web");
    let backend = Backend::start("a");
    register_one(&consul.agent, &service, &backend);
    let nginx = gateway(&consul.url, &service, "consul_dynamic %%SERVICE%%;").start();
    nginx.wait_for_log("ertificate");
    assert_eq!(nginx.get("/").status, 502);
}

#[test]
fn consul_ssl_name_is_the_name_that_is_verified() {
    let authority = Authority::new();
    let consul = Secure::start(&authority, &["server.dc1.consul"]);
    let service = unique("web");
    let backend = Backend::start("a");
    register_one(&consul.agent, &service, &backend);
    let start = |name: &str| {
        let upstream = "consul_dynamic %%SERVICE%%; consul_ssl_trusted_certificate ca.pem; ";
        gateway(&consul.url, &service, &format!("{upstream}{name}"))
            .file("ca.pem", authority.pem())
            .start()
    };
    let nginx = start("consul_ssl_name server.dc1.consul;");
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
    drop(nginx);
    for name in ["", "consul_ssl_name server.dc2.consul;"] {
        let nginx = start(name);
        nginx.wait_for_log("ertificate");
        assert_eq!(nginx.get("/").status, 502, "{name:?}");
    }
}

#[test]
fn an_agent_that_demands_a_certificate_gets_it() {
    let authority = Authority::new();
    let consul = Secure::demanding(&authority, &["127.0.0.1"]);
    let service = unique("web");
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul.agent, &service, &backends[0]);
    let upstream = "consul_dynamic %%SERVICE%%; consul_ssl_trusted_certificate ca.pem; ";
    let mutual =
        format!("{upstream} consul_ssl_certificate own.pem; consul_ssl_certificate_key own.key;");
    let with = |upstream: &str, identity: &Identity| {
        gateway(&consul.url, &service, upstream)
            .file("ca.pem", authority.pem())
            .file("own.pem", &identity.certificate)
            .file("own.key", &identity.key)
            .start()
    };
    let own = authority.issue(&["gateway"]);
    let nginx = with(&mutual, &own);
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
    register_one(&consul.agent, &service, &backends[1]);
    until_served_by(&nginx, "/", "a b");
    drop(nginx);
    // Without one, and with one that another authority made.
    for (upstream, identity) in [(upstream, &own), (&mutual, &Authority::new().issue(&["gateway"]))]
    {
        let nginx = with(upstream, identity);
        let line = nginx.wait_for_log("initial fetch failed");
        assert!(line.contains("[error]") && line.contains("ertificate"), "{line}");
        assert_eq!(nginx.get("/").status, 502);
    }
}

/// The versions that a TLS ClientHello offers in its extension `supported_versions` (RFC 8446,
/// 4.2.1), and the one it names as the oldest field does (4.1.2).
fn offered(hello: &[u8]) -> (u16, Vec<u16>) {
    let short = |at: usize| u16::from_be_bytes([hello[at], hello[at + 1]]);
    let legacy = short(9);
    // Record and handshake headers (9), version (2), random (32); then session, suites, methods.
    let mut at = 9 + 2 + 32;
    at += 1 + usize::from(hello[at]);
    at += 2 + usize::from(short(at));
    at += 1 + usize::from(hello[at]);
    let end = at + 2 + usize::from(short(at));
    at += 2;
    while at < end {
        let (kind, length) = (short(at), usize::from(short(at + 2)));
        if kind == 43 {
            return (legacy, (at + 5..at + 4 + length).step_by(2).map(short).collect());
        }
        at += 4 + length;
    }
    (legacy, Vec::new())
}

#[test]
fn nothing_older_than_tls_1_2_is_offered() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let text = format!(
        "consul_server https://{address}; consul_ssl_verify off; consul_init_timeout 300ms;
         upstream api {{ consul_dynamic web; }} {}",
        SERVER
    );
    let nginx = Config::http(&text).launch();
    let (mut stream, _) = listener.accept().expect("a connection");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    let mut hello = vec![0; 5];
    stream.read_exact(&mut hello).expect("a record's head");
    assert_eq!(hello[0], 22, "a handshake");
    hello.resize(5 + usize::from(u16::from_be_bytes([hello[3], hello[4]])), 0);
    stream.read_exact(&mut hello[5..]).expect("a record");
    let (legacy, mut versions) = offered(&hello);
    versions.sort_unstable();
    assert_eq!((legacy, versions), (0x0303, vec![0x0303, 0x0304]));
    drop(stream);
    wait::until("nginx serves", SOON, || nginx.try_get("/").is_ok());
}

#[test]
fn a_socket_that_vanishes_and_returns_is_followed() {
    let (_folder, socket, mut consul) = on_socket();
    let service = unique("web");
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let url = format!("unix:{}", socket.display());
    let nginx =
        gateway(&url, &service, "consul_dynamic %%SERVICE%%; consul_retry 50ms 300ms;").start();
    until_served_by(&nginx, "/", "a");
    consul.kill();
    fs::remove_file(&socket).expect("the socket");
    let line = nginx.wait_for_log("retrying in");
    assert!(line.contains("[error]"), "{line}");
    assert_eq!(tally(&nginx, "/", 4), "a: 4");
    consul.start();
    register_one(&consul, &service, &backends[1]);
    until_served_by(&nginx, "/", "b");
}

#[test]
fn a_token_is_rotated_without_a_reload_and_shows_nowhere() {
    let (consul, first) = acl::start(Options::dev());
    let service = unique("web");
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    // In nginx's debug log too.
    let nginx = gateway(
        &consul.url(),
        &service,
        "consul_dynamic %%SERVICE%%; consul_token_file token; consul_retry 50ms 300ms;",
    )
    .log_level("debug")
    .file("token", format!("{}\n", first.secret))
    .workers(2)
    .start();
    until_served_by(&nginx, "/", "a");
    let load = Load::start_paced(nginx.address(), "/", 1, true, Duration::from_millis(2));
    let second = acl::issue(&consul).expect("a token");
    acl::swap(&nginx.prefix().join("token"), &second);
    assert!(acl::revoke(&consul, &first), "Consul kept the first token");
    register_one(&consul, &service, &backends[1]);
    until_served_by(&nginx, "/", "a b");
    assert_eq!(load::failures(&load.finish(), &["a", "b"]), "");
    assert_shows_nowhere(&nginx, &[&first.secret, &second.secret]);
}

/// Sees that neither status, logs nor the titles of nginx's processes have any of these.
fn assert_shows_nowhere(nginx: &Nginx, secrets: &[&str]) {
    let mut places = vec![
        ("status".to_owned(), nginx.get("/consul").body),
        ("status".to_owned(), nginx.get("/consul?format=json").body),
    ];
    let mut pids = vec![nginx.pid()];
    pids.extend(nginx.workers());
    places.extend(pids.into_iter().map(|pid| (format!("process {pid}"), process::title(pid))));
    for entry in fs::read_dir(nginx.prefix()).expect("the prefix").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_file() && !["token", "nginx.conf"].contains(&name.as_str()) {
            let text = fs::read(entry.path()).expect("a file of the prefix");
            places.push((name, String::from_utf8_lossy(&text).into_owned()));
        }
    }
    assert!(places.iter().any(|(name, text)| name == "error.log" && text.contains("[debug]")));
    for (name, text) in places {
        assert!(!secrets.iter().any(|secret| text.contains(secret)), "{name} shows the token");
    }
}
