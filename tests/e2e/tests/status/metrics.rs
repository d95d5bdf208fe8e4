//! The metrics, checked with promtool and with the Python client's parser of OpenMetrics.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nginx_consul_e2e::{Agent, Backend, Config, Instance, Nginx, http, nginx, wait};
use serde_json::Value;

use crate::support::{SOON, gateway, register_one, unique, until_peers};

/// As Prometheus 2 and 3 send it.
const SCRAPE: &str = "application/openmetrics-text;version=1.0.0;q=0.6,\
                      text/plain;version=0.0.4;q=0.3,*/*;q=0.2";

/// Runs a program that `scripts/deps test` installs, and returns what it says.
#[track_caller]
fn check(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; scripts/deps test installs it"));
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("input");
    let output = child.wait_with_output().expect("an end");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}\nof\n{input}");
    said.into_owned()
}

fn docs(name: &str) -> PathBuf {
    nginx::workspace().join("docs").join(name)
}

/// Metrics without a format argument, by what is accepted.
fn scraped(nginx: &Nginx, path: &str, accept: &str) -> http::Response {
    http::request(nginx.address(), "GET", path, &[("Accept", accept)], b"").expect("an answer")
}

/// Everything that makes a metric: a hostile service, two selections of it, a state file, panic,
/// names from requests, one instance that two services share, and a measured latency.
fn rich(consul: &Agent, service: &str, backend: &Backend) -> Nginx {
    let instance = Instance::new(service, "id\"\\\n{}", backend.address());
    consul.register_external(&unique("node"), "127.0.0.1", &instance);
    let shared = format!("{service}-shared");
    consul.register(&Instance::new(&shared, &shared, backend.address()));
    let text = "consul_server %%CONSUL%%; consul_state state/file;\n\
        upstream a { consul_dynamic '%%SERVICE%%'; consul_panic 50%; consul_balance least_time; }\n\
        upstream b { consul_dynamic '%%SERVICE%%'; }\n\
        upstream c { consul_dynamic '%%SERVICE%%' status=any; server 127.0.0.1:1; }\n\
        upstream d { consul_dynamic '%%SERVICE%%-shared'; }\n\
        upstream any { consul_dynamic $arg_service; consul_allow_service *; }\n\
        server { listen 127.0.0.1:%%PORT%%; location /a { proxy_pass http://a/; }\n\
        location /any { proxy_pass http://any/; }\n\
        location = /gone { return 503; }\n\
        location = /few { consul_status metrics=service; }\n\
        location = /consul { consul_status metrics=peer; } }";
    let config = Config::http(text).set("CONSUL", consul.url());
    let nginx = config.set("SERVICE", service.replace('\\', "\\\\")).start();
    assert_eq!(nginx.outcome("/a"), backend.name());
    assert_eq!(nginx.outcome(&format!("/any?service={service}-shared")), backend.name());
    nginx
}

/// Names of the metrics in an answer.
fn names(text: &str) -> BTreeSet<String> {
    let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    samples.map(|line| line.split(['{', ' ']).next().unwrap_or_default().to_owned()).collect()
}

/// Names of ours in an expression or a file.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("nginx_consul_")).map(str::to_owned).collect()
}

#[test]
fn promtool_and_the_openmetrics_parser_accept_the_answer() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let nginx = rich(&consul, &service, &Backend::start("a"));
    let text = scraped(&nginx, "/consul?format=prometheus", "*/*");
    let kind = text.header("content-type").expect("a type");
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    let said = check("promtool", &["check", "metrics"], &text.body);
    assert_eq!(said, "", "promtool has something to say");
    let open = scraped(&nginx, "/consul", SCRAPE);
    let kind = open.header("content-type").expect("a type");
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    // The package is for Debian's own Python.
    let parse = "import sys\n\
        from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse\n\
        for family in parse(sys.stdin.read()):\n\
        \x20   for s in family.samples: print(s.name, s.labels.get('service_id', ''))";
    let parsed = check("/usr/bin/python3", &["-c", parse], &open.body);
    assert!(parsed.contains("nginx_consul_peer_picks_total"), "{parsed}");
    assert!(parsed.contains("nginx_consul_peer_info id\"\\\n{}"), "escapes are undone: {parsed}");
    assert_eq!(names(&text.body), names(&open.body));
}

