//! Search, filters, keyboard, links, small screens.

use nginx_consul_e2e::{Agent, Backend, Browser, Config, FakeConsul, Instance, Look, Nginx};
use serde_json::json;

use super::{assert_calm, open, texts};
use crate::support::{SERVER, gateway, register, tally, unique, until_peers};

/// nginx with upstreams of four services; `alpha` has two peers, the others one each.
fn four() -> (FakeConsul, Nginx) {
    let consul = FakeConsul::start();
    let peer = |id: &str, port: u16| {
        nginx_consul_e2e::fake_consul::instance(id, ([127, 9, 0, 1], port).into())
    };
    consul.publish("alpha", 2, &json!([peer("alpha-1", 1001), peer("alpha-2", 1002)]));
    for (port, name) in (2001..).zip(["beta", "gamma", "delta"]) {
        consul.publish(name, 2, &json!([peer(&format!("{name}-1"), port)]));
    }
    let upstreams = ["alpha", "beta", "gamma", "delta"]
        .map(|name| format!("upstream {name} {{ consul_dynamic {name}; }}"))
        .join("\n");
    let text = format!("consul_server %%CONSUL%%; {upstreams} {}", SERVER.replace("api", "alpha"));
    let nginx = Config::http(&text).set("CONSUL", consul.url()).start();
    (consul, nginx)
}

fn until_names(browser: &mut Browser, names: &str) {
    browser.until("these services", &format!("{}.join() === {names:?}", texts(".service .name")));
}

#[test]
fn search_and_filters_stand_in_the_link() {
    let (_consul, nginx) = four();
    let mut browser = open(&nginx, "", Look::WIDE);
    until_names(&mut browser, "alpha,beta,delta,gamma");
    assert_eq!(browser.evaluate(&texts(".peer")), json!([]), "closed, as there are many");
    for (words, services, peers) in [
        ("gam", "gamma", ""),
        ("alpha 1002", "alpha", "alpha-2"),
        ("127.9.0.1:200", "beta,delta,gamma", "beta-1,delta-1,gamma-1"),
        ("fake alpha-1", "alpha", "alpha-1"),
        ("nobody", "", ""),
    ] {
        browser.press("Escape");
        browser.press("/");
        browser.enter(words);
        until_names(&mut browser, services);
        let ids = browser.evaluate(&format!("{}.join()", texts(".peer .id")));
        assert_eq!(ids, peers, "{words}");
    }
    browser.press("Escape");
    until_names(&mut browser, "alpha,beta,delta,gamma");
    browser.press("/");
    browser.enter("alpha-");
    browser.evaluate(
        "document.querySelector('#sort').value = 'name';
        document.querySelector('#sort').dispatchEvent(new Event('change'))",
    );
    browser.click(".chip[data-filter=up]");
    until_names(&mut browser, "alpha");
    let fragment = browser.evaluate("location.hash");
    assert_eq!(fragment, "#q=alpha-&state=up&sort=name");
    assert_eq!(browser.text("#found"), "1 service, 2 peers of 4 and 5");
    let mut other = open(&nginx, fragment.as_str().expect("a fragment"), Look::WIDE);
    until_names(&mut other, "alpha");
    let controls =
        "[document.querySelector('#search').value, document.querySelector('#sort').value,
        document.querySelector('.chip[data-filter=up]').getAttribute('aria-pressed')]";
    assert_eq!(other.evaluate(controls), json!(["alpha-", "name", "true"]));
    assert_calm(&mut browser);
    assert_calm(&mut other);
}

