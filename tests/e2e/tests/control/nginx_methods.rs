//! Overrides where nginx's own methods pick.

use nginx_consul_e2e::{Agent, Backend, wait};

use super::{remove_override, set_override, with_upstream};
use crate::methods::owners;
use crate::stock_methods::METHODS;
use crate::support::{SOON, register, tally, unique, until_served_by};

#[test]
fn each_of_nginx_s_methods_obeys_overrides() {
    let consul = Agent::shared();
    let backends = Backend::start_all(&["a", "b", "c"]);
    for method in METHODS {
        let service = unique("web");
        let ids = register(&consul, &service, &backends);
        let lines = format!("{method}; consul_dynamic %%SERVICE%%;");
        let nginx = with_upstream(&consul.url(), &service, &lines).workers(2).start();
        let instance = |n: usize| format!("{service}/instances/{}", ids[n]);
        // Every key and client goes to the only one that is left.
        set_override(&nginx, &format!("{}/drain", instance(0)), "");
        set_override(&nginx, &format!("{}/down", instance(1)), "");
        let keys = |names: &str| {
            let owners = owners(&nginx, 0..24);
            owners.values().all(|owner| names.split(' ').any(|name| name == owner))
        };
        wait::until(method, SOON, || keys("c"));
        remove_override(&nginx, &instance(1));
        wait::until(method, SOON, || keys("b c"));
    }
}

#[test]
fn the_weight_and_the_state_are_those_of_nginx_s_own_peers() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let lines = "least_conn; consul_dynamic %%SERVICE%% max_fails=1 fail_timeout=1h;";
    let nginx = with_upstream(&consul.url(), &service, lines).start();
    until_served_by(&nginx, "/", "a b");
    let a = format!("{service}/instances/{}", ids[0]);
    set_override(&nginx, &format!("{a}/weight"), r#"{"weight":5}"#);
    wait::until_eq("the shares", SOON, "a: 10, b: 2", || tally(&nginx, "/", 12));
    remove_override(&nginx, &a);
    wait::until_eq("the shares", SOON, "a: 6, b: 6", || tally(&nginx, "/", 12));
    backends[0].set(nginx_consul_e2e::Manner::Reset);
    until_served_by(&nginx, "/", "b");
    backends[0].release();
    assert_eq!(tally(&nginx, "/", 8), "b: 8");
    set_override(&nginx, &format!("{a}/up"), "");
    wait::until_eq("the shares", SOON, "a: 4, b: 4", || tally(&nginx, "/", 8));
}
