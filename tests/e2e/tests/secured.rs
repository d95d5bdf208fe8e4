//! Tokens, TLS and unix sockets between nginx and Consul.

use std::fs;

use nginx_consul_e2e::acl;
use nginx_consul_e2e::consul::Options;
use nginx_consul_e2e::fake_consul::Answer;
use nginx_consul_e2e::tls::Authority;
use nginx_consul_e2e::{Agent, Backend, Config, FakeConsul, Instance, ports, version, wait};

use crate::support::{
    SERVER, SOON, gateway, on_socket, register_one, tally, unique, until_served_by,
};

/// An agent whose ACL denies by default, and a token that may read services and nodes.
pub(crate) fn with_acl() -> (Agent, String) {
    let (consul, token) = acl::start(Options::dev());
    (consul, token.secret)
}

#[test]
fn a_token_opens_what_consul_denies_otherwise() {
    let (consul, token) = with_acl();
    let service = unique("web");
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").start();
    assert_eq!(nginx.get("/").status, 502, "served without a token");
    drop(nginx);
    let with_token = "consul_dynamic %%SERVICE%%; consul_token %%TOKEN%%;";
    let nginx = gateway(&consul.url(), &service, with_token).set("TOKEN", &token).start();
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
    assert!(!nginx.get("/consul?format=json").body.contains(&token), "status shows the token");
    assert!(!nginx.log().contains(&token), "the log shows the token");
}

#[test]
fn a_token_that_consul_doesnt_know_is_an_error() {
    let (consul, _) = with_acl();
    let token = "00000000-dead-4000-8000-000000000000";
    let with_token = "consul_dynamic web; consul_token %%TOKEN%%;";
    let nginx = gateway(&consul.url(), "web", with_token).set("TOKEN", token).start();
    let line = nginx.wait_for_log("ACL not found");
    assert!(line.contains("[error]") && line.contains("403"), "{line}");
    assert!(!nginx.log().contains(token), "the log shows the token");
}

/// A server that sends the token back, as a debugging proxy may.
#[test]
fn a_token_that_a_server_echoes_is_shown_nowhere() {
    let token = "5ec2e700-dead-4000-8000-000000000000";
    let echoes = [
        Answer::error(500, &format!("bad header X-Consul-Token: {token} in request")),
        Answer::error(403, &format!("{}{token}", "x".repeat(190))),
        Answer::error(403, &token.to_uppercase()),
        Answer::ok(7, "[]").header("Content-Type", &format!("text/html; {token}")),
        Answer::ok(7, format!("\"{token}\"")),
    ];
    for echo in echoes {
        let consul = FakeConsul::start();
        let answer = echo.clone();
        consul.script(move |_| Some(answer.clone()));
        let with_token = "consul_dynamic web; consul_token %%TOKEN%%; consul_retry 50ms 100ms;";
        let nginx = gateway(&consul.url(), "web", with_token).set("TOKEN", token).start();
        wait::until("the error is in the status", SOON, || {
            nginx.service("web")["last_error"].is_string()
        });
        let shown = nginx.get("/consul?format=json").body + &nginx.log();
        assert!(shown.contains("[token]") || echo.status == 403, "{shown}");
        // Nor a part of it.
        assert!(!shown.to_lowercase().contains("5ec2e700"), "{shown}");
    }
}

#[test]
fn a_token_file_is_read_again_when_it_changes() {
    let (consul, token) = with_acl();
    let service = unique("web");
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let nginx = gateway(
        &consul.url(),
        &service,
        "consul_dynamic %%SERVICE%%; consul_token_file token; consul_retry 50ms 300ms;",
    )
    .file("token", "00000000-dead-4000-8000-000000000000\n")
    .start();
    assert_eq!(nginx.get("/").status, 502);
    nginx.wait_for_log("ACL not found");
    fs::write(nginx.prefix().join("token"), format!("{token}\n")).expect("a new token");
    until_served_by(&nginx, "/", "a");
}

/// An agent with an HTTPS port besides, its authority's certificate, and that port.
fn with_tls() -> (Agent, Authority, u16) {
    let authority = Authority::new();
    let identity = authority.issue(&["consul.test", "127.0.0.1"]);
    let folder = tempfile::tempdir().expect("a folder");
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    fs::write(&certificate, identity.certificate).expect("a certificate");
    fs::write(&key, identity.key).expect("a key");
    let port = ports::free();
    let consul = Options::dev().hcl(&version::https(port, &certificate, &key, None)).start();
    (consul, authority, port)
}

#[test]
fn consul_is_followed_over_tls_and_its_certificate_is_verified() {
    let (consul, authority, port) = with_tls();
    let service = unique("web");
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let url = format!("https://127.0.0.1:{port}");
    let nginx = gateway(
        &url,
        &service,
        "consul_dynamic %%SERVICE%%; consul_ssl_trusted_certificate ca.pem;",
    )
    .file("ca.pem", authority.pem())
    .start();
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
    register_one(&consul, &service, &backends[1]);
    until_served_by(&nginx, "/", "a b");
    drop(nginx);

    let other = Authority::new();
    let nginx = gateway(
        &url,
        &service,
        "consul_dynamic %%SERVICE%%; consul_ssl_trusted_certificate ca.pem;",
    )
    .file("ca.pem", other.pem())
    .start();
    let line = nginx.wait_for_log("ertificate");
    assert!(line.contains("[error]") && line.contains(&service), "{line}");
    assert_eq!(nginx.get("/").status, 502, "served from a Consul that nobody vouches for");
}

#[test]
fn verification_can_be_turned_off() {
    let (consul, _, port) = with_tls();
    let service = unique("web");
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let nginx = gateway(
        &format!("https://127.0.0.1:{port}"),
        &service,
        "consul_dynamic %%SERVICE%%; consul_ssl_verify off;",
    )
    .start();
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
}

#[test]
fn consul_is_followed_over_a_unix_socket() {
    let (_folder, socket, consul) = on_socket();
    let service = unique("web");
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let url = format!("unix:{}", socket.display());
    let nginx = gateway(&url, &service, "consul_dynamic %%SERVICE%%;").start();
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
    register_one(&consul, &service, &backends[1]);
    until_served_by(&nginx, "/", "a b");
}

#[test]
fn the_environment_names_consul_and_token_where_the_configuration_doesnt() {
    let (consul, token) = with_acl();
    let service = unique("web");
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let text = format!("upstream api {{ consul_dynamic %%SERVICE%%; }} {SERVER}");
    let nginx = Config::http(&text)
        .set("SERVICE", &service)
        .environment("CONSUL_HTTP_ADDR", consul.address())
        .environment("CONSUL_HTTP_TOKEN", token)
        .start();
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
    // The workers, whose environment nginx clears, have it too.
    let id = unique("id");
    consul.register(&Instance::new(&service, &id, backends[1].address()));
    until_served_by(&nginx, "/", "a b");
}
