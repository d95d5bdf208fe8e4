//! What overrides do to the idle connections of `consul_keepalive`.

use super::*;
use crate::keepalive::{ALIVE, counted, open};

#[test]
fn an_instance_that_is_drained_or_down_loses_its_idle_connections_in_every_worker() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    for (method, action) in [("", "drain"), ("", "down"), ("least_conn;", "drain")] {
        let lines = format!("{method} consul_dynamic %%SERVICE%%; consul_keepalive 8;");
        let upstream = format!("{ALIVE} upstream api {{ {lines} }}");
        let other = "upstream other { server 127.0.0.1:1; }";
        let http = format!("{upstream} {other}");
        let nginx = operated(&consul.url(), &service, &http).workers(2).start();
        wait::until("both workers have a connection to each", SOON, || {
            nginx.get("/");
            backends.iter().all(|backend| backend.open() >= 2)
        });
        let path = format!("{service}/instances/{}", ids[0]);
        set_override(&nginx, &format!("{path}/{action}"), "");
        wait::until_eq("connections to a", SOON, &0, || backends[0].open());
        assert!(backends[1].open() >= 2, "{action}: those to b stay");
        served_by_now(&nginx, "b");
        remove_override(&nginx, &path);
        served_by_now(&nginx, "a b");
        assert!(counted(&nginx, &service, "idle") > 0);
        drop(nginx);
        wait::until_eq("connections at the end", SOON, &0, || open(&backends));
    }
}

#[test]
fn requests_that_a_drained_instance_still_has_keep_no_connection() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a"]);
    let ids = register(&consul, &service, &backends);
    let lines = "consul_dynamic %%SERVICE%%; consul_keepalive 8;";
    let http =
        format!("{ALIVE} upstream api {{ {lines} }} upstream other {{ server 127.0.0.1:1; }}");
    let nginx = operated(&consul.url(), &service, &http).workers(1).start();
    backends[0].set(Manner::Hold);
    let address = nginx.address();
    let client = thread::spawn(move || http::get(address, "/").expect("an answer").outcome());
    wait::until("the request is with a", SOON, || backends[0].busy() == 1);
    set_override(&nginx, &format!("{service}/instances/{}/drain", ids[0]), "");
    backends[0].release();
    assert_eq!(client.join().expect("a client"), "a");
    wait::until_eq("connections to a", SOON, &0, || backends[0].open());
}
