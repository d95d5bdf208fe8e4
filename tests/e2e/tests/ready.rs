//! `consul_status ready`: what load balancers and probes ask.

use nginx_consul_e2e::http::Response;
use nginx_consul_e2e::{Agent, Backend, Config, Fault, Nginx, Proxy, http, wait};
use serde_json::Value;

use crate::conf_errors::refused;
use crate::state::place;
use crate::support::{SOON, register_one, unique, until_peers};

/// nginx with an upstream for each service, and a probe for each kind of demand.
fn probed(consul: &str, upstreams: &str) -> Config {
    let text = format!(
        "consul_server %%CONSUL%%;\nconsul_init_timeout 100ms;\nconsul_retry 50ms 200ms;\n\
         {upstreams}\n\
         server {{\n\
         listen 127.0.0.1:%%PORT%%;\n\
         location / {{ proxy_pass http://api; }}\n\
         location = /consul {{ consul_status; }}\n\
         location = /ready {{ consul_status ready; }}\n\
         location = /zone {{ consul_status ready source=zone; }}\n\
         location = /live {{ consul_status ready source=live; }}\n\
         location = /fresh {{ consul_status ready max_age=1s; }}\n\
         location = /two {{ consul_status ready source=state peers=2; }}\n\
         }}"
    );
    Config::http(&text).set("CONSUL", consul)
}

fn ask(nginx: &Nginx, method: &str, path: &str, accept: &str) -> Response {
    http::request(nginx.address(), method, path, &[("Accept", accept)], b"").expect("an answer")
}

/// Status of each probe, as `ready 200, live 503`.
fn probes(nginx: &Nginx, names: &[&str]) -> String {
    let status = |name: &&str| format!("{name} {}", nginx.get(&format!("/{name}")).status);
    names.iter().map(status).collect::<Vec<_>>().join(", ")
}

#[track_caller]
fn until_probes(nginx: &Nginx, expected: &str) {
    let names: Vec<&str> =
        expected.split(", ").map(|probe| probe.split(' ').next().unwrap_or_default()).collect();
    wait::until_eq("what the probes say", SOON, expected, || probes(nginx, &names));
}

#[test]
fn an_upstream_without_data_is_named_until_consul_answers() {
    let consul = Agent::shared();
    let (here, there) = (unique("here"), unique("there"));
    let backend = Backend::start("a");
    register_one(&consul, &here, &backend);
    let proxy = Proxy::start(consul.address());
    proxy.set(Fault::Refuse);
    let upstreams = "upstream api { consul_dynamic %%HERE%%; consul_server %%DIRECT%%; }
        upstream other { consul_dynamic %%THERE%%; }
        upstream named { consul_dynamic $arg_s; }";
    let nginx = probed(&proxy.url(), upstreams)
        .set("HERE", &here)
        .set("THERE", &there)
        .set("DIRECT", consul.url())
        .start();
    until_peers(&nginx, &here, &[&backend]);
    wait::until("a failure", SOON, || nginx.service(&there)["failures"].as_u64() > Some(0));
    let answer = nginx.get("/ready");
    assert_eq!(answer.status, 503);
    assert!(answer.header("content-type").is_some_and(|t| t.starts_with("text/plain")));
    let lines: Vec<&str> = answer.body.lines().collect();
    assert_eq!(lines[0], "1 of 2 upstreams not ready");
    let start = format!("upstream \"other\": service \"{there}\": no data yet: ");
    assert!(lines.len() == 2 && lines[1].starts_with(&start), "{lines:?}");

    for (path, accept) in [("/ready?format=json", "*/*"), ("/ready", "text/html, application/json")]
    {
        let answer = ask(&nginx, "GET", path, accept);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let json: Value = serde_json::from_str(&answer.body).expect("JSON");
        assert_eq!((&json["ready"], &json["upstreams"]), (&false.into(), &2.into()));
        let waiting = &json["waiting"][0];
        assert_eq!((&waiting["upstream"], &waiting["lacks"]), (&"other".into(), &"data".into()));
        assert_eq!(waiting["service"], *there);
    }
    proxy.set(Fault::Pass);
    // That the service has no instance is data, too.
    until_probes(&nginx, "ready 200, zone 200, live 200, fresh 200, two 503");
    assert_eq!(nginx.get("/ready").body, "ready\n");
}

