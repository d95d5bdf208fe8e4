//! What has to be watched: the blocks of a configuration, without repetitions.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::consul::server::Server;
use crate::consul::tls::Tls;
use crate::consul::token::Token;
use crate::model::{Query, Selection};

/// Whom to ask, and as whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Tried in order; at least one.
    pub servers: Vec<Server>,
    /// ACL token, anonymous if `None`.
    pub token: Option<Token>,
    /// For `https` servers.
    pub tls: Tls,
    /// Longest time to establish a connection, name lookup and TLS included.
    pub connect_timeout: Duration,
    /// Longest body of an answer, in bytes.
    pub max_body: u64,
}

/// Times of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// Length of a blocking query; used within 1 s to 10 min, Consul's own limit.
    pub wait: Duration,
    /// Shortest pause after a failure.
    pub retry_min: Duration,
    /// Longest pause after a failure.
    pub retry_max: Duration,
}

/// What one `upstream` block asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// What to ask Consul.
    pub query: Query,
    /// Which instances of the answer to take.
    pub selection: Selection,
    /// Whom to ask.
    pub endpoint: Arc<Endpoint>,
    /// How often.
    pub timing: Timing,
}

impl Target {
    /// Name of the target in the shared table, the same over reloads: from servers, query and
    /// selection, never from the token.
    ///
    /// Targets that differ only in token, TLS or times have the same key; [`Plan::key`] tells
    /// them apart.
    pub fn key(&self) -> u128 {
        self.key_of_variant(0)
    }

    fn key_of_variant(&self, variant: u32) -> u128 {
        let mut h = SipHasher13::new();
        (&self.endpoint.servers, &self.query, &self.selection, variant).hash(&mut h);
        h.finish128().as_u128()
    }
}

/// One query that is followed, and the targets that its answers serve.
#[derive(Clone, Debug)]
pub struct WatchPlan {
    /// What to ask.
    pub query: Query,
    /// Whom.
    pub endpoint: Arc<Endpoint>,
    /// How often.
    pub timing: Timing,
    /// Indices of [`Plan::targets`].
    pub targets: Vec<usize>,
}

/// Everything an engine does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Distinct targets, in the order of the blocks.
    pub targets: Vec<Target>,
    /// Distinct queries, in the order of the blocks.
    pub watches: Vec<WatchPlan>,
    /// Most threads and connections at a time, at least 1.
    pub connections: usize,
    keys: Vec<u128>,
}

impl Plan {
    /// Makes a plan of the blocks of a configuration; also gives the target of each block.
    ///
    /// Blocks that ask the same of the same servers share a target; targets that differ only in
    /// their [`Selection`] share a watch.
    pub fn new(blocks: Vec<Target>, connections: usize) -> (Plan, Vec<usize>) {
        let mut plan = Plan {
            targets: Vec::new(),
            watches: Vec::new(),
            connections: connections.max(1),
            keys: Vec::new(),
        };
        let mut of_block = Vec::with_capacity(blocks.len());
        let mut targets = HashMap::new();
        let mut watches = HashMap::new();
        let mut variants = HashMap::new();
        for block in blocks {
            if let Some(&target) = targets.get(&block) {
                of_block.push(target);
                continue;
            }
            let target = plan.targets.len();
            let variant = variants.entry(block.key()).or_insert(0u32);
            plan.keys.push(block.key_of_variant(*variant));
            *variant += 1;
            let what = (Arc::clone(&block.endpoint), block.query.clone(), block.timing);
            let watch = *watches.entry(what).or_insert_with(|| {
                plan.watches.push(WatchPlan {
                    query: block.query.clone(),
                    endpoint: Arc::clone(&block.endpoint),
                    timing: block.timing,
                    targets: Vec::new(),
                });
                plan.watches.len() - 1
            });
            plan.watches[watch].targets.push(target);
            plan.targets.push(block.clone());
            targets.insert(block, target);
            of_block.push(target);
        }
        (plan, of_block)
    }

    /// Name of a target in the shared table, distinct within the plan. It is [`Target::key`]
    /// unless an earlier target differs only in token, TLS or times.
    pub fn key(&self, target: usize) -> u128 {
        self.keys[target]
    }
}
