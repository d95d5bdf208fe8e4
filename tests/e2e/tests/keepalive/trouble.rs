//! Peers that fail.

use nginx_consul_e2e::{Agent, Backend, Manner, wait};

use super::{counted, kept, open, upstream};
use crate::support::{SOON, register, unique};

#[test]
fn a_failed_attempt_leaves_no_connection_and_the_next_peer_keeps_one() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    for lines in ["", "least_conn;"] {
        let lines = format!("{lines} consul_dynamic %%SERVICE%% max_fails=0; consul_keepalive 8;");
        let nginx = upstream(&consul.url(), &service, &lines).workers(1).start();
        backends[0].set(Manner::Reset);
        let before = backends[1].connections();
        for _ in 0..10 {
            assert_eq!(nginx.outcome("/"), "b");
        }
        assert_eq!(backends[1].connections(), before + 1);
        wait::until_eq("connections to a", SOON, &0, || backends[0].open());
        assert_eq!(counted(&nginx, &service, "idle"), 1);
        backends[0].set(Manner::Well);
    }
}

#[test]
fn a_stale_connection_costs_no_answer_and_a_refused_status_no_connection() {
    for (manner, outcome) in [(Manner::Stale, "a"), (Manner::Status(503), "503")] {
        let (consul, service) = (Agent::shared(), unique("web"));
        let backends = Backend::start_all(&["a"]);
        register(&consul, &service, &backends);
        let nginx = kept(&consul.url(), &service, "8").workers(1).start();
        backends[0].set(manner);
        for _ in 0..10 {
            assert_eq!(nginx.outcome("/"), outcome);
        }
        if outcome == "503" {
            assert_eq!((backends[0].connections(), open(&backends)), (1, 1));
        }
    }
}
