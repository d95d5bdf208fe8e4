//! Several agents: the recipe's cluster (one server, two agents that joined it, and a client agent
//! that says goodbye when it is terminated), and two datacenters.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::consul::{Agent, Options};
use crate::{ports, wait};

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
    /// Starts the four, and waits until three of them vote and have agreed on a leader for a while:
    /// with its vote a `-dev` agent calls an election and takes over.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn start() -> Cluster {
        let ip = |n| Ipv4Addr::new(127, 0, 0, n);
        let fast = "autopilot { server_stabilization_time = \"500ms\" }";
        let server = Options::server("s1").hcl(fast).start();
        let join = format!("-join={}", server.serf_address());
        let joined = [("d2", 2), ("d3", 3)]
            .map(|(node, n)| Options::dev().node(node).ip(ip(n)).argument(&join).start());
        let client = Options::client("c4")
            .ip(ip(4))
            .hcl("leave_on_terminate = true")
            .argument(&format!("-retry-join={}", server.serf_address()))
            .start();
        let cluster = Cluster { server, joined, client };
        wait::until("three servers vote", Duration::from_secs(60), || cluster.voters() == 3);
        let mut since = Instant::now();
        let mut last = None;
        wait::until("the three agree on a leader", Duration::from_secs(60), || {
            let leader = cluster.leader();
            if leader.is_none() || leader != last {
                (since, last) = (Instant::now(), leader);
            }
            last.is_some() && since.elapsed() > Duration::from_secs(2)
        });
        cluster
    }

    /// The leader, if all servers name the same.
    pub fn leader(&self) -> Option<String> {
        let name = |agent: &Agent| {
            let answer = agent.request("GET", "/v1/status/leader", &Value::Null).ok()?;
            (answer.status == 200 && answer.body.len() > 4).then(|| answer.body.trim().to_owned())
        };
        let first = name(&self.server)?;
        self.joined.iter().all(|agent| name(agent).as_ref() == Some(&first)).then_some(first)
    }

    /// Servers that vote.
    pub fn voters(&self) -> usize {
        let peers = self.server.get("/v1/operator/raft/configuration");
        let servers = peers["Servers"].as_array().cloned().unwrap_or_default();
        servers.iter().filter(|server| server["Voter"] == true).count()
    }
}

/// Two datacenters of one server each, joined over the WAN.
#[derive(Debug)]
pub struct Datacenters {
    /// The server of `dc1`.
    pub dc1: Agent,
    /// The server of `dc2`.
    pub dc2: Agent,
}

impl Datacenters {
    /// Starts both, and waits until each answers for the other.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn start() -> Datacenters {
        let wan = ports::free();
        let server = |name: &str, wan: u16| {
            Options::dev()
                .node(&format!("server-of-{name}"))
                .argument(&format!("-datacenter={name}"))
                .argument(&format!("-serf-wan-port={wan}"))
        };
        let dc1 = server("dc1", wan).start();
        let join = format!("-retry-join-wan=127.0.0.1:{wan}");
        let dc2 = server("dc2", ports::free()).argument(&join).start();
        let both = Datacenters { dc1, dc2 };
        wait::until("the datacenters know of each other", Duration::from_secs(30), || {
            knows(&both.dc1, "dc2") && knows(&both.dc2, "dc1")
        });
        both
    }
}

fn knows(agent: &Agent, datacenter: &str) -> bool {
    let path = format!("/v1/catalog/nodes?dc={datacenter}");
    agent.request("GET", &path, &Value::Null).is_ok_and(|answer| answer.status == 200)
}
