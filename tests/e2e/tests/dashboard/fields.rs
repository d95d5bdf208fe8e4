//! What the JSON may say, field by field: each is shown, or what follows from it.

use nginx_consul_e2e::{Browser, Config, Look, Nginx};
use serde_json::{Value, json};

use super::{assert_calm, open, texts};

/// nginx whose dashboard is told this.
fn told(status: &Value) -> Nginx {
    let text = "server {
        listen 127.0.0.1:%%PORT%%;
        location = /consul {
            if ($arg_format = json) { rewrite ^ /status.json last; }
            consul_status;
        }
        location = /status.json { root %%PREFIX%%; default_type application/json; }
    }";
    Config::http(text).file("status.json", status.to_string()).start()
}

/// The document, with these services.
fn status(services: Value, upstreams: Value) -> Value {
    json!({
        "version": 1, "time_ms": 1_800_000_000_000_u64,
        "module": { "version": "0.1.0" }, "nginx": { "version": "1.22.1", "pid": 7, "worker": 1 },
        "zone": { "name": "consul", "size": 10_485_760, "used": 5_242_880 },
        "connections": { "max": 64, "used": 9 },
        "state": { "path": "/var/lib/state", "age_seconds": 7.5, "error": "No space left on device" },
        "upstreams": upstreams, "services": services,
    })
}

fn upstream(name: &str, tiers: &[(&str, u32)], in_use: Option<&str>, panic: bool) -> Value {
    let tiers =
        tiers.iter().map(|(name, usable)| json!({ "name": name, "peers": 3, "usable": usable }));
    json!({
        "name": name, "service": "web", "method": "round_robin", "panic": panic, "in_use": in_use,
        "tiers": tiers.collect::<Vec<_>>(),
    })
}

/// A service that is well, but for what `change` changes.
fn service(name: &str, peers: Value, change: Value) -> Value {
    let mut service = json!({
        "service": name, "from": "health", "upstreams": [name], "tags": [], "status": "passing",
        "servers": ["http://a:8500", "http://b:8500"], "server": "http://a:8500", "mode": "blocking",
        "index": 4711, "generation": 3, "source": "live", "last_good_seconds": 0.31,
        "last_change_seconds": 90.0, "last_error": null, "failures": 0, "backoff_ms": null,
        "refusals": {}, "pending": null, "history": [], "frozen": null, "peers": peers,
    });
    for (name, value) in change.as_object().expect("fields") {
        service[name] = value.clone();
    }
    service
}

fn peer(n: u16, state: &str, change: Value) -> Value {
    let mut peer = json!({
        "server": format!("10.0.0.{n}:80"), "node": "n", "service_id": format!("id-{n}"), "tags": [],
        "health": "passing", "weight": 10, "effective_weight": 10, "backup": false, "in_flight": 0,
        "max_conns": 0, "picks": 10, "fails": 0, "state": state, "latency_ms": null, "override": null,
    });
    for (name, value) in change.as_object().expect("fields") {
        peer[name] = value.clone();
    }
    peer
}

fn up() -> Value {
    json!([peer(1, "up", json!({}))])
}

/// What a service of this name shows, closed or open, as `column`.
fn of(browser: &mut Browser, name: &str, column: &str) -> String {
    let find = format!(
        "[...document.querySelectorAll('.service')].find((row) =>
            row.querySelector('.name').textContent === {name:?})?.querySelector('.{column}').innerText"
    );
    browser.evaluate(&find).as_str().unwrap_or_default().to_owned()
}

