//! How agents are started.

use std::env;
use std::net::{Ipv4Addr, SocketAddr};

use super::Agent;
use crate::dressing::Dressing;
use crate::{ports, version};

/// What kind of agent it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `-dev`: a server in memory that is ready within a second; forgets all when restarted.
    Dev,
    /// A server with its data on disk.
    Server,
    /// A client of servers elsewhere.
    Client,
}

/// How an agent is to be started.
#[derive(Clone, Debug)]
pub struct Options {
    pub(super) kind: Kind,
    pub(super) node: String,
    pub(super) ip: Ipv4Addr,
    pub(super) hcl: String,
    pub(super) arguments: Vec<String>,
    serf_port: Option<u16>,
    pub(super) descriptors: Option<usize>,
    pub(super) token: Option<String>,
}

impl Options {
    fn new(kind: Kind, node: &str) -> Options {
        Options {
            kind,
            node: node.to_owned(),
            ip: Ipv4Addr::LOCALHOST,
            // Closed polls keep their slot until they end (consul-facts §4), and tests reload a lot.
            hcl: "limits { http_max_conns_per_client = 4000 }\n".to_owned(),
            arguments: Vec::new(),
            serf_port: None,
            descriptors: None,
            token: None,
        }
    }

    /// A server in memory.
    pub fn dev() -> Options {
        Options::new(Kind::Dev, "dev")
    }

    /// A server that keeps its data over a restart.
    pub fn server(node: &str) -> Options {
        // As quick to elect as a production server; the default is meant for small machines.
        Options::new(Kind::Server, node).hcl("performance { raft_multiplier = 1 }")
    }

    /// A client agent.
    pub fn client(node: &str) -> Options {
        Options::new(Kind::Client, node)
    }

    /// Has it not stream, if its version does.
    pub fn without_streaming(self) -> Options {
        self.hcl(version::without_streaming())
    }

    /// Adds configuration.
    pub fn hcl(mut self, text: &str) -> Options {
        self.hcl.push_str(text);
        self.hcl.push('\n');
        self
    }

    /// Names the node.
    pub fn node(mut self, name: &str) -> Options {
        name.clone_into(&mut self.node);
        self
    }

    /// Binds to another loopback address.
    pub fn ip(mut self, ip: Ipv4Addr) -> Options {
        self.ip = ip;
        self
    }

    /// Adds a command line argument.
    pub fn argument(mut self, argument: &str) -> Options {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Gossips on this port; members of a cluster share one.
    pub fn serf_port(mut self, port: u16) -> Options {
        self.serf_port = Some(port);
        self
    }

    /// Gives it so many descriptors. It doesn't start unless `http_max_conns_per_client` is less.
    pub fn descriptors(mut self, most: usize) -> Options {
        self.descriptors = Some(most);
        self
    }

    /// Sends this token with what the tests ask.
    pub fn token(mut self, token: &str) -> Options {
        self.token = Some(token.to_owned());
        self
    }

    /// Starts the agent and waits until its cluster has a leader and lists its node.
    ///
    /// # Panics
    /// If that doesn't come to be.
    pub fn start(self) -> Agent {
        let mut agent = self.prepare();
        agent.start();
        agent
    }

    /// What `CONSUL_DRESSED` puts in front of agents that don't stream by themselves.
    fn dressing(&self, direct: SocketAddr) -> Option<Box<Dressing>> {
        env::var_os("CONSUL_DRESSED").filter(|value| value == "1" && !version::streams())?;
        let dressing = Dressing::start(direct);
        dressing.refuse();
        if self.hcl.contains("default_policy = \"deny\"") {
            dressing.set(|quirks| quirks.default_policy = "deny");
        }
        Some(Box::new(dressing))
    }

    fn prepare(self) -> Agent {
        let folder =
            tempfile::Builder::new().prefix("nginx-consul-agent-").tempdir().expect("a folder");
        let http_port = ports::free();
        Agent {
            process: None,
            dressing: self.dressing((self.ip, http_port).into()),
            http_port,
            server_port: ports::free(),
            serf_port: self.serf_port.unwrap_or_else(ports::free),
            folder,
            options: self,
        }
    }
}
