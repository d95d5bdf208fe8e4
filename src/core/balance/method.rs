//! The names of the balancing methods.

/// A balancing method, by the names of `consul_balance`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Smooth weighted round robin, nginx's default; the order is each worker's own.
    #[default]
    RoundRobin,
    /// A weighted random peer.
    Random,
    /// Of two weighted random peers the one with fewer requests in flight for its weight.
    LeastConn,
    /// Of two weighted random peers the one that answers sooner for what it has in flight.
    LeastTime,
    /// The peer that a key belongs to, as stock nginx's `hash`.
    Hash {
        /// A peer that comes or goes moves its own keys only.
        consistent: bool,
    },
}

impl Method {
    /// The method of that name, if it needs no key.
    pub fn from_name(name: &str) -> Option<Method> {
        match name {
            "round_robin" => Some(Method::RoundRobin),
            "random" => Some(Method::Random),
            "least_conn" => Some(Method::LeastConn),
            "least_time" => Some(Method::LeastTime),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Method::RoundRobin => "round_robin",
            Method::Random => "random",
            Method::LeastConn => "least_conn",
            Method::LeastTime => "least_time",
            Method::Hash { consistent: false } => "hash",
            Method::Hash { consistent: true } => "hash consistent",
        }
    }
}