#[test]
fn every_way_to_be_ill_has_its_word_and_sentence() {
    let services = json!([
        service("none", json!([]), json!({})),
        service(
            "failing",
            up(),
            json!({ "failures": 3, "last_error": "HTTP 500: <b>no</b>",
            "last_good_seconds": 32.0, "backoff_ms": 4100 })
        ),
        service(
            "never",
            json!([]),
            json!({ "failures": 3, "last_error": "cannot connect",
            "last_good_seconds": null, "index": 0 })
        ),
        service("fallback", up(), json!({})),
        service("file", up(), json!({ "source": "state file", "last_good_seconds": null })),
        service("zone", up(), json!({ "source": "zone" })),
        service("old", up(), json!({ "last_good_seconds": 4000.0 })),
        service("pending", up(), json!({ "pending": { "removals": 2, "confirmed": 1, "of": 3 } })),
        service("kept", up(), json!({ "pending": { "removals": 1, "confirmed": 0, "of": 0 } })),
        service(
            "frozen",
            up(),
            json!({ "frozen": { "by": "ann@::1", "since_ms": 1, "until_ms": null } })
        ),
        service("full", up(), json!({ "zone_full": true })),
        service(
            "degraded",
            json!([
                peer(1, "up", json!({})),
                peer(2, "unavail", json!({})),
                peer(3, "busy", json!({}))
            ]),
            json!({})
        ),
        service(
            "panic",
            json!([peer(1, "up", json!({})), peer(2, "unavail", json!({}))]),
            json!({})
        ),
        service(
            "out",
            json!([peer(1, "unavail", json!({})), peer(2, "down", json!({}))]),
            json!({})
        ),
        service(
            "well",
            json!([
                peer(1, "up", json!({})),
                peer(2, "draining", json!({})),
                peer(3, "down", json!({})),
                peer(4, "recovering", json!({}))
            ]),
            json!({})
        ),
    ]);
    let upstreams = json!([
        upstream("none", &[("instances", 0)], None, false),
        upstream("out", &[("instances", 0), ("servers", 1)], Some("servers"), false),
        upstream("fallback", &[("dc1", 0), ("dc2", 2)], Some("dc2"), false),
        upstream("panic", &[("instances", 1)], Some("instances"), true),
    ]);
    let nginx = told(&status(services, upstreams));
    let mut browser = open(&nginx, "", Look { height: 2400, ..Look::WIDE });
    for (name, word, sentence) in [
        (
            "none",
            "no peers",
            "Consul has listed no passing instance for 90 s. Requests to none get 502.",
        ),
        (
            "failing",
            "failing",
            "No good answer for 32 s: HTTP 500: <b>no</b>. \
            Requests go on to the last known 1 peer. Next try in 4.1 s.",
        ),
        ("never", "no peers", "Consul has not given a good answer yet: cannot connect."),
        (
            "fallback",
            "fallback",
            "Upstream fallback sends requests to dc2: no peer in dc1 is usable.",
        ),
        (
            "file",
            "stale",
            "The peers come from the state file: Consul hasn't answered since nginx started.",
        ),
        (
            "zone",
            "stale",
            "The peers are those from before the reload: Consul hasn't confirmed them since.",
        ),
        ("old", "stale", "The last good answer is 67 min old, more than a query may wait."),
        (
            "pending",
            "stale",
            "The last answer lacks 2 peers; they stay in use until 3 reads agree (1 so far).",
        ),
        ("kept", "stale", "The last answer lacks 1 peer; they stay in use (consul_empty keep)."),
        ("frozen", "stale", "Frozen by ann@::1 since "),
        (
            "full",
            "stale",
            "The shared zone is full: the last answer could not be taken over (consul_zone).",
        ),
        ("degraded", "degraded", "1 of 3 peers is kept out after failures (max_fails)"),
        ("degraded", "degraded", "1 of 3 peers is full (max_conns)."),
        (
            "panic",
            "degraded",
            "Upstream panic is in panic mode: so many peers have failed that failures are ignored.",
        ),
        (
            "out",
            "fallback",
            "None of 2 peers takes requests: 1 unavail, 1 down. Upstream out sends requests to \
            its own server lines: none of its instances is usable.",
        ),
        (
            "well",
            "ok",
            "1 of 4 peers is draining. 1 of 4 peers is down on purpose. \
            1 of 4 peers is coming back slowly (slow_start).",
        ),
    ] {
        assert_eq!(of(&mut browser, name, "badge"), word, "{name}");
        let why = of(&mut browser, name, "why");
        assert!(why.contains(sentence), "{name}: {why:?} lacks {sentence:?}");
    }
    let order = browser.evaluate(&texts(".service .badge"));
    let order: Vec<String> = serde_json::from_value(order).expect("words");
    let worst_first = ["no peers", "failing", "fallback", "stale", "degraded", "ok"];
    assert!(order.is_sorted_by_key(|word| worst_first.iter().position(|w| w == word)), "{order:?}");
    assert_eq!(browser.text(".tile .value"), "14");
    for text in ["of 15 need a look", "50%", "No space left on device", "9 of 64 watch connections"]
    {
        browser.until_shows(text);
    }
    assert_calm(&mut browser);
}

