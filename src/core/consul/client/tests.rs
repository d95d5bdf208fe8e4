//! Against scripted servers on loopback.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use super::*;
use crate::consul::tls::Tls;
use crate::consul::token::Token;
use crate::watch::testing::endpoint;

mod beside;
mod tls;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Consul-Index: 7\r\n";

/// What the server does with one request.
enum Act {
    /// Sends this and keeps the connection.
    Send(Vec<u8>),
    /// Sends this and closes.
    Last(Vec<u8>),
    /// Says nothing until the client goes.
    Hang,
}

fn small(body: &str) -> Act {
    Act::Send(format!("{OK}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes())
}

/// Serves one connection after the other; gives each request's lines, joined by `|`.
fn serve<S: std::io::Read + Write>(
    mut accept: impl FnMut() -> S + Send + 'static,
    connections: Vec<Vec<Act>>,
) -> Receiver<String> {
    let (told, seen) = mpsc::channel();
    thread::spawn(move || {
        for acts in connections {
            let mut stream = BufReader::new(accept());
            for act in acts {
                let mut head = Vec::new();
                loop {
                    let mut line = String::new();
                    if !matches!(stream.read_line(&mut line), Ok(n) if n > 2) {
                        break;
                    }
                    head.push(line.trim_end().to_owned());
                }
                let _ = told.send(head.join("|"));
                match act {
                    Act::Send(bytes) => drop(stream.get_mut().write_all(&bytes)),
                    Act::Last(bytes) => {
                        drop(stream.get_mut().write_all(&bytes));
                        break;
                    }
                    Act::Hang => drop(stream.read_line(&mut String::new())),
                }
            }
        }
    });
    seen
}

fn tcp(connections: Vec<Vec<Act>>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (url, serve(move || listener.accept().unwrap().0, connections))
}

fn client() -> Client {
    Client::new(Arc::new(Stop::new().unwrap()))
}

fn ask(
    client: &mut Client,
    endpoint: &Arc<Endpoint>,
    index: Option<u64>,
) -> Result<Response, Error> {
    let query = Query { service: "web".to_owned(), ..Query::default() };
    let wait = Duration::from_secs(60);
    let fetch = Fetch { index, ..Fetch::read(0, wait) };
    client.get(Request { endpoint, query: &query, view: View::Full, fetch, timeout: None })
}

fn once(endpoint: Endpoint) -> Result<Response, Error> {
    ask(&mut client(), &Arc::new(endpoint), None)
}

#[test]
fn a_connection_is_reused_and_an_index_is_sent_over_it() {
    let (url, seen) = tcp(vec![vec![small("[]"), small("[1]")]]);
    let (mut client, endpoint) = (client(), Arc::new(endpoint(&(url + "/prefix"))));
    let first = ask(&mut client, &endpoint, None).unwrap();
    assert_eq!((first.index, &first.body[..]), (Some(7), &b"[]"[..]));
    assert_eq!(first.content_type.as_deref(), Some("application/json"));
    assert_eq!(ask(&mut client, &endpoint, Some(7)).unwrap().body, b"[1]");
    assert!(seen.recv().unwrap().starts_with("GET /prefix/v1/health/service/web HTTP/1.1|"));
    let second = seen.recv().unwrap();
    assert!(second.starts_with("GET /prefix/v1/health/service/web?index=7&wait=60s HTTP/1.1|"));
    assert!(!second.to_lowercase().contains("token"), "{second}");
    assert!(!second.to_lowercase().contains("accept-encoding"), "{second}");
}

#[test]
fn an_index_never_goes_over_a_new_connection() {
    let last = format!("{OK}Content-Length: 2\r\n\r\n[]").into_bytes();
    let (url, seen) = tcp(vec![vec![Act::Last(last)], vec![small("[]")]]);
    let (mut client, endpoint) = (client(), Arc::new(endpoint(&url)));
    ask(&mut client, &endpoint, None).unwrap();
    // The close may still be on its way.
    thread::sleep(Duration::from_millis(50));
    assert!(matches!(ask(&mut client, &endpoint, Some(7)), Err(Error::Reconnected)));
    ask(&mut client, &endpoint, None).unwrap();
    assert_eq!(seen.iter().take(2).filter(|request| request.contains("index=")).count(), 0);
}

#[test]
fn a_stop_aborts_a_silent_request_and_a_slow_body_at_once() {
    let begun = format!("{OK}Content-Length: 100\r\n\r\n[").into_bytes();
    for acts in [vec![Act::Hang], vec![Act::Send(begun), Act::Hang]] {
        let (url, seen) = tcp(vec![acts]);
        let (mut client, endpoint) = (client(), Arc::new(endpoint(&url)));
        let stop = Arc::clone(&client.stop);
        let raised = thread::spawn(move || {
            seen.recv().unwrap();
            thread::sleep(Duration::from_millis(20));
            stop.raise();
            Instant::now()
        });
        let error = ask(&mut client, &endpoint, None).unwrap_err();
        assert!(matches!(error, Error::Stopped), "{error}");
        let late = raised.join().unwrap().elapsed();
        assert!(late < Duration::from_millis(500), "{late:?}");
        assert!(matches!(ask(&mut client, &endpoint, None), Err(Error::Stopped)));
    }
}

#[test]
fn a_connection_closed_without_a_byte_says_so() {
    let (url, _seen) = tcp(vec![vec![Act::Last(Vec::new())]]);
    let error = once(endpoint(&url)).unwrap_err();
    assert_eq!(error.to_string(), "connection closed without an answer");
}

#[test]
fn errors_of_the_connection_say_so() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let refused = once(endpoint(&format!("http://127.0.0.1:{port}"))).unwrap_err().to_string();
    assert!(refused.starts_with("cannot connect (Connection refused"), "{refused}");
    let missing = once(endpoint("unix:/nonexistent/sock")).unwrap_err().to_string();
    assert!(missing.starts_with("cannot connect (No such file"), "{missing}");
    let unknown = once(endpoint("http://no-such-host.invalid:1")).unwrap_err().to_string();
    assert!(unknown.starts_with("cannot resolve \"no-such-host.invalid\" ("), "{unknown}");
}

/// A listener whose backlog is full drops further SYNs: a black hole on loopback.
fn black_hole() -> (TcpListener, Vec<TcpStream>) {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::bind(&socket, &"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap()).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
        waiting.push(stream);
    }
    (listener, waiting)
}

#[test]
fn a_black_hole_costs_the_connect_timeout_and_a_stop_ends_even_that() {
    let (listener, _waiting) = black_hole();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let start = Instant::now();
    let timeout = Duration::from_millis(100);
    let error = once(Endpoint { connect_timeout: timeout, ..endpoint(&url) }).unwrap_err();
    assert_eq!(error.to_string(), "no connection within 100ms (consul_connect_timeout)");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());

    let mut client = client();
    let stop = Arc::clone(&client.stop);
    let endpoint = Endpoint { connect_timeout: Duration::from_secs(60), ..endpoint(&url) };
    let raised = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        stop.raise();
        Instant::now()
    });
    assert!(matches!(ask(&mut client, &Arc::new(endpoint), None), Err(Error::Stopped)));
    assert!(raised.join().unwrap().elapsed() < Duration::from_millis(500));
}

