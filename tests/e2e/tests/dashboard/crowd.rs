//! Hundreds of services and 10,000 peers.

use std::fmt::Write as _;

use nginx_consul_e2e::fake_consul::instance;
use nginx_consul_e2e::{Config, FakeConsul, Look, Nginx, wait};
use serde_json::{Value, json};

use super::{assert_calm, open};
use crate::support::SOON;

const SERVICES: u16 = 300;
const PEERS: u16 = 10_000;

/// nginx that follows 300 services, which have 10,000 peers in all.
fn crowd() -> (FakeConsul, Nginx) {
    let consul = FakeConsul::start();
    let mut text = "consul_server %%CONSUL%%; consul_zone consul 64m; consul_connections 320;
        consul_init_timeout 10s;\n"
        .to_owned();
    for service in 0..SERVICES {
        let name = format!("s{service:03}");
        let peer = |n: u16| instance(&format!("{name}-{n}"), ([127, 9, 0, 1], 1000 + n).into());
        let peers: Vec<Value> = (service..PEERS).step_by(SERVICES.into()).map(peer).collect();
        consul.publish(&name, 2, &peers.into());
        let _ = writeln!(text, "upstream {name} {{ consul_dynamic {name}; }}");
    }
    text.push_str("server { listen 127.0.0.1:%%PORT%%; location = /consul { consul_status; } }");
    let nginx = Config::http(&text).set("CONSUL", consul.url()).start();
    wait::until_eq("peers in all", SOON * 4, &usize::from(PEERS), || {
        let status = nginx.status();
        let services = status["services"].as_array().cloned().unwrap_or_default();
        services.iter().map(|s| s["peers"].as_array().map_or(0, Vec::len)).sum::<usize>()
    });
    (consul, nginx)
}

#[test]
fn ten_thousand_peers_take_no_more_rows_than_the_window_shows() {
    let (consul, nginx) = crowd();
    let mut browser = open(&nginx, "#every=1", Look::WIDE);
    browser.until_shows("300 services, 10,000 peers");
    browser.evaluate(
        "window.tasks = []; new PerformanceObserver((seen) =>
            tasks.push(...seen.getEntries().map((e) => Math.round(e.duration)))).observe({ type: 'longtask' })",
    );
    let elements = "document.querySelectorAll('body *').length";
    let rows = "document.querySelectorAll('.row').length";
    let few = |seen: Value, most: u64| assert!(seen.as_u64() < Some(most), "{seen} of {most}");
    few(browser.evaluate(rows), 60);
    browser.until("a second answer", "document.querySelector('.service .big').textContent === '0'");
    println!("10,000 peers, services closed: {}", browser.text("#foot"));
    browser.press("e");
    browser.until("all are open", "document.querySelectorAll('.peer').length > 5");
    few(browser.evaluate(rows), 100);
    few(browser.evaluate(elements), 2500);
    // The list is as high as all its rows, and its end is where it belongs.
    browser
        .until("room for all rows", "document.querySelector('#list').offsetHeight > 10_000 * 30");
    browser.press("End");
    browser.until("the last peer", "document.activeElement.textContent.includes('s299-9899')");
    few(browser.evaluate(elements), 2500);
    browser.press("/");
    browser.enter("s123-7623");
    browser.until("one of them is found", "document.querySelectorAll('.peer').length === 1");
    browser.until_shows("1 service, 1 peer of 300 and 10,000");
    browser.press("Escape");
    consul.publish("s000", 3, &json!([]));
    browser.until(
        "a change is seen",
        "document.querySelector('.service .name').textContent === 's000'",
    );
    browser.until_shows("300 services, 9,966 peers");
    let cost = browser.text("#foot");
    let tasks = browser.evaluate("window.tasks");
    println!("10,000 peers, all open: {cost}; tasks over 50 ms: {tasks}");
    assert_calm(&mut browser);
}
