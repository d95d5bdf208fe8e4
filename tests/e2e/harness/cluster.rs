//! The recipe's cluster: one server, two agents that joined it, and a client agent that says
//! goodbye when it is terminated.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::consul::{Agent, Options};
use crate::wait;

/// Four agents on 127.0.0.1 to 127.0.0.4.
#[derive(Debug)]
pub struct Cluster {
    /// `-server -bootstrap-expect=1`, with its data on disk.
    pub server: Agent,
    /// `-dev -join`: two servers more.
    pub joined: [Agent; 2],
    /// A client with `leave_on_terminate` and `-retry-join`.
    pub client: Agent,
}

impl Cluster {
    /// Starts the four, and waits until three of them vote and the client knows its server.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn start() -> Cluster {
        let ip = |n| Ipv4Addr::new(127, 0, 0, n);
        let fast = "performance { raft_multiplier = 1 }";
        let server = Options::server("s1").hcl(fast).start();
        let join = format!("-join={}", server.serf_address());
        let joined = [("d2", 2), ("d3", 3)].map(|(node, n)| {
            // With an id of its own, an agent that returns after a crash is the same server.
            let id = format!("-node-id=00000000-0000-4000-8000-{n:012}");
            Options::dev().node(node).ip(ip(n)).argument(&join).argument(&id).start()
        });
        let client = Options::client("c4")
            .ip(ip(4))
            .hcl("leave_on_terminate = true")
            .argument(&format!("-retry-join={}", server.serf_address()))
            .start();
        let cluster = Cluster { server, joined, client };
        wait::until("three servers vote", Duration::from_secs(60), || cluster.voters() == 3);
        cluster
    }

    /// Servers that vote.
    pub fn voters(&self) -> usize {
        let peers = self.server.get("/v1/operator/raft/configuration");
        let servers = peers["Servers"].as_array().cloned().unwrap_or_default();
        servers.iter().filter(|server| server["Voter"] == true).count()
    }
}