#[test]
fn a_16_mib_chunked_body_arrives_whole_and_a_longer_one_names_the_limit() {
    let body = vec![b' '; 16 << 20];
    let answer = |end: &[u8]| {
        let mut bytes = format!("{OK}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len());
        bytes.reserve(body.len());
        let mut bytes = bytes.into_bytes();
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(end);
        Act::Send(bytes)
    };
    let exact = answer(b"\r\n0\r\n\r\n");
    let longer = answer(b"\r\n1\r\n \r\n0\r\n\r\n");
    let (url, _seen) = tcp(vec![vec![exact, small("[]"), longer]]);
    let (mut client, endpoint) = (client(), Arc::new(endpoint(&url)));
    assert_eq!(ask(&mut client, &endpoint, None).unwrap().body.len(), 16 << 20);
    ask(&mut client, &endpoint, Some(7)).expect("the connection is still there");
    let error = ask(&mut client, &endpoint, None).unwrap_err().to_string();
    assert_eq!(error, "answer is longer than 16777216 bytes (consul_max_body_size)");
}

#[test]
fn an_announced_length_over_the_limit_is_not_even_read() {
    let act = Act::Send(format!("{OK}Content-Length: 99999999999\r\n\r\n").into_bytes());
    let (url, _seen) = tcp(vec![vec![act]]);
    assert!(matches!(once(endpoint(&url)), Err(Error::TooLong(_))));
}

#[test]
fn a_body_that_breaks_off_is_an_error() {
    for head in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        let bytes = format!("{OK}{head}\r\n\r\n5\r\n[").into_bytes();
        let (url, _seen) = tcp(vec![vec![Act::Last(bytes)]]);
        let error = once(endpoint(&url)).unwrap_err().to_string();
        assert!(error.starts_with("answer ended early ("), "{error}");
    }
}