#[test]
fn head_is_answered_and_nothing_that_writes() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let upstream = "upstream api { consul_dynamic %%SERVICE%%; }";
    let nginx = probed(&consul.url(), upstream).set("SERVICE", &service).start();
    until_probes(&nginx, "live 200");
    let client = |method: &str| {
        let mut client = http::Connection::open(nginx.address()).expect("a connection");
        client.send(method, "/ready", &[("Connection", "close")], b"").expect("sent");
        let mut answer = String::new();
        std::io::Read::read_to_string(client.reader(), &mut answer).expect("an answer");
        answer
    };
    let head = client("HEAD");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("Content-Length: 6\r\n"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    assert!(client("POST").starts_with("HTTP/1.1 405 "));
}

#[test]
fn data_is_worth_less_after_a_restart_and_less_again_from_the_state_file() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let proxy = Proxy::start(consul.address());
    let (_folder, path) = place();
    let upstream = "consul_state %%STATE%%; upstream api { consul_dynamic %%SERVICE%%; }";
    let config = probed(&proxy.url(), upstream)
        .set("SERVICE", &service)
        .set("STATE", path.display())
        .allow_kills();
    let mut nginx = config.clone().start();
    until_probes(&nginx, "ready 200, zone 200, live 200, fresh 200, two 503");
    assert_eq!(
        nginx.get("/two").body,
        format!(
            "1 of 1 upstreams not ready\n\
             upstream \"api\": service \"{service}\": 1 of its instances can be used, not 2\n"
        )
    );
    // Consul is gone: what is known gets old.
    proxy.set(Fault::Refuse);
    until_probes(&nginx, "ready 200, zone 200, live 200, fresh 503");
    // The next worker has the zone, and nobody to ask.
    nginx.reload_and_wait();
    until_probes(&nginx, "ready 200, zone 200, live 503, fresh 503");
    assert!(nginx.get("/live").body.contains("its data is kept in the zone, not live"));
    nginx.quit();
    let nginx = config.start();
    until_probes(&nginx, "ready 200, zone 503, live 503");
    assert!(nginx.get("/zone").body.contains("from the state file, not kept in the zone"));
    assert_eq!(nginx.outcome("/"), "a");
    proxy.set(Fault::Pass);
    until_probes(&nginx, "ready 200, zone 200, live 200, fresh 200");
}

#[test]
fn an_instance_that_can_not_be_used_does_not_count() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    backends.iter().for_each(|backend| drop(register_one(&consul, &service, backend)));
    let upstream = "upstream api { consul_dynamic %%SERVICE%% fail_timeout=1m; }";
    let nginx = probed(&consul.url(), upstream).set("SERVICE", &service).start();
    until_probes(&nginx, "two 200");
    backends[0].set(nginx_consul_e2e::Manner::Reset);
    wait::until("a failed", SOON, || {
        nginx.get("/");
        nginx.get("/two").status == 503
    });
    until_probes(&nginx, "ready 200, live 200, two 503");
}

#[test]
fn bad_parameters_are_refused() {
    let server = |line: &str| format!("server {{ location / {{\n{line}; # here\n}} }}");
    for (line, words) in [
        ("consul_status ready source=file", "invalid parameter \"source=file\""),
        ("consul_status ready max_age=x", "invalid parameter \"max_age=x\""),
        ("consul_status ready max_age=0", "invalid parameter \"max_age=0\""),
        ("consul_status ready peers=-1", "invalid parameter \"peers=-1\""),
        ("consul_status ready peers=1 peers=2", "duplicate parameter \"peers=2\""),
        ("consul_status ready html", "invalid parameter \"html\""),
        ("consul_status ready ready", "invalid parameter \"ready\""),
        ("consul_status yes", "invalid parameter \"yes\""),
    ] {
        refused(&server(line), &[words, "in \"consul_status\" directive"]);
    }
    let twice = "server { location / {\nconsul_status;\nconsul_status ready; # here\n} }";
    refused(twice, &["\"consul_status\" directive is duplicate"]);
}
