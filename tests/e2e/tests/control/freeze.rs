//! Freeze, thaw, resync.

use nginx_consul_e2e::{Agent, Backend, Manner, process, wait};
use rustix::process::Signal;
use serde_json::json;

use super::{answered, served_by_now, set_override, with_upstream};
use crate::support::{
    SOON, register, register_one, scripted, unique, until_peers, until_served_by,
};

#[test]
fn a_frozen_service_stays_as_it_is_until_it_is_thawed() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    let ids = register(&consul, &service, &backends[..2]);
    let mut nginx = with_upstream(&consul.url(), &service, "consul_dynamic %%SERVICE%%;")
        .workers(3)
        .allow_kills()
        .start();
    served_by_now(&nginx, "a b");
    let shown = set_override(&nginx, &format!("{service}/freeze"), "");
    assert_eq!(shown["selections"][0]["frozen"]["by"], "127.0.0.1", "{shown:#}");
    consul.deregister(&ids[0]);
    register_one(&consul, &service, &backends[2]);
    let withheld = || {
        let frozen = &nginx.service(&service)["frozen"];
        (frozen["joined"].clone(), frozen["left"].clone())
    };
    wait::until_eq("what is withheld", SOON, &(json!(1), json!(1)), withheld);
    served_by_now(&nginx, "a b");
    nginx.reload_and_wait();
    served_by_now(&nginx, "a b");
    let zero = nginx.worker_zero();
    process::send(zero, Signal::KILL);
    nginx.until_replaced(zero);
    let good =
        |nginx: &nginx_consul_e2e::Nginx| nginx.service(&service)["last_good_seconds"].as_f64();
    wait::until("the new one has asked", SOON, || good(&nginx) < Some(1.0));
    served_by_now(&nginx, "a b");
    set_override(&nginx, &format!("{service}/thaw"), "");
    until_served_by(&nginx, "/", "b c");
    assert!(nginx.service(&service)["frozen"].is_null());
    assert_eq!(
        answered(&nginx, ("POST", &format!("{service}/thaw"), ""), 409)["error"]["code"],
        "NotFrozen"
    );
    for text in ["freeze set by \"127.0.0.1\", until it is thawed", "freeze removed by"] {
        assert_eq!(nginx.logged(text).len(), 1, "{text}");
    }
}

#[test]
fn a_freeze_ends_by_itself() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let nginx = with_upstream(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").start();
    until_served_by(&nginx, "/", "a");
    set_override(&nginx, &format!("{service}/freeze"), r#"{"expires":"2s"}"#);
    register_one(&consul, &service, &backends[1]);
    wait::until_eq("what is withheld", SOON, &json!(1), || {
        nginx.service(&service)["frozen"]["joined"].clone()
    });
    assert_eq!(nginx.outcome("/"), "a");
    nginx.wait_for_log("freeze has expired, it was set by \"127.0.0.1\"");
    until_served_by(&nginx, "/", "a b");
}

#[test]
fn overrides_of_instances_hold_in_a_frozen_set_too() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let nginx =
        with_upstream(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").workers(2).start();
    served_by_now(&nginx, "a b");
    set_override(&nginx, &format!("{service}/freeze"), "");
    set_override(&nginx, &format!("{service}/instances/{}/drain", ids[0]), "");
    served_by_now(&nginx, "b");
    consul.deregister(&ids[1]);
    wait::until_eq("what is withheld", SOON, &json!(1), || {
        nginx.service(&service)["frozen"]["left"].clone()
    });
    backends[1].set(Manner::Well);
    served_by_now(&nginx, "b");
}

#[test]
fn resync_asks_consul_at_once_from_any_worker() {
    let (consul, backends) = scripted();
    let nginx = with_upstream(&consul.url(), "web", "consul_dynamic web;").workers(3).start();
    served_by_now(&nginx, "a");
    wait::until("a query is in flight", SOON, || {
        consul.queries().iter().any(|query| query.index == Some(7))
    });
    let anew = || consul.queries().iter().filter(|query| query.index.is_none()).count();
    for _ in 0..5 {
        let before = anew();
        let asked = answered(&nginx, ("POST", "web/resync", ""), 202);
        assert_eq!(asked["asked"], 1);
        wait::until("Consul is asked anew", SOON, || anew() > before);
    }
    until_peers(&nginx, "web", &[&backends[0]]);
    nginx.wait_for_log("service \"web\": Consul is asked again for \"127.0.0.1\"");
}

#[test]
fn a_service_without_an_answer_can_t_be_frozen() {
    let port = nginx_consul_e2e::ports::free();
    let url = format!("http://127.0.0.1:{port}");
    let nginx = with_upstream(&url, "web", "consul_dynamic web;").start();
    assert_eq!(answered(&nginx, ("POST", "web/freeze", ""), 409)["error"]["code"], "NoData");
}
