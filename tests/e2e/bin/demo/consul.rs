//! The Consul of the story: one agent, or the recipe's cluster.

use nginx_consul_e2e::cluster::Cluster;
use nginx_consul_e2e::consul::Options;
use nginx_consul_e2e::{Agent, Backend, Instance};

use crate::story::say;

/// The service of the story.
pub(crate) const SERVICE: &str = "api_demo";

/// One agent, or four.
pub(crate) enum Consul {
    /// A server on its own; nginx asks it, and the instances are registered with it.
    Single(Agent),
    /// nginx asks the first server; the instances are registered with the other members.
    Cluster(Box<Cluster>),
}

impl Consul {
    pub(crate) fn start(cluster: bool) -> Consul {
        if cluster {
            Consul::Cluster(Box::new(Cluster::start()))
        } else {
            Consul::Single(Options::server("demo").start())
        }
    }

    /// The agent that nginx asks, and that dies in the story.
    pub(crate) fn asked(&mut self) -> &mut Agent {
        match self {
            Consul::Single(agent) => agent,
            Consul::Cluster(cluster) => &mut cluster.server,
        }
    }

    /// URL of the agent that nginx asks.
    pub(crate) fn url(&self) -> String {
        self.agent().url()
    }

    /// How many instances that agent lists as passing.
    pub(crate) fn listed(&self) -> usize {
        let list = self.agent().get(&format!("/v1/health/service/{SERVICE}?passing"));
        list.as_array().map_or(0, Vec::len)
    }

    fn agent(&self) -> &Agent {
        match self {
            Consul::Single(agent) => agent,
            Consul::Cluster(cluster) => &cluster.server,
        }
    }

    /// The agent with which an instance is registered.
    pub(crate) fn home(&self, name: &str) -> &Agent {
        match self {
            Consul::Single(agent) => agent,
            Consul::Cluster(cluster) => match name {
                "red" => &cluster.joined[0],
                "gold" => &cluster.client,
                _ => &cluster.joined[1],
            },
        }
    }

    /// Registers a backend as a passing instance.
    pub(crate) fn register(&self, backend: &Backend, weight: u16) {
        let (name, home) = (backend.name(), self.home(backend.name()));
        home.register(&Instance::new(SERVICE, name, backend.address()).weights(weight, 1));
        // An agent that restarts knows the state of a TTL check only if it was told once.
        home.set_check(name, "passing");
    }

    /// Turns the check of an instance.
    pub(crate) fn set_check(&self, name: &str, status: &str) {
        self.home(name).set_check(name, status);
    }

    /// Says who is who.
    pub(crate) fn introduce(&self) {
        match self {
            Consul::Single(agent) => say(format!("Consul   {}, one server", agent.url())),
            Consul::Cluster(cluster) => {
                say(format!("Consul   {}, server s1, which nginx asks", cluster.server.url()));
                say(format!("         {}, agent d2 (red)", cluster.joined[0].url()));
                say(format!("         {}, agent d3 (green, blue)", cluster.joined[1].url()));
                say(format!("         {}, client agent c4 (gold)", cluster.client.url()));
            }
        }
    }
}
