//! Who leaves takes its connections along.

use std::thread;

use nginx_consul_e2e::fake_consul::instance;
use nginx_consul_e2e::{Agent, Backend, FakeConsul, Instance, Manner, wait};
use serde_json::json;

use super::{counted, kept, open, upstream};
use crate::support::{SOON, register, register_one, unique, until_peers};

#[test]
fn its_idle_connections_are_closed_in_every_worker_though_no_request_comes() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    for lines in ["", "least_conn;"] {
        let lines = format!("{lines} consul_dynamic %%SERVICE%%; consul_keepalive 8;");
        let nginx = upstream(&consul.url(), &service, &lines).workers(2).start();
        wait::until("both workers have a connection to each", SOON, || {
            nginx.get("/");
            backends.iter().all(|backend| backend.open() == 2)
        });
        consul.deregister(&ids[0]);
        wait::until_eq("connections to a", SOON, &0, || backends[0].open());
        assert_eq!(backends[1].open(), 2, "those to b stay");
        assert_eq!(counted(&nginx, &service, "idle"), 2);
        register_one(&consul, &service, &backends[0]);
    }
}

#[test]
fn a_request_that_it_still_has_is_the_last_one_on_its_connection() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    for lines in ["", "random;"] {
        let ids = register(&consul, &service, &backends);
        let lines = format!("{lines} consul_dynamic %%SERVICE%%; consul_keepalive 8;");
        let nginx = upstream(&consul.url(), &service, &lines).workers(1).start();
        backends[0].set(Manner::Hold);
        backends[1].set(Manner::Hold);
        let address = nginx.address();
        let get = move || nginx_consul_e2e::http::get(address, "/").expect("an answer").outcome();
        let clients: Vec<_> = (0..8).map(|_| thread::spawn(get)).collect();
        wait::until("requests with both", SOON, || {
            backends.iter().map(Backend::busy).sum::<usize>() == 8 && backends[0].busy() > 0
        });
        consul.deregister(&ids[0]);
        until_peers(&nginx, &service, &[&backends[1]]);
        backends.iter().for_each(Backend::release);
        let mut answers: Vec<String> =
            clients.into_iter().map(|client| client.join().expect("a client")).collect();
        answers.dedup();
        assert!(answers.iter().all(|answer| ["a", "b"].contains(&answer.as_str())), "{answers:?}");
        wait::until_eq("connections to a", SOON, &0, || backends[0].open());
        wait::until("those to b stay", SOON, || backends[1].open() > 0);
        drop(nginx);
        consul.deregister(&ids[1]);
    }
}

#[test]
fn another_instance_at_its_address_gets_a_connection_of_its_own() {
    let (consul, backends) = (FakeConsul::start(), Backend::start_all(&["a"]));
    for lines in ["", "least_conn;"] {
        let lines = format!("{lines} consul_dynamic web; consul_keepalive 8;");
        consul.publish("web", 7, &json!([instance("one", backends[0].address())]));
        let nginx = upstream(&consul.url(), "web", &lines).workers(1).start();
        let before = backends[0].connections();
        nginx.sequence("/", 3);
        consul.publish("web", 8, &json!([instance("two", backends[0].address())]));
        wait::until("the other one", SOON, || {
            nginx.service("web")["peers"][0]["service_id"] == "two"
        });
        nginx.sequence("/", 3);
        assert_eq!(backends[0].connections(), before + 2, "{lines}");
        wait::until_eq("open connections", SOON, &1, || open(&backends));
    }
}

#[test]
fn an_instance_that_moves_is_asked_where_it_is_now() {
    let (consul, backends) = (FakeConsul::start(), Backend::start_all(&["a", "b"]));
    consul.publish("web", 7, &json!([instance("one", backends[0].address())]));
    let nginx = kept(&consul.url(), "web", "8").workers(1).start();
    assert_eq!(nginx.sequence("/", 2), "a a");
    consul.publish("web", 8, &json!([instance("one", backends[1].address())]));
    until_peers(&nginx, "web", &[&backends[1]]);
    assert_eq!(nginx.sequence("/", 2), "b b");
    wait::until_eq("connections to a", SOON, &0, || backends[0].open());
    assert_eq!(backends[1].connections(), 1);
}

#[test]
fn one_that_is_down_keeps_no_connection() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let nginx = kept(&consul.url(), &service, "8").workers(1).start();
    nginx.sequence("/", 4);
    assert_eq!(open(&backends), 2);
    let id = format!("{service}-a");
    let down = Instance::new(&service, &id, backends[0].address()).meta("nginx_down", "true");
    consul.register(&down);
    wait::until_eq("connections to a", SOON, &0, || backends[0].open());
    assert_eq!(backends[1].open(), 1);
}
