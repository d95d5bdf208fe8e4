//! The harness itself, over stock nginx alone.

use std::time::Duration;

use nginx_consul_e2e::cluster::Cluster;
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

#[test]
fn the_recipes_cluster_forms_and_survives_the_loss_of_an_agent() {
    let mut cluster = Cluster::start();
    let backend = Backend::start("a");
    cluster.client.register(&Instance::new("cluster", "c-1", backend.address()));
    let seen = |agent: &Agent| {
        // Without a leader, for a while, the answer is an error.
        let answer =
            agent.request("GET", "/v1/health/service/cluster?passing", &Value::Null).ok()?;
        Some(answer.body.matches("\"ServiceID\": \"c-1\"").count().min(1))
            .filter(|_| answer.status == 200)
    };
    let patience = Duration::from_secs(20);
    wait::until_eq("instances seen at d2", patience, &Some(1), || seen(&cluster.joined[0]));
    cluster.client.terminate();
    wait::until_eq("instances seen at d2", patience, &Some(0), || seen(&cluster.joined[0]));
    cluster.server.kill();
    wait::until_eq("instances seen at d3", patience, &Some(0), || seen(&cluster.joined[1]));
    cluster.server.start();
    cluster.client.start();
    // It remembers its services; a TTL check starts critical.
    cluster.client.set_check("c-1", "passing");
    wait::until_eq("instances seen at d2", patience, &Some(1), || seen(&cluster.joined[0]));
}
