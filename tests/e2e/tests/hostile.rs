//! Names, tags and addresses come from whoever may register a service: they break nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nginx_consul_e2e::consul::Options;
use nginx_consul_e2e::fake_consul::{Answer, instance};
use nginx_consul_e2e::{Agent, Backend, Config, FakeConsul, Fault, Instance, Nginx, Proxy, wait};
use serde_json::{Value, json};

use crate::support::{SERVER, SOON, gateway, tally, unique, until_peers, until_served_by};

/// What somebody might register; the dashboard's tests show it in a browser.
pub(crate) const VALUES: [&str; 17] = [
    "a\n2026/01/01 00:00:00 [emerg] 1#1: forged",
    "a\r\nX-Injected: yes\r\n\r\n<h1>",
    "\u{1b}[2J\u{1b}[31mred\u{7}",
    "\u{9b}31mred",
    "say \"it\", 'it' and \\ it",
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "--></style></table><!--",
    "&lt;b&gt;&#60;",
    "%0a%0d%00%2e%2e%2f",
    "../../../etc/passwd",
    "a\u{0}b",
    "a\u{2028}b\u{2029}c\u{85}d",
    "\u{202e}drowssap\u{2066}\u{200f}",
    "${IFS}$(id)`id`;{{7*7}}%s%n",
    "\u{feff}zero\u{200b}width\u{ad}",
    "?index=1&token=x#f",
];

/// Whether a terminal, or a reader of lines, would take this for anything but a character.
pub(crate) fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Sees that the error log is text, one line for each message, and printable.
fn assert_log_is_sound(nginx: &Nginx) {
    let log = fs::read(nginx.prefix().join("error.log")).expect("error.log");
    let log = String::from_utf8(log).expect("UTF-8, also where a line is cut");
    assert!(log.ends_with('\n'));
    for line in log.split('\n').filter(|line| !line.is_empty()) {
        // 2026/11/23 04:05:06 [notice] 1#1: …
        let (date, rest) = line.split_at_checked(20).unwrap_or((line, ""));
        let is_date = date
            .bytes()
            .zip("0000/00/00 00:00:00 ".bytes())
            .all(|(is, shape)| if shape == b'0' { is.is_ascii_digit() } else { is == shape });
        assert!(is_date && rest.starts_with('['), "no line of nginx's: {line:?}");
        assert!(!line.contains(is_active), "not printable: {line:?}");
        let (_, text) = rest.split_once("] ").expect("a level");
        let number = text.split('#').next().unwrap_or_default();
        let own = [nginx.pid()].into_iter().chain(nginx.workers());
        assert!(own.map(|pid| pid.to_string()).any(|pid| pid == number), "forged: {line:?}");
    }
}

/// What the status document says of a service's peers, by service id.
fn peer(nginx: &Nginx, service: &str, id: &str) -> Value {
    let peers = nginx.service(service)["peers"].as_array().cloned().unwrap_or_default();
    peers.into_iter().find(|peer| peer["service_id"] == id).unwrap_or_default()
}

fn register_hostile(consul: &Agent, service: &str, backends: &[Backend]) {
    for (value, backend) in VALUES.iter().zip(backends) {
        let instance = Instance::new(service, value, backend.address());
        let instance = instance.tags(&[value, "plain"]).meta("key", value);
        consul.register_external(value, "127.0.0.1", &instance);
    }
}

