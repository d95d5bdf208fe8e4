//! Which of several are meant.

use nginx_consul_e2e::{Agent, Backend, Instance};

use super::{answered, operated, peer, remove_override, set_override, with_upstream};
use crate::support::{register, tally, unique, until_served_by};

#[test]
fn an_order_is_for_every_upstream_of_the_service_unless_it_is_narrowed() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    for backend in &backends {
        let id = format!("{service}-{}", backend.name());
        consul.register(&Instance::new(&service, &id, backend.address()).tags(&["v1"]));
    }
    let upstreams = "upstream api { consul_dynamic %%SERVICE%%; }
        upstream other { consul_dynamic %%SERVICE%% tag=v1; }";
    let nginx = operated(&consul.url(), &service, upstreams).start();
    for path in ["/", "/other/"] {
        until_served_by(&nginx, path, "a b");
    }
    let shares = || [tally(&nginx, "/", 4), tally(&nginx, "/other/", 4)].join(" | ");
    let a = format!("{service}/instances/{service}-a");
    set_override(&nginx, &format!("{a}/drain"), "");
    assert_eq!(shares(), "b: 4 | b: 4");
    remove_override(&nginx, &a);
    assert_eq!(shares(), "a: 2, b: 2 | a: 2, b: 2");
    let shown = set_override(&nginx, &format!("{a}/drain?upstream=other"), "");
    assert_eq!(shares(), "a: 2, b: 2 | b: 4");
    assert_eq!(shown["instances"][0]["override"]["upstream"], "other", "{shown:#}");
    assert_eq!(peer(&nginx, &service, &format!("{service}-a"))["override"]["upstream"], "other");
    // One for the upstream counts more than one for all.
    set_override(&nginx, &format!("{a}/up?upstream=other"), "");
    set_override(&nginx, &format!("{a}/down"), "");
    assert_eq!(shares(), "b: 4 | a: 2, b: 2");
    remove_override(&nginx, &format!("{a}?upstream=other"));
    assert_eq!(shares(), "b: 4 | b: 4");
    let none = answered(&nginx, ("POST", &format!("{a}/drain?upstream=third"), ""), 404);
    assert_eq!(none["error"]["code"], "UpstreamNotFound");
    // Of two selections one is frozen.
    set_override(&nginx, &format!("{service}/freeze?upstream=other"), "");
    let all = answered(&nginx, ("GET", &service, ""), 200);
    let frozen = all["selections"].as_array().expect("selections").iter();
    let frozen: Vec<bool> = frozen.map(|selection| !selection["frozen"].is_null()).collect();
    assert_eq!(frozen, [false, true], "{all:#}");
}

#[test]
fn an_id_that_ends_like_an_action_is_another_instance() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let (id, longer) = (format!("{service}-1"), format!("{service}-1/drain"));
    for (id, backend) in [&id, &longer].into_iter().zip(&backends) {
        consul.register(&Instance::new(&service, id, backend.address()));
    }
    let nginx = with_upstream(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").start();
    until_served_by(&nginx, "/", "a b");
    set_override(&nginx, &format!("{service}/instances/{id}/down"), "");
    let path = format!("{service}/instances/{longer}");
    answered(&nginx, ("DELETE", &path, ""), 404);
    assert_eq!(tally(&nginx, "/", 4), "b: 4");
    set_override(&nginx, &format!("{path}/down"), "");
    let shown = answered(&nginx, ("GET", &path, ""), 200);
    assert_eq!(shown["instances"][0]["service_id"], *longer, "{shown:#}");
    assert_eq!(remove_override(&nginx, &path)["removed"][0]["id"], *longer);
    assert_eq!(tally(&nginx, "/", 4), "b: 4");
}

#[test]
fn an_id_of_several_nodes_needs_an_address_or_a_node() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let nodes = [unique("node"), unique("node")];
    for (node, backend) in nodes.iter().zip(&backends) {
        let instance = Instance::new(&service, "same", backend.address());
        consul.register_external(node, "127.0.0.1", &instance);
    }
    let nginx = with_upstream(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").start();
    until_served_by(&nginx, "/", "a b");
    let path = format!("{service}/instances/same/drain");
    assert_eq!(answered(&nginx, ("POST", &path, ""), 409)["error"]["code"], "InstanceAmbiguous");
    assert_eq!(tally(&nginx, "/", 4), "a: 2, b: 2");
    set_override(&nginx, &format!("{path}?node={}", nodes[0]), "");
    assert_eq!(tally(&nginx, "/", 4), "b: 4");
    remove_override(&nginx, &format!("{service}/instances/same?node={}", nodes[0]));
    set_override(&nginx, &format!("{service}/instances/{}/drain", backends[1].address()), "");
    assert_eq!(tally(&nginx, "/", 4), "a: 4");
    consul.deregister_external(&nodes[0], "same");
    consul.deregister_external(&nodes[1], "same");
}

#[test]
fn what_is_in_force_is_bounded_and_nothing_is_driven_out() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let names: Vec<String> = (0..17).map(|n| format!("b{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let backends = Backend::start_all(&names);
    let ids = register(&consul, &service, &backends);
    let http = "consul_zone consul 128k;
        upstream api { consul_dynamic %%SERVICE%%; } upstream other { server 127.0.0.1:1; }";
    let nginx = operated(&consul.url(), &service, http).start();
    let all: Vec<&Backend> = backends.iter().collect();
    crate::support::until_peers(&nginx, &service, &all);
    let drain = |id: &str| format!("{service}/instances/{id}/drain");
    for id in &ids[..15] {
        set_override(&nginx, &drain(id), "");
    }
    let overview = nginx.send_json("GET", "/api/", "").body;
    let overview: serde_json::Value = serde_json::from_str(&overview).expect("JSON");
    let capacity = overview["capacity"].as_u64().expect("a number") as usize;
    assert_eq!(overview["overrides"].as_array().map(Vec::len), Some(15));
    assert_eq!(capacity, 15, "{overview:#}");
    let full = answered(&nginx, ("POST", &drain(&ids[16]), ""), 507);
    assert_eq!(full["error"]["code"], "TooManyOverrides");
    assert_eq!(tally(&nginx, "/", 4), "b15: 2, b16: 2");
    set_override(&nginx, &format!("{service}/instances/{}/down", ids[0]), "");
    remove_override(&nginx, &format!("{service}/instances/{}", ids[0]));
    set_override(&nginx, &drain(&ids[16]), "");
    assert_eq!(tally(&nginx, "/", 4), "b0: 2, b15: 2");
}