#[test]
fn the_keyboard_is_enough() {
    let (_consul, nginx) = four();
    let mut browser = open(&nginx, "", Look::WIDE);
    until_names(&mut browser, "alpha,beta,delta,gamma");
    let at = "(document.activeElement.querySelector?.('.name, .id') ?? document.activeElement).textContent";
    let mut press = |keys: &[&str]| {
        keys.iter().for_each(|key| browser.press(key));
        let row = browser.evaluate(at).as_str().unwrap_or_default().to_owned();
        (row, browser.evaluate("document.activeElement.getAttribute('aria-expanded')"))
    };
    assert_eq!(press(&["j"]), ("alpha".into(), json!("false")));
    assert_eq!(press(&["j", "ArrowDown", "k"]), ("beta".into(), json!("false")));
    assert_eq!(press(&["Home", "Enter"]), ("alpha".into(), json!("true")));
    assert_eq!(press(&["j", "j"]), ("alpha-2".into(), json!(null)));
    assert_eq!(press(&["ArrowLeft"]), ("alpha".into(), json!("true")));
    assert_eq!(press(&["ArrowLeft"]), ("alpha".into(), json!("false")));
    assert_eq!(press(&["End"]), ("gamma".into(), json!("false")));
    assert_eq!(press(&["ArrowRight", "ArrowRight"]), ("gamma-1".into(), json!(null)));
    assert_eq!(browser.evaluate("location.hash"), "#open=gamma");
    let ring = browser.evaluate("getComputedStyle(document.activeElement).outlineStyle");
    assert_eq!(ring, "solid", "the focus is seen");
    // A refresh leaves the keyboard where it is.
    browser.evaluate("window.was = document.activeElement; window.foot = document.querySelector('#foot').textContent");
    browser.until("a refresh", "document.querySelector('#foot').textContent !== window.foot");
    assert_eq!(browser.evaluate("window.was === document.activeElement"), true);
    browser.press("/");
    browser.enter("bet");
    until_names(&mut browser, "beta");
    browser.press("Enter");
    assert_eq!(browser.evaluate(at), "beta");
    browser.press("Escape");
    until_names(&mut browser, "alpha,beta,delta,gamma");
    browser.press("?");
    assert_eq!(browser.evaluate("document.querySelector('dialog').open"), true);
    browser.press("Escape");
    browser.until("the help closes", "!document.querySelector('dialog').open");
    browser.press("p");
    assert_eq!(browser.evaluate("document.querySelector('#every').value"), "0");
    assert!(browser.text("#live").starts_with("paused"));
    assert_calm(&mut browser);
}

#[test]
fn rows_say_what_they_are_to_those_who_listen() {
    let (_consul, nginx) = four();
    let mut browser = open(&nginx, "#open=alpha", Look::WIDE);
    until_names(&mut browser, "alpha,beta,delta,gamma");
    let rows = browser.evaluate(
        "[...document.querySelectorAll('[role=treegrid] > [role=row]')].map((row) =>
            [row.getAttribute('aria-level'), row.getAttribute('aria-rowindex'),
             row.getAttribute('aria-expanded'), row.firstElementChild.getAttribute('role')].join())",
    );
    let expected = json!([
        "1,1,true,gridcell",
        "2,2,,gridcell",
        "2,3,,columnheader",
        "2,4,,gridcell",
        "2,5,,gridcell",
        "1,6,false,gridcell",
        "1,7,false,gridcell",
        "1,8,false,gridcell",
    ]);
    assert_eq!(rows, expected);
    assert_eq!(
        browser.evaluate("document.querySelector('#list').getAttribute('aria-rowcount')"),
        "8"
    );
    let unnamed = browser.evaluate(
        "[...document.querySelectorAll('button, select, input, [role=treegrid]')].filter((e) =>
            !(e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim())).length",
    );
    assert_eq!(unnamed, 0, "controls without a name");
}

#[test]
fn a_small_screen_has_no_sideways_scrolling() {
    let (consul, service) = (Agent::shared(), unique(&"a-long-name-of-a-service".repeat(2)));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends[..1]);
    let tags = ["a-rather-long-tag-of-version-1", "another-one-that-is-long", "c", "d"];
    let instance = Instance::new(&service, &"long-id-".repeat(9), backends[1].address());
    consul.register(&instance.tags(&tags));
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").start();
    until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
    tally(&nginx, "/", 10);
    let mut browser = open(&nginx, "", Look { height: 1600, ..Look::NARROW });
    browser.until("both peers", &format!("{}.length === 2", texts(".peer")));
    let wide = "[...document.querySelectorAll('body *')].filter((e) => {
        const box = e.getBoundingClientRect();
        return box.width > 1 && box.right > innerWidth + 1 && !e.closest('.peer, .about, .name');
    }).map((e) => e.className)";
    assert_eq!(browser.evaluate(wide), json!([]), "beyond the window");
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth"), 360);
    assert_calm(&mut browser);
}
