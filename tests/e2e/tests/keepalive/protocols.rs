//! TLS, gRPC and FastCGI.

use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nginx_consul_e2e::fake_consul::instance;
use nginx_consul_e2e::tls::Authority;
use nginx_consul_e2e::{Config, FakeConsul, Nginx, http, ports, threads};
use serde_json::json;

use crate::conf_errors::nginx_version;

/// A Consul whose service `web` is at that address.
fn consul_with(address: SocketAddr) -> FakeConsul {
    let consul = FakeConsul::start();
    consul.publish("web", 7, &json!([instance("one", address)]));
    consul
}

/// nginx that follows `web`, with these lines in its `http` and `server`.
fn front(consul: &FakeConsul, http: &str, server: &str) -> Config {
    Config::http(
        "consul_server %%CONSUL%%;
         upstream api { consul_dynamic web; consul_keepalive 16; }
         %%HTTP%% server { listen 127.0.0.1:%%PORT%%; %%SERVER%% }",
    )
    .set("CONSUL", consul.url())
    .set("HTTP", http)
    .set("SERVER", server)
    .workers(1)
}

/// Stock nginx as a backend: who the peer of TLS asked for, and how often its connection was used.
fn tls_backend(authority: &Authority) -> Nginx {
    let own = authority.issue(&["one.test", "two.test"]);
    Config::http(
        "ssl_certificate own.pem; ssl_certificate_key own.key;
         server {
             listen 127.0.0.1:%%PORT%% ssl;
             location / { return 200 \"$ssl_server_name $connection_requests\"; }
         }",
    )
    .file("own.pem", own.certificate)
    .file("own.key", own.key)
    .without_module()
    .start()
}

#[test]
fn a_tls_connection_serves_only_those_who_asked_for_its_name() {
    let authority = Authority::new();
    let backend = tls_backend(&authority);
    let consul = consul_with(backend.address());
    let nginx = front(
        &consul,
        "proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_ssl_server_name on;
         proxy_ssl_session_reuse off; proxy_ssl_trusted_certificate ca.pem;",
        "location /one { proxy_pass https://api; proxy_ssl_name one.test; }
         location /verified { proxy_pass https://api; proxy_ssl_name one.test; proxy_ssl_verify on; }
         location /other { proxy_pass https://api; proxy_ssl_name $arg_name; }
         location /plain { proxy_pass http://api; }",
    )
    .file("ca.pem", authority.pem())
    .start();
    for n in 1..=3 {
        assert_eq!(nginx.outcome("/one"), format!("one.test {n}"));
        assert_eq!(nginx.outcome("/other?name=two.test"), format!("two.test {n}"));
        assert_eq!(nginx.outcome("/other?name=three.test"), format!("three.test {n}"));
        assert_eq!(nginx.outcome("/verified"), format!("one.test {n}"));
        // nginx says so of a request without TLS.
        assert_eq!(nginx.outcome("/plain"), "400");
    }
}

#[test]
fn a_client_certificate_of_each_requests_own_is_not_shared() {
    let authority = Authority::new();
    let backend = tls_backend(&authority);
    let consul = consul_with(backend.address());
    let own = authority.issue(&["client"]);
    let nginx = front(
        &consul,
        "proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_ssl_server_name on;
         proxy_ssl_name one.test;",
        "location / {
             proxy_pass https://api; proxy_ssl_certificate $document_root/$arg_who.pem;
             proxy_ssl_certificate_key $document_root/own.key; root %%PREFIX%%;
         }",
    )
    .file("own.pem", own.certificate)
    .file("own.key", own.key)
    .start();
    for _ in 0..3 {
        assert_eq!(nginx.outcome("/?who=own"), "one.test 1");
    }
}

#[test]
fn grpc_connections_are_used_again() {
    let backend = Config::http(
        "server {
             listen 127.0.0.1:%%PORT%% http2;
             location / { return 200 \"$server_protocol $connection_requests\"; }
         }",
    )
    .without_module()
    .start();
    let consul = consul_with(backend.address());
    let nginx = front(&consul, "", "location / { grpc_pass grpc://api; }").start();
    for n in 1..=5 {
        assert_eq!(nginx.outcome("/"), format!("HTTP/2.0 {n}"));
    }
}

#[test]
fn http_2_connections_are_used_again_by_http_2_only() {
    if nginx_version() < (1, 29, 4) {
        let two = "location / { proxy_pass http://api; proxy_http_version 2; }";
        let checked = front(&FakeConsul::start(), "", two).check();
        assert!(!checked.passed && checked.output.contains("invalid value"), "{}", checked.output);
        return;
    }
    let backend = Config::http(
        "keepalive_requests 4; http2 on;
         server {
             listen 127.0.0.1:%%PORT%%;
             location / { return 200 \"$server_protocol $connection_requests\"; }
         }",
    )
    .without_module()
    .start();
    let consul = consul_with(backend.address());
    let nginx = front(
        &consul,
        "proxy_set_header Connection \"\";",
        "location /two { proxy_pass http://api; proxy_http_version 2; }
         location /one { proxy_pass http://api; proxy_http_version 1.1; }",
    )
    .start();
    // The backend ends a connection after four requests: of HTTP/2 by GOAWAY.
    for n in 0..12 {
        let number = n % 4 + 1;
        assert_eq!(nginx.outcome("/two"), format!("HTTP/2.0 {number}"));
        assert_eq!(nginx.outcome("/one"), format!("HTTP/1.1 {number}"));
    }
    let body = vec![b'x'; 100_000];
    for _ in 0..8 {
        let answer = http::request(nginx.address(), "POST", "/two", &[], &body);
        assert_eq!(answer.expect("an answer").status, 200);
    }
}

/// A FastCGI responder that answers with the number of the connection and of its request.
struct FastCgi {
    address: SocketAddr,
}

impl FastCgi {
    fn start() -> FastCgi {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()));
        let listener = TcpListener::bind(address).expect("the reserved port");
        threads::spawn(move || {
            let connections = Arc::new(AtomicUsize::new(0));
            for stream in listener.incoming().flatten() {
                let number = connections.fetch_add(1, Ordering::SeqCst) + 1;
                // An error is nginx's closing.
                threads::spawn(move || drop(serve(stream, number)));
            }
        });
        FastCgi { address }
    }
}

/// FastCGI 1.0, section 3.3: version, type, id, length of content and padding, reserved.
fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut record = vec![1, kind, 0, 1];
    record.extend((content.len() as u16).to_be_bytes());
    record.extend([0, 0]);
    record.extend(content);
    record
}

fn serve(stream: TcpStream, number: usize) -> io::Result<()> {
    let (begin, end, stdin, stdout) = (1, 3, 5, 6);
    let mut reader = BufReader::new(stream);
    let (mut requests, mut stays) = (0, false);
    loop {
        let mut head = [0; 8];
        reader.read_exact(&mut head)?;
        let len = usize::from(u16::from_be_bytes([head[4], head[5]]));
        let mut content = vec![0; len + usize::from(head[6])];
        reader.read_exact(&mut content)?;
        if head[1] == begin {
            stays = content[2] & 1 != 0;
        }
        if head[1] == stdin && len == 0 {
            requests += 1;
            let text = format!("Content-Type: text/plain\r\n\r\n{number}/{requests}");
            let mut answer = record(stdout, text.as_bytes());
            answer.extend(record(stdout, b""));
            answer.extend(record(end, &[0; 8]));
            reader.get_mut().write_all(&answer)?;
            if !stays {
                return Ok(());
            }
        }
    }
}

#[test]
fn fastcgi_connections_are_used_again() {
    let backend = FastCgi::start();
    let consul = consul_with(backend.address);
    let nginx = front(
        &consul,
        "",
        "location /kept { fastcgi_pass api; fastcgi_keep_conn on; }
         location /single { fastcgi_pass api; }",
    )
    .start();
    for n in 1..=4 {
        assert_eq!(nginx.outcome("/kept"), format!("1/{n}"));
    }
    // Takes the one that is idle, and ends it.
    assert_eq!(nginx.outcome("/single"), "1/5");
    assert_eq!(nginx.outcome("/kept"), "2/1");
}