#[test]
fn an_open_service_shows_all_that_is_known() {
    let peers = json!([
        peer(
            1,
            "recovering",
            json!({ "effective_weight": 2.5, "latency_ms": 3.25, "tags": ["v1", "blue"] })
        ),
        peer(2, "busy", json!({ "in_flight": 4, "max_conns": 4, "fails": 2, "picks": 30 })),
        peer(
            3,
            "draining",
            json!({ "override": { "action": "drain", "weight": null, "by": "ann@10.0.0.9",
            "since_ms": 1, "until_ms": null } })
        ),
        peer(
            4,
            "up",
            json!({ "backup": true, "health": "warning", "weight": 1, "effective_weight": 5,
            "override": { "action": "weight", "weight": 5, "by": "bob", "since_ms": 1, "until_ms": 2 } })
        ),
    ]);
    let now = 1_800_000_000_000_u64;
    let history = json!([
        { "time_ms": now - 42_000, "generation": 3, "joined": ["10.0.0.4:80"], "left": ["10.0.0.9:80"],
          "joined_total": 1, "left_total": 3, "changed_total": 0 },
        { "time_ms": now - 7_200_000, "generation": 2, "joined": [], "left": [], "joined_total": 0,
          "left_total": 0, "changed_total": 2 },
    ]);
    let change = json!({
        "history": history, "mode": "triggered", "delay_ms": 2500, "datacenter": "dc1", "tags": ["blue"],
        "filter": "Service.Meta.a == b", "refusals": { "no_leader": 3, "stale": 1 },
    });
    let tiers = [("dc1", 3), ("dc2", 0)];
    let document = status(
        json!([service("web", peers, change)]),
        json!([upstream("web", &tiers, Some("dc1"), false)]),
    );
    let nginx = told(&document);
    let mut browser = open(&nginx, "#sort=name", Look::WIDE);
    browser.until("its peers", &format!("{}.length === 4", texts(".peer")));
    let shown = browser.text("main");
    for text in [
        "in dc1",
        "tag blue",
        "filter Service.Meta.a == b",
        "http://a:8500",
        "http://b:8500",
        "triggered, changes seen within 2.5 s",
        "4711, generation 3",
        "no_leader 3, stale 1",
        "42 s ago",
        "+10.0.0.4:80",
        "−10.0.0.9:80",
        "−2 more",
        "2 h ago",
        "2 peers changed",
        "dc1 3/3",
        "dc2 0/3",
        "2.5 of 10",
        "3.3 ms",
        "4 of 4",
        "backup",
        "warning",
        "set drain",
        "set weight 5",
        "5 of 1",
    ] {
        assert!(shown.contains(text), "no {text:?} in\n{shown}");
    }
    let title =
        browser.evaluate("document.querySelector('.peer[data-state=draining] .marks .tag').title");
    assert!(title.as_str().is_some_and(|t| t.starts_with("set by ann@10.0.0.9 since ")), "{title}");
    let used = browser.evaluate(&texts(".tier[data-used]"));
    assert_eq!(used, json!(["dc1 3/3"]));
    assert_eq!(browser.evaluate(&texts(".peer .percent")), json!(["17%", "50%", "17%", "17%"]));
    assert_calm(&mut browser);
}

#[test]
fn services_named_by_requests_stand_beside_the_others() {
    let mut document = status(json!([service("web", up(), json!({}))]), json!([]));
    let named = service("shop", up(), json!({ "last_used_seconds": 2.5 }));
    document["on_demand"] = json!({ "max": 5000, "services": [named] });
    let nginx = told(&document);
    let mut browser = open(&nginx, "", Look::WIDE);
    assert_eq!(browser.evaluate(&texts(".service .name")), json!(["shop", "web"]));
    browser.until_shows("named by requests, last 2.5 s ago");
    browser.until_shows("1 of at most 5,000 services on demand");
    assert_calm(&mut browser);
}

#[test]
fn idle_connections_are_told_of_a_service_and_of_each_peer() {
    let connections = |idle: u32, opened: u32, reused: u32| json!({ "connections": { "idle": idle, "active": 1, "opened": opened, "reused": reused } });
    let peers = json!([peer(1, "up", connections(2, 3, 17)), peer(2, "up", connections(0, 2, 78))]);
    let without = service("plain", up(), json!({ "peers": [peer(3, "up", json!({}))] }));
    let nginx = told(&status(json!([service("kept", peers, json!({})), without]), json!([])));
    let mut browser = open(&nginx, "#open=kept", Look::WIDE);
    browser.until_shows("2 idle, 2 active, 95% of requests on one in use before");
    let titles =
        browser.evaluate("[...document.querySelectorAll('.peer .flight')].map((e) => e.title)");
    let first = "connections: 2 idle, 1 active, 3 opened; 17 requests on one in use before";
    assert_eq!(titles[0], first);
    assert_calm(&mut browser);
    browser.until("both are open", &format!("{}.length === 2", texts(".facts")));
    let facts = browser.evaluate(&texts(".facts"));
    let told = facts.as_array().expect("facts of both").iter();
    let told = told.filter(|facts| facts.as_str().is_some_and(|text| text.contains("connections")));
    assert_eq!(told.count(), 1, "{facts}");
}
