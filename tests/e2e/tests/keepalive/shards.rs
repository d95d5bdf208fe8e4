//! Idle connections of a worker that found no shard of the counters free when it started.

use nginx_consul_e2e::http::Connection;
use nginx_consul_e2e::{Agent, Backend, wait};

use super::{counted, kept};
use crate::support::{SOON, register, unique};

/// More than a zone has for one worker.
const MANY: usize = 40;

#[test]
fn a_worker_that_gets_its_shard_late_counts_its_idle_connections() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a"]);
    register(&consul, &service, &backends);
    let mut nginx = kept(&consul.url(), &service, "4").workers(1).start();
    // Each old worker has a request left, and with it its shard.
    let mut requests = Vec::new();
    while nginx.logged("too many old workers are shutting down").is_empty() {
        assert!(requests.len() < MANY, "{}", nginx.tail());
        let mut connection = Connection::open(nginx.address()).expect("a connection");
        connection.send("GET", "/wait/60000", &[], b"").expect("a request");
        requests.push(connection);
        wait::until_eq("held requests", SOON, &requests.len(), || backends[0].busy());
        nginx.reload();
        // Until then the old worker accepts connections too.
        wait::until_eq("workers that shut down", SOON, &requests.len(), || {
            nginx.logged("gracefully shutting down").len()
        });
    }
    assert_eq!(nginx.outcome("/"), "a");
    assert_eq!(counted(&nginx, &service, "idle"), 0, "idle connections without a shard");
    // The old workers end, and the next request has the worker claim a shard.
    drop(requests);
    wait::until_eq("idle connections", SOON, &1, || {
        assert_eq!(nginx.outcome("/"), "a");
        counted(&nginx, &service, "idle")
    });
}