#[test]
fn hostile_names_and_tags_are_shown_as_they_are_and_break_nothing() {
    // Of its own: node names are for all services.
    let (consul, service) = (Options::dev().start(), unique("web"));
    let names: Vec<String> = (0..VALUES.len()).map(|n| format!("b{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let backends = Backend::start_all(&names);
    let all: Vec<&Backend> = backends.iter().collect();
    for (n, backend) in backends.iter().enumerate() {
        let instance = Instance::new(&service, &format!("harmless{n}"), backend.address());
        consul.register_external(&format!("node{n}"), "127.0.0.1", &instance.tags(&["x", "y"]));
    }
    let proxy = Proxy::start(consul.address());
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("an open folder");
    let text = format!(
        "consul_state {}/state; consul_retry 50ms 300ms; consul_init_timeout 500ms;
         consul_server %%CONSUL%%; upstream api {{ consul_dynamic %%SERVICE%%; }} {SERVER}",
        folder.path().display()
    );
    let config = Config::http(&text).set("CONSUL", proxy.url()).set("SERVICE", &service);
    let mut nginx = config.clone().start();
    until_peers(&nginx, &service, &all);

    for n in 0..VALUES.len() {
        consul.deregister_external(&format!("node{n}"), &format!("harmless{n}"));
    }
    register_hostile(&consul, &service, &backends);
    let shown = |nginx: &Nginx| {
        VALUES.iter().all(|value| {
            let peer = peer(nginx, &service, value);
            (&peer["node"], &peer["tags"]) == (&json!(value), &json!([value, "plain"]))
        })
    };
    wait::until("all values in the JSON", SOON, || shown(&nginx));
    until_peers(&nginx, &service, &all);
    until_served_by_all(&nginx, &names);
    assert_log_is_sound(&nginx);

    // The file is the one that it was told to write, and holds the same.
    nginx.quit();
    proxy.set(Fault::Refuse);
    let files = fs::read_dir(folder.path()).expect("the folder").flatten();
    let files: Vec<_> = files.map(|entry| entry.file_name()).collect();
    assert_eq!(files, ["state"]);
    let nginx = config.start();
    assert_eq!(nginx.service(&service)["source"], "state file");
    assert!(shown(&nginx), "{:#}", nginx.service(&service));
    until_served_by_all(&nginx, &names);
    assert_log_is_sound(&nginx);

    // No request was any other than it should be.
    let target = format!("GET /v1/health/service/{service}");
    for request in proxy.requests("") {
        let rest = request.line.strip_prefix(&target).unwrap_or_else(|| panic!("{request:?}"));
        let plain = |c: char| c.is_ascii_alphanumeric() || "?&= /.".contains(c);
        assert!(rest.starts_with([' ', '?']) && rest.chars().all(plain), "{request:?}");
    }
}

/// Waits until a round of requests is answered by each of these once.
fn until_served_by_all(nginx: &Nginx, names: &[&str]) {
    let each: Vec<String> = names.iter().map(|name| format!("{name}: 1")).collect();
    wait::until_eq("who answers", SOON, &each.join(", "), || tally(nginx, "/", names.len()));
}

#[test]
fn hostile_instances_that_are_skipped_are_one_printable_line_each() {
    let (consul, service) = (Options::dev().start(), unique("web"));
    let backend = Backend::start("a");
    consul.register(&Instance::new(&service, "good", backend.address()));
    // One of the values tries to look like an alert, which no log may have at the end.
    let config = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").allow("forged");
    let nginx = config.start();
    until_served_by(&nginx, "/", "a");
    let lines = || nginx.logged(" skipped: ");
    let no_port = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    for (n, value) in VALUES.iter().enumerate() {
        // Two at a time: of a multitude in one answer, ten are named.
        consul.register_external(value, "127.0.0.1", &Instance::new(&service, value, no_port));
        let bad = Instance::new(&service, &format!("bad{n}"), backend.address()).address(value);
        consul.register_external("elsewhere", "127.0.0.1", &bad);
        wait::until("a line for each", SOON, || lines().len() >= 2 * (n + 1));
    }
    for line in lines() {
        assert!(line.contains("[warn]"), "{line}");
        assert!(line.contains("port 0 is not") || line.contains("invalid address"), "{line}");
    }
    assert_eq!(lines().len(), 2 * VALUES.len(), "{:#?}", lines());
    assert_log_is_sound(&nginx);
    assert_eq!(tally(&nginx, "/", 4), "a: 4");
}

#[test]
fn names_of_100_kb_are_cut_and_leave_room_for_others() {
    let consul = FakeConsul::start();
    let backends = Backend::start_all(&["a", "b", "c"]);
    consul.publish("web", 7, &json!([instance("web-1", backends[0].address())]));
    consul.publish("other", 7, &json!([instance("other-1", backends[0].address())]));
    let text = format!(
        "consul_server {}; consul_zone consul 1m;
         upstream api {{ consul_dynamic web tag=last; }} upstream o {{ consul_dynamic other; }}
         {}",
        consul.url(),
        SERVER.replace("location / {", "location /o { proxy_pass http://o; } location / {"),
    );
    let nginx = Config::http(&text).start();
    until_served_by(&nginx, "/o", "a");
    let used = || nginx.status()["zone"]["used"].as_u64().expect("a size");
    let before = used();
    let long = |end: &str| format!("<{}{end}", "\u{1b}é".repeat(33_000));
    let many: Vec<String> = (0..20_000).map(|n| format!("tag{n}")).chain(["last".into()]).collect();
    let mut huge: Vec<Value> = Vec::new();
    for (backend, end) in backends.iter().zip(["1", "2", "3"]) {
        let mut one = instance(&long(end), backend.address());
        one["Node"]["Node"] = json!(long("node"));
        one["Node"]["Datacenter"] = json!(long("dc"));
        one["Service"]["Tags"] = json!([&[long("tag")], &many[..]].concat());
        huge.push(one);
    }
    let mut bad = instance(&long("bad"), backends[0].address());
    bad["Service"]["Address"] = json!(long("address"));
    huge.push(bad);
    consul.publish("web", 8, &Value::Array(huge));
    until_served_by(&nginx, "/", "a b c");
    let taken = used() - before;
    println!("3 instances take {taken} bytes of the zone");
    assert!(taken < 100_000, "{taken} bytes");

    let peers = nginx.service("web")["peers"].as_array().cloned().expect("peers");
    let ids: std::collections::BTreeSet<&str> =
        peers.iter().filter_map(|peer| peer["service_id"].as_str()).collect();
    assert_eq!(ids.len(), 3, "they stay different");
    for id in ids {
        assert!(id.len() <= 512 && long("").starts_with(&id[..400]), "{id:?}");
    }
    let line = nginx.wait_for_log(" skipped: invalid address");
    assert!(line.len() < 1000, "{line}");
    assert!(nginx.get("/consul?format=json").body.len() < 100_000);
    assert_log_is_sound(&nginx);
    // Another service still has all the room that it needs.
    let others: Vec<Value> =
        backends.iter().map(|b| instance(&format!("o-{}", b.name()), b.address())).collect();
    consul.publish("other", 8, &json!(others));
    until_served_by(&nginx, "/o", "a b c");
}

#[test]
fn bytes_that_are_no_text_change_nothing() {
    let consul = FakeConsul::start();
    let backends = Backend::start_all(&["a", "b"]);
    let good = json!([instance("web-1", backends[0].address())]);
    consul.publish("web", 7, &good);
    let nginx = gateway(&consul.url(), "web", "consul_dynamic web; consul_retry 50ms 300ms;");
    let nginx = nginx.start();
    until_served_by(&nginx, "/", "a");

    // Consul writes U+FFFD for such bytes: this is no answer of Consul's.
    let body = json!([instance("XX", backends[1].address())]).to_string().into_bytes();
    let at = body.windows(2).position(|pair| pair == b"XX").expect("the id");
    let mut broken = body;
    broken[at..at + 2].copy_from_slice(b"\xff\xc0");
    consul.publish_bytes("web", 8, broken);
    wait::until("it is refused", SOON, || {
        nginx.service("web")["last_error"].as_str().is_some_and(|text| text.contains("not a list"))
    });
    assert_eq!(tally(&nginx, "/", 4), "a: 4");
    nginx.wait_for_log("the answer is not a list of instances");
    assert_log_is_sound(&nginx);

    // Half a character written as JSON allows it costs its own instance only.
    let text =
        json!([instance("web-1", backends[0].address()), instance("XX", backends[1].address())]);
    let text = text.to_string().replace("XX", "\\ud800");
    consul.publish_text("web", 9, text);
    let line = nginx.wait_for_log(" skipped: ");
    assert!(line.contains("[warn]") && line.contains("web"), "{line}");
    wait::until("it is good again", SOON, || nginx.service("web")["failures"] == 0);
    assert_eq!(tally(&nginx, "/", 4), "a: 4");
    // A character beyond the first 65,536 is a pair of escapes, and a name like any other.
    let text = json!([instance("XX", backends[1].address())]).to_string();
    consul.publish_text("web", 10, text.replace("XX", "\\ud83d\\ude00"));
    until_served_by(&nginx, "/", "b");
    assert_eq!(peer(&nginx, "web", "\u{1f600}")["node"], "fake");
    assert_log_is_sound(&nginx);
}

#[test]
fn an_error_that_a_server_words_is_one_printable_line() {
    let consul = FakeConsul::start();
    let backend = Backend::start("a");
    consul.publish("web", 7, &json!([instance("web-1", backend.address())]));
    let nginx = gateway(&consul.url(), "web", "consul_dynamic web; consul_retry 50ms 300ms;");
    let nginx = nginx.start();
    until_served_by(&nginx, "/", "a");
    consul.script(|_| Some(Answer::error(500, "harmless")));
    wait::until("an error", SOON, || nginx.service("web")["failures"].as_u64() > Some(0));
    for value in VALUES {
        let before = nginx.service("web")["failures"].as_u64();
        consul.script(move |_| Some(Answer::error(500, value)));
        let first = value.lines().next().unwrap_or_default().trim();
        let begin: String = first.chars().take_while(|c| !is_active(*c)).collect();
        wait::until(&format!("{value:?} in status"), SOON, || {
            let now = nginx.service("web");
            let shown = now["last_error"].clone();
            // The failure after next has surely seen the new script.
            now["failures"].as_u64() >= before.map(|n| n + 2)
                && shown
                    .as_str()
                    .is_some_and(|text| text.starts_with(&format!("HTTP 500: {begin}")))
        });
        let shown = nginx.service("web")["last_error"].clone();
        assert!(!shown.as_str().expect("a text").contains(is_active), "{shown}");
    }
    assert_log_is_sound(&nginx);
    assert_eq!(tally(&nginx, "/", 4), "a: 4");
}
