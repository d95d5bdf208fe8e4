//! Whoever may register a service chooses its names and tags.

use nginx_consul_e2e::consul::Options;
use nginx_consul_e2e::{Backend, Instance, Look};
use serde_json::json;

use super::{assert_calm, open, texts};
use crate::hostile::{VALUES, is_active};
use crate::support::{follow, unique, until_peers};

/// Markup, and characters that nobody sees.
const TAKEOVERS: [&str; 6] = [
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
    let values: Vec<&str> = TAKEOVERS.into_iter().chain(VALUES).collect();
    let backends: Vec<Backend> = values.iter().map(|_| Backend::start("a")).collect();
    for (value, backend) in values.iter().zip(&backends) {
        let instance = Instance::new(&service, value, backend.address()).tags(&[value]);
        consul.register_external(value, "127.0.0.1", &instance);
    }
    let nginx = follow(&consul.url(), &service);
    until_peers(&nginx, &service, &backends.iter().collect::<Vec<_>>());
    let mut browser = open(&nginx, "", Look { height: 1800, ..Look::WIDE });
    browser.until("all are shown", &format!("{}.length === {}", texts(".peer"), values.len()));
    for column in ["id", "node", "tags"] {
        let shown = browser.evaluate(&texts(&format!(".peer .{column}")));
        let shown: Vec<String> = serde_json::from_value(shown).expect("texts");
        for value in &values {
            let expected = written_out(value);
            assert!(!expected.contains(is_active), "{expected:?}");
            assert!(shown.contains(&expected), "{column}: no {expected:?} in {shown:#?}");
        }
    }
    // Also what a search writes into the URL and reads back.
    browser.press("/");
    browser.enter("<img");
    let found = format!("{}.length === 2", texts(".peer"));
    browser.until("two are found", &found);
    browser.reload();
    browser.until("two are found again", &found);
    let made = "[...document.querySelectorAll('main script, main img, main style, h1')].length";
    // The one heading is the page's own.
    assert_eq!(browser.evaluate(&format!("[document.title, {made}]")), json!(["nginx-consul", 1]));
    assert_calm(&mut browser);
}

/// As the page shows it: characters that can't be seen stand as their numbers.
fn written_out(value: &str) -> String {
    let shown = |c: char| match c {
        '\n' => "\\n".to_owned(),
        '\r' => "\\r".to_owned(),
        '\0' => "\\0".to_owned(),
        c if is_active(c) => format!("\\u{{{:x}}}", u32::from(c)),
        c => c.to_string(),
    };
    value.chars().map(shown).collect()
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
