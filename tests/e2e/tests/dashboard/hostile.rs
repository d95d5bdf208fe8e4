//! Whoever may register a service chooses its names and tags.

use nginx_consul_e2e::consul::Options;
use nginx_consul_e2e::{Backend, Instance, Look};
use serde_json::json;

use super::{assert_calm, open, texts};
use crate::support::{follow, unique, until_peers};

/// Markup, and characters that nobody sees.
const VALUES: [&str; 6] = [
    "<script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "--></script></style><h1>taken",
    "javascript:document.title='taken'",
    "\u{202e}gpj.exe\u{200b}\u{7}\n",
    "${document.title='taken'}{{7*7}}&lt;b&gt;",
];

#[test]
fn hostile_names_and_tags_are_text() {
    // Of its own: node names are for all services.
    let (consul, service) = (Options::dev().start(), unique("web"));
    let names: Vec<String> = (0..VALUES.len()).map(|n| format!("b{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let backends = Backend::start_all(&names);
    for (value, backend) in VALUES.iter().zip(&backends) {
        let instance = Instance::new(&service, value, backend.address()).tags(&[value]);
        consul.register_external(value, "127.0.0.1", &instance);
    }
    let nginx = follow(&consul.url(), &service);
    until_peers(&nginx, &service, &backends.iter().collect::<Vec<_>>());
    let mut browser = open(&nginx, "", Look::WIDE);
    browser.until("all are shown", &format!("{}.length === {}", texts(".peer"), VALUES.len()));
    for column in ["id", "node", "tags"] {
        let mut shown: Vec<String> =
            serde_json::from_value(browser.evaluate(&texts(&format!(".peer .{column}"))))
                .expect("texts");
        shown.sort_unstable();
        let mut expected = VALUES.map(|value| {
            value
                .replace('\u{202e}', "\\u{202e}")
                .replace('\u{200b}', "\\u{200b}")
                .replace('\u{7}', "\\u{7}")
                .replace('\n', "\\n")
        });
        expected.sort_unstable();
        assert_eq!(shown, expected, "{column}");
    }
    // Also what is opened by hovering, and what a search writes into the URL and reads back.
    let search = VALUES[1].split(' ').next().expect("a word");
    browser.press("/");
    browser.enter(search);
    browser.until("one is found", &format!("{}.length === 1", texts(".peer")));
    browser.reload();
    browser.until("one is found again", &format!("{}.length === 1", texts(".peer")));
    let made = "[...document.querySelectorAll('main script, main img, main style, h1')].length";
    // The one heading is the page's own.
    assert_eq!(browser.evaluate(&format!("[document.title, {made}]")), json!(["nginx-consul", 1]));
    assert_calm(&mut browser);
}

#[test]
fn the_policy_lets_nothing_else_run() {
    let (consul, service) = (nginx_consul_e2e::Agent::shared(), unique("web"));
    let nginx = follow(&consul.url(), &service);
    let mut browser = open(&nginx, "", Look::WIDE);
    // What a hole in the page would come to: each is refused, and reported.
    for attack in [
        "document.body.innerHTML = '<b>x</b>'",
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'document.title=1' }))",
        "eval('1')",
    ] {
        let refused =
            format!("(() => {{ try {{ {attack}; }} catch (error) {{ return error.name; }} }})()");
        assert_ne!(browser.evaluate(&refused), json!(null), "{attack}");
    }
    let style = "document.body.setAttribute('style', 'color: red')";
    browser.evaluate(style);
    assert_ne!(browser.evaluate("getComputedStyle(document.body).color"), "rgb(255, 0, 0)");
    let elsewhere = "fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => error.name)";
    assert_eq!(browser.evaluate(elsewhere), "TypeError");
    let complaints = browser.complaints().join("\n");
    for directive in ["style-src", "connect-src"] {
        assert!(complaints.contains(directive), "no {directive} in {complaints}");
    }
    assert_eq!(browser.evaluate("document.title"), "(1) nginx-consul");
}
