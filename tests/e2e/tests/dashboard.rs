//! The dashboard, in a real Chromium.

use nginx_consul_e2e::{Agent, Backend, Browser, Fault, Instance, Look, Nginx, Proxy, ports};
use serde_json::{Value, json};

use crate::support::{follow, gateway, register, register_one, tally, unique, until_peers};

mod crowd;
mod fields;
mod hostile;
mod moves;

/// Opens the page; `rest` follows its path.
fn open(nginx: &Nginx, rest: &str, look: Look) -> Browser {
    let mut browser = Browser::open(&format!("http://{}/consul{rest}", nginx.address()), look);
    browser.until("the first answer is shown", "document.querySelector('#overview:not([hidden])')");
    browser
}

/// Sees that nothing went to the console, and that no rule of the policy was broken.
#[track_caller]
fn assert_calm(browser: &mut Browser) {
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// Expression: the texts of what a selector finds.
fn texts(selector: &str) -> String {
    format!("[...document.querySelectorAll({selector:?})].map((e) => e.textContent)")
}

/// Expression: whether the servers of the peers shown are exactly these.
fn shows_peers(backends: &[&Backend]) -> String {
    let mut servers: Vec<String> = backends.iter().map(|b| b.address().to_string()).collect();
    servers.sort_unstable();
    format!("{}.sort().join() === {:?}", texts(".peer .server"), servers.join(","))
}

#[test]
fn it_shows_a_service_its_peers_and_their_share_of_the_requests() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let instance = Instance::new(&service, "dashboard-a", backends[0].address());
    consul.register(&instance.tags(&["v1", "blue"]).weights(3, 1));
    consul.register(&Instance::new(&service, "dashboard-b", backends[1].address()));
    let nginx = follow(&consul.url(), &service);
    until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
    assert_eq!(tally(&nginx, "/", 8), "a: 6, b: 2");
    let mut browser = open(&nginx, "#sort=requests", Look::WIDE);
    browser.until("both peers", &shows_peers(&[&backends[0], &backends[1]]));
    assert_eq!(browser.text(".service .name"), service);
    assert_eq!(browser.text(".service .badge"), "ok");
    assert_eq!(browser.text(".service .up-count"), "2/2");
    let row = |column: &str| texts(&format!(".peer .{column}"));
    let by_id = browser.evaluate(&format!(
        "{}.map((id, at) => [id, {}[at], {}[at], {}[at]]).sort()",
        row("id"),
        row("percent"),
        row("weight"),
        row("word")
    ));
    let expected = json!([["dashboard-a", "75%", "3", "up"], ["dashboard-b", "25%", "1", "up"]]);
    assert_eq!(by_id, expected);
    let shown = browser.text("body");
    for text in
        ["v1", "blue", consul.node(), &consul.url(), "blocking", "round_robin", "instances 2/2"]
    {
        assert!(shown.contains(text), "no {text:?} in\n{shown}");
    }
    let index = nginx.service(&service)["index"].to_string();
    assert!(browser.text(".facts").contains(&index), "{}", browser.text(".facts"));
    // Requests between two looks make a rate; more of them, until it is seen.
    browser
        .until("a rate of nought", "document.querySelector('.service .big').textContent === '0'");
    tally(&nginx, "/", 40);
    browser.until("a rate", "Number(document.querySelector('.service .big').textContent) > 0");
    assert_calm(&mut browser);
}

#[test]
fn a_registration_shows_without_reloading() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let nginx = follow(&consul.url(), &service);
    until_peers(&nginx, &service, &[&backends[0]]);
    let mut browser = open(&nginx, "#every=1", Look::WIDE);
    browser.until("one peer", &shows_peers(&[&backends[0]]));
    browser.evaluate("window.stays = true");
    let id = register_one(&consul, &service, &backends[1]);
    browser.until("two peers", &shows_peers(&[&backends[0], &backends[1]]));
    consul.deregister(&id);
    browser.until("one peer again", &shows_peers(&[&backends[0]]));
    consul.deregister(&format!("{service}-a"));
    browser.until_shows("Consul has listed no passing instance for ");
    browser.until_shows("Requests to api get 502.");
    assert_eq!(browser.text(".service .badge"), "no peers");
    assert_eq!(
        browser.evaluate("[window.stays, document.title]"),
        json!([true, "(1) nginx-consul"])
    );
    assert_calm(&mut browser);
}