#[test]
fn another_status_than_200_gives_its_first_line_and_keeps_the_connection() {
    let act = |text: &str| Act::Send(text.replace("LEN", "Content-Length:").into_bytes());
    let (url, _seen) = tcp(vec![vec![
        act(
            "HTTP/1.1 403 Forbidden\r\nX-Consul-Index: 1\r\nLEN 23\r\n\r\nACL not found\x07\nsecond l",
        ),
        act("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nLEN 0\r\n\r\n"),
        act("HTTP/1.1 429 Too Many Requests\r\nLEN 0\r\n\r\n"),
    ]]);
    let (mut client, endpoint) = (client(), Arc::new(endpoint(&url)));
    let mut error = || ask(&mut client, &endpoint, None).unwrap_err().to_string();
    assert_eq!(error(), "HTTP 403: ACL not found\\u{7}");
    assert_eq!(error(), "HTTP 302");
    assert_eq!(error(), "HTTP 429");
}

#[test]
fn recorded_answers_are_understood() {
    let first = |bytes: &[u8]| {
        let (url, _seen) = tcp(vec![vec![Act::Last(bytes.to_vec())]]);
        once(endpoint(&url))
    };
    let web = first(include_bytes!("../../testdata/health_service_web_chunked.http")).unwrap();
    assert_eq!(
        crate::consul::fetch::validate(&web, &Query::default(), None).unwrap().1.good.len(),
        5
    );
    assert_eq!((web.known_leader, web.last_contact), (Some(true), Some(Duration::ZERO)));
    let empty = first(include_bytes!("../../testdata/health_service_empty.http")).unwrap();
    assert_eq!((empty.index, &empty.body[..]), (Some(17), &b"[]"[..]));
    for (bytes, text) in [
        (&include_bytes!("../../testdata/403_acl_not_found.http")[..], "HTTP 403: ACL not found"),
        (include_bytes!("../../testdata/500_no_leader.http"), "HTTP 500: No cluster leader"),
        (include_bytes!("../../testdata/400_bad_index.http"), "HTTP 400: Invalid index"),
    ] {
        assert_eq!(first(bytes).unwrap_err().to_string(), text);
    }
}

#[test]
fn the_index_is_read_strictly() {
    for (text, index) in [
        ("18446744073709551615", Some(u64::MAX)),
        ("18446744073709551616", None),
        ("-1", None),
        ("+1", None),
        ("0x1", None),
        ("", None),
    ] {
        let head = OK.replace("Index: 7", &format!("Index: {text}"));
        let (url, _seen) =
            tcp(vec![vec![Act::Send(format!("{head}Content-Length: 2\r\n\r\n[]").into_bytes())]]);
        assert_eq!(once(endpoint(&url)).unwrap().index, index, "{text}");
    }
}

#[test]
fn the_token_is_sent_and_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "one\n").unwrap();
    let (url, seen) = tcp(vec![vec![small("[]"), small("[]")]]);
    let token = Some(Token::file(&path).unwrap());
    let (mut client, endpoint) = (client(), Arc::new(Endpoint { token, ..endpoint(&url) }));
    ask(&mut client, &endpoint, None).unwrap();
    std::fs::write(&path, "three").unwrap();
    ask(&mut client, &endpoint, None).unwrap();
    assert!(seen.recv().unwrap().to_lowercase().contains("|x-consul-token: one"));
    assert!(seen.recv().unwrap().to_lowercase().contains("|x-consul-token: three"));
}

#[test]
fn a_unix_socket_works() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("consul.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let _seen = serve(move || listener.accept().unwrap().0, vec![vec![small("[]")]]);
    assert_eq!(once(endpoint(&format!("unix:{}", path.display()))).unwrap().index, Some(7));
}

#[test]
fn deadlines_leave_consul_its_jitter() {
    assert_eq!(header_timeout(Some(Duration::from_secs(64))), Duration::from_secs(64 + 4 + 10));
    assert_eq!(header_timeout(None), SLACK);
}
