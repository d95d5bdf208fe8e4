//! Follows services of a live Consul and prints what changes:
//!
//! ```text
//! cargo run -p nginx-consul-core --example watch -- http://127.0.0.1:8500 web api
//! ```

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nginx_consul_core::model::{Peer, PeerSet, Query, Selection};
use nginx_consul_core::sync::{
    Change, Endpoint, Engine, Level, Plan, Policy, Published, Report, Sink, Target, Timing, Tls,
};

/// Prints to standard output.
struct Printer {
    start: Instant,
    sets: Mutex<HashMap<usize, PeerSet>>,
}

impl Printer {
    fn line(&self, line: &str) {
        println!("{:9.3} {line}", self.start.elapsed().as_secs_f64());
    }
}

fn show(peer: &Peer) -> String {
    format!("{} {} on {} weight {}", peer.addr, peer.id, peer.node, peer.weight)
}

impl Sink for Printer {
    fn publish(&self, target: usize, set: &PeerSet, _: u64) -> Published {
        let mut sets = self.sets.lock().unwrap();
        let old = sets.insert(target, set.clone());
        if old.as_ref() == Some(set) {
            return Published::Unchanged;
        }
        let old = old.unwrap_or_default();
        let only = |a: &PeerSet, b: &PeerSet| -> Vec<Peer> {
            a.peers().iter().filter(|peer| !b.peers().contains(peer)).cloned().collect()
        };
        let (added, removed) = (only(set, &old), only(&old, set));
        removed.iter().for_each(|peer| self.line(&format!("- {}", show(peer))));
        added.iter().for_each(|peer| self.line(&format!("+ {}", show(peer))));
        Published::Changed(Change {
            peers: set.peers().len(),
            added: added.len(),
            removed: removed.len(),
            changed: 0,
        })
    }

    fn report(&self, _: usize, _: &Report<'_>) {}

    fn log(&self, level: Level, line: String) {
        self.line(&format!("[{level:?}] {line}"));
    }

    fn has_data(&self, target: usize) -> bool {
        self.sets.lock().unwrap().contains_key(&target)
    }

    fn held(&self, target: usize) -> HashSet<u64> {
        let sets = self.sets.lock().unwrap();
        let peers = sets.get(&target).map(PeerSet::peers).unwrap_or_default();
        peers.iter().map(|peer| peer.identity).collect()
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().map(|url| url.parse());
    let services: Vec<String> = arguments.collect();
    let server = match (server, services.is_empty()) {
        (Some(Ok(server)), false) => server,
        (Some(Err(error)), _) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
        _ => {
            eprintln!("usage: watch URL SERVICE…");
            return ExitCode::FAILURE;
        }
    };
    let endpoint = Arc::new(Endpoint {
        servers: vec![server],
        token: None,
        tls: Tls::default(),
        connect_timeout: Duration::from_secs(2),
        max_body: 16 << 20,
    });
    let blocks = services.into_iter().map(|service| Target {
        query: Query { service, ..Query::default() },
        selection: Selection::default(),
        endpoint: Arc::clone(&endpoint),
        timing: Timing {
            wait: Duration::from_secs(60),
            retry_min: Duration::from_millis(250),
            retry_max: Duration::from_secs(30),
            max_stale: None,
            resolve: Duration::from_secs(30),
            poll: Duration::from_secs(5),
        },
        policy: Policy::default(),
    });
    let (plan, _) = Plan::new(blocks.collect(), 64);
    let printer = Arc::new(Printer { start: Instant::now(), sets: Mutex::default() });
    let _engine = match Engine::start(Arc::new(plan), printer) {
        Ok(engine) => engine,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    loop {
        std::thread::park();
    }
}
