//! Requests that must not change anything.

use std::io::Write;

use nginx_consul_e2e::http::{self, Connection};
use nginx_consul_e2e::{Agent, Backend, Config, Nginx};
use serde_json::Value;

use super::{answered, with_upstream};
use crate::support::{register, tally, unique, until_served_by};

const JSON: (&str, &str) = ("Content-Type", "application/json");

fn started() -> (Nginx, String, Vec<Backend>) {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let nginx = with_upstream(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").start();
    until_served_by(&nginx, "/", "a b");
    (nginx, service, backends)
}

/// Sends a request, and gives the status and the code of the refusal.
fn refusal(
    nginx: &Nginx,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> String {
    let answer = http::request(nginx.address(), method, path, headers, body);
    let answer = answer.unwrap_or_else(|e| panic!("{method} {path}: {e}"));
    let json: Value = serde_json::from_str(&answer.body)
        .unwrap_or_else(|e| panic!("{method} {path}: {e} in {:?}", answer.body));
    assert_eq!(json["error"]["status"], answer.status, "{json}");
    assert!(json["error"]["text"].as_str().is_some_and(|text| text.len() > 10), "{json}");
    format!("{} {}", answer.status, json["error"]["code"].as_str().unwrap_or_default())
}

#[test]
fn pages_of_other_sites_change_nothing() {
    let (nginx, service, _backends) = started();
    let path = format!("/api/services/{service}/instances/{service}-a/down");
    let form = ("Content-Type", "application/x-www-form-urlencoded");
    let plain = ("Content-Type", "text/plain");
    for (headers, expected) in [
        (&[form][..], "415 ContentType"),
        (&[plain], "415 ContentType"),
        (&[], "415 ContentType"),
        (&[JSON, ("Origin", "https://evil.example")], "403 CrossSite"),
        (&[JSON, ("Origin", "null")], "403 CrossSite"),
        (&[JSON, ("Sec-Fetch-Site", "cross-site")], "403 CrossSite"),
        (&[JSON, ("sec-fetch-site", "same-site"), ("Origin", "http://localhost")], "403 CrossSite"),
    ] {
        assert_eq!(refusal(&nginx, "POST", &path, headers, b"{}"), expected, "{headers:?}");
        let instance = path.trim_end_matches("/down");
        assert_eq!(refusal(&nginx, "DELETE", instance, headers, b""), expected, "{headers:?}");
    }
    let preflight = [
        ("Origin", "https://evil.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "content-type"),
    ];
    let answer =
        http::request(nginx.address(), "OPTIONS", &path, &preflight, b"").expect("an answer");
    assert_eq!(answer.status, 403);
    let is_cors = |(name, _): &(String, String)| name.to_lowercase().starts_with("access-control");
    assert!(!answer.head.headers.iter().any(is_cors), "{:?}", answer.head);
    assert_eq!(tally(&nginx, "/", 4), "a: 2, b: 2");
    // The page of this very origin may.
    let own = [JSON, ("Origin", "http://localhost"), ("Sec-Fetch-Site", "same-origin")];
    assert_eq!(http::request(nginx.address(), "POST", &path, &own, b"").expect("it").status, 200);
}

#[test]
fn a_refusal_says_what_is_wrong() {
    let (nginx, service, _backends) = started();
    let api = |path: &str| format!("/api/services/{path}").replace("%S", &service);
    for (method, path, body, expected) in [
        ("GET", "nobody", "", "404 ServiceNotFound"),
        ("POST", "nobody/freeze", "", "404 ServiceNotFound"),
        ("GET", "%S/instances/nobody", "", "404 InstanceNotFound"),
        ("POST", "%S/instances/nobody/drain", "", "404 InstanceNotFound"),
        ("DELETE", "%S/instances/nobody", "", "404 OverrideNotFound"),
        ("DELETE", "%S/instances/%S-a", "", "404 OverrideNotFound"),
        ("POST", "%S/melt", "", "404 PathNotFound"),
        ("POST", "%S/instances/%S-a/drain?upsteam=x", "", "400 ArgumentError"),
        ("GET", "%S/freeze", "", "405 MethodDisabled"),
        ("PUT", "%S/freeze", "", "405 MethodDisabled"),
        ("DELETE", "%S", "", "405 MethodDisabled"),
        ("POST", "%S/instances/%S-a/weight", "", "400 BodyFormatError"),
        ("POST", "%S/instances/%S-a/weight", r#"{"weight":70000}"#, "400 BodyFormatError"),
        ("POST", "%S/instances/%S-a/drain", r#"{"weight":5}"#, "400 BodyFormatError"),
        ("POST", "%S/instances/%S-a/drain", r#"{"expire":"5m"}"#, "400 BodyFormatError"),
        ("POST", "%S/instances/%S-a/drain", r#"{"expires":"5m""#, "400 BodyFormatError"),
        ("POST", "%S/instances/%S-a/drain", r#"{"expires":"soon"}"#, "400 BodyFormatError"),
        ("POST", "%S/instances/%S-a/drain", "weight=5", "400 BodyFormatError"),
        ("POST", "%S/thaw", r#"{"expires":"5m"}"#, "400 BodyFormatError"),
        ("POST", "%S/freeze", "\u{0}", "400 BodyFormatError"),
    ] {
        let seen = refusal(&nginx, method, &api(path), &[JSON], body.as_bytes());
        assert_eq!(seen, expected, "{method} {path} {body}");
    }
    let answer = nginx.send_json("PUT", &api("%S/thaw"), "");
    assert_eq!(answer.header("allow"), Some("PATCH, POST"));
    assert_eq!(tally(&nginx, "/", 4), "a: 2, b: 2");
}

#[test]
fn bodies_are_bounded_however_they_come() {
    let (nginx, service, _backends) = started();
    let path = format!("/api/services/{service}/instances/{service}-a/drain");
    let large = format!("{{\"expires\":\"{}\"}}", "1".repeat(100_000));
    assert_eq!(refusal(&nginx, "POST", &path, &[JSON], large.as_bytes()), "413 BodyTooLarge");
    let chunked = |body: &str| {
        let mut connection = Connection::open(nginx.address()).expect("a connection");
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        );
        let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        connection.stream().write_all((head + &chunks).as_bytes()).expect("sent");
        connection.receive().expect("an answer").status
    };
    assert_eq!(chunked(&large), 413);
    assert_eq!(chunked("{\"expires\":\"1h\"}"), 200);
    assert_eq!(tally(&nginx, "/", 4), "b: 4");
}

#[test]
fn a_body_that_nginx_writes_to_a_file_is_read_from_there() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let nginx = Config::http(
        "consul_server %%CONSUL%%; upstream api { consul_dynamic %%SERVICE%%; }
        server {
            listen 127.0.0.1:%%PORT%%;
            location / { proxy_pass http://api; }
            location = /consul { consul_status; }
            location /api { consul_api; client_body_in_file_only clean; }
        }",
    )
    .set("CONSUL", consul.url())
    .set("SERVICE", &service)
    .start();
    until_served_by(&nginx, "/", "a b");
    let path = format!("{service}/instances/{service}-a/weight");
    let body = format!("{{\"weight\":{}3}}", " ".repeat(12_000));
    super::set_override(&nginx, &path, &body);
    assert_eq!(tally(&nginx, "/", 8), "a: 6, b: 2");
    let body = format!("{{\"weight\":{}3}}", " ".repeat(17_000));
    assert_eq!(answered(&nginx, ("POST", &path, &body), 413)["error"]["code"], "BodyTooLarge");
}

#[test]
fn names_from_outside_stay_within_their_quotes() {
    let (nginx, service, _backends) = started();
    let odd = "x%22%0a%1b[31m%00y".to_owned() + &"z".repeat(3000);
    for path in [format!("/api/services/{odd}"), format!("/api/services/{service}/instances/{odd}")]
    {
        let answer = nginx.send_json("GET", &path, "");
        // nginx itself refuses a zero.
        assert!(matches!(answer.status, 400 | 404), "{}", answer.status);
    }
    let odd = odd.replace("%00", "");
    let answer = nginx.send_json("POST", &format!("/api/services/{odd}/freeze"), "");
    assert_eq!(answer.status, 404);
    assert!(answer.body.len() < 500 && !answer.body.contains('\u{1b}'), "{}", answer.body);
    let authorization = ("Authorization", "Basic YSIKG1szMW1iOng=");
    let path = format!("/api/services/{service}/freeze");
    let answer = http::request(nginx.address(), "POST", &path, &[JSON, authorization], b"");
    assert_eq!(answer.expect("an answer").status, 200);
    let line = nginx.wait_for_log("freeze set by");
    assert!(line.contains("\"a\\\"\\n\\u{1b}[31mb@127.0.0.1\""), "{line}");
}
