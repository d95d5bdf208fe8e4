//! The harness itself, over stock nginx alone.

use std::time::Duration;

use nginx_consul_e2e::{Agent, Backend, Config, Fault, Instance, Manner, Proxy, Tally, http, wait};
use serde_json::Value;

#[test]
fn nginx_starts_reloads_and_quits_without_our_module() {
    let backends = Backend::start_all(&["a", "b"]);
    let mut nginx = Config::http(
        "upstream u { server %%A%%; server %%B%%; }
         server { listen 127.0.0.1:%%PORT%%; location / { proxy_pass http://u; } }",
    )
    .set("A", backends[0].address())
    .set("B", backends[1].address())
    .without_module()
    .start();
    let seen: Tally = (0..6).map(|_| nginx.outcome("/")).collect();
    assert_eq!(seen.to_string(), "a: 3, b: 3");
    backends[1].set(Manner::Reset);
    let seen: Tally = (0..6).map(|_| nginx.outcome("/")).collect();
    assert_eq!(seen.to_string(), "a: 6");
    assert_eq!(nginx.reload().len(), 1);
    assert_eq!(nginx.outcome("/"), "a");
    nginx.quit();
}

#[test]
fn a_consul_agent_registers_and_the_proxy_breaks_it() {
    let consul = Agent::shared();
    let backend = Backend::start("a");
    consul.register(&Instance::new("harness", "h-1", backend.address()).weights(5, 1));
    let proxy = Proxy::start(consul.address());
    let get = || http::get(proxy.address(), "/v1/health/service/harness");
    let answer = get().expect("an answer");
    let document: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(document[0]["Service"]["Weights"]["Passing"], 5);
    assert_eq!(document[0]["Checks"][1]["Status"], "passing");
    assert_eq!(proxy.requests("/v1/health/service/harness").len(), 1);
    proxy.set(Fault::Refuse);
    assert!(get().is_err(), "nothing listens");
    proxy.set(Fault::Cut(200));
    assert!(get().is_err(), "the body is cut");
    proxy.set(Fault::Pass);
    wait::until("the proxy passes again", Duration::from_secs(2), || get().is_ok());
    consul.deregister("h-1");
    wait::until_eq("the service is gone", Duration::from_secs(2), "[]", || {
        consul.get("/v1/health/service/harness").to_string()
    });
}