#[test]
fn a_browser_gets_the_page_and_one_service_can_be_asked_for() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let nginx = rich(&consul, &service, &Backend::start("a"));
    let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let page = scraped(&nginx, "/consul", browser);
    assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/html")));
    let shared = format!("{service}-shared");
    let one = nginx.get(&format!("/consul?format=prometheus&service={shared}")).body;
    check("promtool", &["check", "metrics"], &one);
    assert!(one.contains(&format!("service=\"{shared}\"")), "{one}");
    assert!(!one.contains(&format!("service=\"{service}\"")), "{one}");
    assert_eq!(nginx.get("/consul?format=prometheus&service=nobody").status, 404);
}

#[test]
fn series_for_each_peer_can_be_turned_off() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let nginx = rich(&consul, &service, &Backend::start("a"));
    let few = nginx.get("/few?format=prometheus").body;
    assert_eq!(check("promtool", &["check", "metrics"], &few), "");
    assert!(!few.contains("nginx_consul_peer_") && !few.contains("server=\""), "{few}");
    assert!(few.contains("nginx_consul_service_peers{"), "{few}");
}

#[test]
fn alerts_and_the_dashboard_name_metrics_that_there_are() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let nginx = rich(&consul, &service, &Backend::start("a"));
    let mut answer = String::new();
    wait::until("the state file is written", SOON, || {
        answer = nginx.get("/consul?format=prometheus").body;
        answer.contains("nginx_consul_state_file_written_timestamp_seconds")
    });
    // Only after a failure.
    let there = names(&(answer + "nginx_consul_service_refusals_total 1\n"));
    let rules = std::fs::read_to_string(docs("prometheus-alerts.yml")).expect("rules");
    let dashboard = std::fs::read_to_string(docs("grafana.json")).expect("a dashboard");
    let parsed: Value = serde_json::from_str(&dashboard).expect("JSON");
    assert!(parsed["panels"].as_array().is_some_and(|panels| panels.len() > 10));
    for (file, text) in [("prometheus-alerts.yml", &rules), ("grafana.json", &dashboard)] {
        let missing: Vec<String> = named(text).difference(&there).cloned().collect();
        assert!(missing.is_empty(), "{file} names {missing:?}");
        assert!(named(text).len() > 10, "{file}: {:?}", named(text));
    }
    // promtool knows PromQL: the dashboard's expressions as rules, Grafana's variables filled in.
    let panels = parsed["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let records = targets.enumerate().map(|(n, target)| {
        let expr = target["expr"].as_str().expect("an expression");
        let expr = expr.replace("$__rate_interval", "1m");
        serde_json::json!({ "record": format!("panel:{n}"), "expr": expr })
    });
    let group = serde_json::json!({ "name": "dashboard", "rules": records.collect::<Vec<_>>() });
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("dashboard.yml");
    std::fs::write(&file, serde_json::json!({ "groups": [group] }).to_string()).expect("a file");
    let file = file.display().to_string();
    check("promtool", &["check", "rules", &file], "");
}

#[test]
fn each_alert_fires_when_it_should() {
    let rules = docs("prometheus-alerts.yml").display().to_string();
    check("promtool", &["check", "rules", &rules], "");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("alerts.test.yml");
    let tests = include_str!("alerts.test.yml").replace("%%RULES%%", &rules);
    let text = std::fs::read_to_string(&rules).expect("rules");
    let alerts = text.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    for alert in alerts {
        assert!(tests.contains(alert), "no test of {alert}");
    }
    std::fs::write(&file, tests).expect("a file");
    check("promtool", &["test", "rules", &file.display().to_string()], "");
}

#[test]
fn requests_are_counted_once_over_all_blocks_of_a_service() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").start();
    until_peers(&nginx, &service, &[&backend]);
    (0..5).for_each(|_| assert_eq!(nginx.outcome("/"), "a"));
    let text = nginx.get("/consul?format=prometheus").body;
    let line = format!(
        "nginx_consul_peer_picks_total{{service=\"{service}\",upstream=\"api\",server=\"{}\"}} 5",
        backend.address()
    );
    assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
}