#[test]
fn what_is_wrong_comes_first_and_says_why() {
    let (consul, well, ill) = (Agent::shared(), unique("a-well"), unique("z-ill"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &well, &backends[..1]);
    register(&consul, &ill, &backends[1..]);
    let proxy = Proxy::start(consul.address());
    let nginx = gateway(
        &consul.url(),
        &well,
        "consul_dynamic %%SERVICE%%; } upstream other { consul_server %%PROXY%%;
         consul_retry 50ms 100ms; consul_dynamic %%ILL%%;",
    )
    .set("PROXY", proxy.url())
    .set("ILL", &ill)
    .start();
    until_peers(&nginx, &ill, &[&backends[1]]);
    let mut browser = open(&nginx, "#every=1", Look::WIDE);
    let names = texts(".service .name");
    browser.until("by name", &format!("{names}.join() === '{well},{ill}'"));
    proxy.set(Fault::Refuse);
    browser.until("what fails is on top", &format!("{names}.join() === '{ill},{well}'"));
    let why = browser.text(".service .why");
    assert!(why.starts_with("No good answer for ") && why.contains(": "), "{why}");
    assert!(why.contains("Requests go on to the last known 1 peer."), "{why}");
    assert_eq!(browser.text(".chip[data-filter=failing] b"), "1");
    browser.click(".chip[data-filter=failing]");
    browser.until("only what fails", &format!("{names}.join() === {ill:?}"));
    proxy.set(Fault::Pass);
    browser.until_shows("Nothing matches the search and the filters.");
    browser.click("#clear");
    browser.until("by name again", &format!("{names}.join() === '{well},{ill}'"));
    assert_calm(&mut browser);
}

#[test]
fn it_says_that_there_is_no_data_and_goes_on_when_there_is() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    // Between browser and nginx, so that only the page's requests fail.
    let nginx = follow(&consul.url(), &service);
    let proxy = Proxy::start(nginx.address());
    let mut browser = Browser::open(&format!("{}/consul#every=1", proxy.url()), Look::WIDE);
    browser.until("the peer", &shows_peers(&[&backend]));
    assert_eq!(browser.text("#live"), "live");
    proxy.set(Fault::Refuse);
    browser.until_shows("No data: ");
    browser.until_shows("What you see is from ");
    browser.until("its age", "document.querySelector('#live-text').textContent.endsWith(' s old')");
    assert_eq!(browser.text(".peer .server"), backend.address().to_string());
    proxy.set(Fault::Pass);
    browser.until("live again", "document.querySelector('#live-text').textContent === 'live'");
    assert_eq!(browser.text("#notices"), "");
    // Chromium itself tells of requests that failed; nothing else is wrong.
    let others = |text: &String| !text.contains("net::ERR_");
    assert_eq!(browser.complaints().into_iter().filter(others).collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn a_consul_that_never_answered_is_said_plainly() {
    let nginx = follow(&format!("http://127.0.0.1:{}", ports::free()), "web");
    let mut browser = open(&nginx, "#every=1", Look::WIDE);
    browser.until_shows("Consul has not given a good answer yet: ");
    browser.until_shows("Nothing is known of its instances. Requests to api get 502.");
    assert_eq!(browser.text(".service .badge"), "no peers");
    assert_calm(&mut browser);
}

#[test]
fn the_page_of_one_service_shows_no_other() {
    let (consul, one, other) = (Agent::shared(), unique("one"), unique("other"));
    let text = "consul_dynamic %%SERVICE%%; } upstream other { consul_dynamic %%OTHER%%;";
    let nginx = gateway(&consul.url(), &one, text).set("OTHER", &other).start();
    let mut browser = open(&nginx, &format!("?service={one}"), Look::WIDE);
    browser.until_shows(&format!("Only the service {one}."));
    assert_eq!(browser.evaluate(&texts(".service .name")), json!([one]));
    browser.click("#notices a");
    browser.until("both", &format!("{}.length === 2", texts(".service .name")));
    assert_calm(&mut browser);
}

#[test]
fn light_and_dark_follow_the_system_until_one_is_chosen() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let nginx = follow(&consul.url(), &service);
    let mut browser = open(&nginx, "", Look::WIDE);
    let ground = "getComputedStyle(document.body).backgroundColor";
    let light = browser.evaluate(ground);
    browser.look(Look { dark: true, ..Look::WIDE });
    let dark = browser.evaluate(ground);
    assert_ne!(light, dark);
    let theme = |browser: &mut Browser| -> (Value, Value) {
        (browser.evaluate("document.documentElement.dataset.theme"), browser.evaluate(ground))
    };
    assert_eq!(theme(&mut browser), (json!("auto"), dark.clone()));
    browser.press("t");
    assert_eq!(theme(&mut browser), (json!("light"), light.clone()));
    browser.reload();
    browser.until("it is shown again", "document.querySelector('#overview:not([hidden])')");
    assert_eq!(theme(&mut browser), (json!("light"), light));
    browser.click("#theme");
    assert_eq!(theme(&mut browser), (json!("dark"), dark));
    assert_calm(&mut browser);
}
