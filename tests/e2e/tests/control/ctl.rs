//! `scripts/consulctl`.

use std::process::Command;

use nginx_consul_e2e::{Agent, Backend, Nginx, nginx as program};

use super::with_upstream;
use crate::support::{register, tally, unique, until_served_by};

/// Runs the script; gives what it writes, and whether it has succeeded.
fn consulctl(nginx: &Nginx, words: &[&str]) -> (String, bool) {
    let script = program::workspace().join("scripts/consulctl");
    let url = format!("http://{}/api", nginx.address());
    let output = Command::new(script).env("CONSULCTL_URL", url).args(words).output();
    let output = output.expect("scripts/consulctl runs");
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&text).into_owned(), output.status.success())
}

#[test]
fn the_script_does_what_its_help_says() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let nginx = with_upstream(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").start();
    until_served_by(&nginx, "/", "a b");
    let run = |words: &[&str], part: &str| {
        let (text, done) = consulctl(&nginx, words);
        assert!(done && text.contains(part), "{words:?}: {text}");
    };
    run(&["help"], "drain");
    run(&["services"], &service);
    run(&["show", &service], &ids[0]);
    run(&["drain", &service, &ids[0], "10m"], "drain");
    assert_eq!(tally(&nginx, "/", 4), "b: 4");
    run(&["show"], &ids[0]);
    run(&["remove", &service, &ids[0]], "removed");
    run(&["weight", &service, &ids[1], "3", "1h"], "weight");
    assert_eq!(tally(&nginx, "/", 8), "a: 2, b: 6");
    run(&["up", &service, &ids[1]], "up");
    run(&["down", &service, &ids[1]], "down");
    assert_eq!(tally(&nginx, "/", 4), "a: 4");
    run(&["freeze", &service, "1h"], "frozen");
    run(&["thaw", &service], "selections");
    run(&["resync", &service], "asked");
    for words in [&["drain", &service][..], &["melt", &service], &["weight", &service, &ids[0]]] {
        let (text, done) = consulctl(&nginx, words);
        assert!(!done && text.contains("consulctl help"), "{words:?}: {text}");
    }
    let (text, done) = consulctl(&nginx, &["drain", &service, "nobody"]);
    assert!(!done && text.contains("has no instance"), "{text}");
}
