//! What a configuration makes us watch: its `upstream` blocks, each query once.
//!
//! A *target* is what one block asks for. Targets that differ only in their [`Selection`] or
//! [`Policy`] share a query, and so its connection and its answers.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use siphasher::sip128::{Hasher128, SipHasher13};

use super::log_labels::{query_name, target_name};
use crate::consul::endpoint::{Endpoint, Timing, WatchedQuery};
use crate::consul::removal::Policy;
use crate::model::{Query, Selection};
use crate::text::quote;

/// What one `upstream` block asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// What to ask Consul.
    pub query: Query,
    /// Which instances of the answer to take.
    pub selection: Selection,
    /// Which servers to ask.
    pub endpoint: Arc<Endpoint>,
    /// How often.
    pub timing: Timing,
    /// When an answer may remove its peers.
    pub policy: Policy,
}

impl Target {
    /// The query that gives its instances.
    pub fn watched_query(&self) -> WatchedQuery {
        WatchedQuery {
            query: self.query.clone(),
            endpoint: Arc::clone(&self.endpoint),
            timing: self.timing,
        }
    }

    /// Name of the target in the shared table, the same over reloads: from servers, query and
    /// selection, never from the token.
    ///
    /// Targets that differ only in token, TLS, times or policy have the same key; [`Plan::key`] tells
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

/// One query, and the targets that its answers serve.
#[derive(Clone, Debug)]
pub struct WatchPlan {
    /// The query.
    pub watched: Arc<WatchedQuery>,
    /// The targets, with their numbers.
    pub targets: Vec<(usize, Arc<Target>)>,
    /// Its name in log lines.
    pub(super) name: String,
    /// Names of the targets in log lines.
    target_names: Vec<String>,
}

impl WatchPlan {
    /// The targets as a running watch has them.
    pub(super) fn followed(&self) -> Vec<Followed> {
        let targets = self.targets.iter().zip(&self.target_names);
        let new = |((number, target), name): (&(usize, Arc<Target>), &String)| Followed {
            name: name.clone(),
            ..Followed::new(*number, Arc::clone(target))
        };
        targets.map(new).collect()
    }
}

/// A target of a running watch.
#[derive(Clone, Debug)]
pub(super) struct Followed {
    pub(super) number: usize,
    pub(super) target: Arc<Target>,
    /// Its name in log lines.
    pub(super) name: String,
    gone: Arc<AtomicBool>,
}

impl Followed {
    pub(super) fn new(number: usize, target: Arc<Target>) -> Self {
        let name = target_name(&target.query, &target.selection);
        Followed { number, target, name, gone: Arc::default() }
    }

    /// Nothing is published or reported for it from now on.
    pub(super) fn forget(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }
}

/// All targets and queries of a configuration.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Distinct targets, in the order of the blocks.
    pub targets: Vec<Arc<Target>>,
    /// Distinct queries, in the order of the blocks.
    pub watches: Vec<WatchPlan>,
    /// Most threads and connections at a time, at least 1.
    pub connections: usize,
    keys: Vec<u128>,
}

impl Plan {
    /// The plan of a configuration's blocks, and the number of each block's target.
    ///
    /// Equal blocks share a target; targets that differ only in their [`Selection`] or [`Policy`]
    /// share a query.
    #[allow(clippy::mutable_key_type, reason = "Tls is compared by its options, which are fixed")]
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
            let watched = Arc::new(block.watched_query());
            let watch = *watches.entry(Arc::clone(&watched)).or_insert_with(|| {
                let name = query_name(&watched.query);
                let (targets, target_names) = (Vec::new(), Vec::new());
                plan.watches.push(WatchPlan { watched, targets, name, target_names });
                plan.watches.len() - 1
            });
            let shared = Arc::new(block.clone());
            let watch = &mut plan.watches[watch];
            watch.targets.push((target, Arc::clone(&shared)));
            watch.target_names.push(target_name(&shared.query, &shared.selection));
            plan.targets.push(shared);
            targets.insert(block, target);
            of_block.push(target);
        }
        (plan, of_block)
    }

    /// Adds the names of their upstreams to those queries and targets that would have equal names in
    /// log lines, since they differ in token, servers or times only. `of_block`: the target of each
    /// block; `upstreams`: the name of its upstream.
    pub fn name_upstreams(&mut self, of_block: &[usize], upstreams: &[String]) {
        let label = |targets: &[usize]| {
            let blocks = of_block.iter().zip(upstreams);
            let names = blocks.filter(|(target, _)| targets.contains(target)).map(|(_, name)| name);
            let names: Vec<String> = names.map(|name| format!("\"{}\"", quote(name))).collect();
            format!(" in upstream {}", names.join(", "))
        };
        let watches = self.watches.iter();
        let names = watches.clone().map(|watch| watch.name.as_str());
        let of_targets = watches.flat_map(|watch| &watch.target_names).map(String::as_str);
        let (of_queries, of_targets) = (repeated(names), repeated(of_targets));
        for watch in &mut self.watches {
            let numbers: Vec<usize> = watch.targets.iter().map(|(number, _)| *number).collect();
            if of_queries.contains(&watch.name) {
                watch.name += &label(&numbers);
            }
            for (number, name) in numbers.iter().zip(&mut watch.target_names) {
                if of_targets.contains(name) {
                    *name += &label(&[*number]);
                }
            }
        }
    }

    /// The number of a target, if the plan has it.
    pub fn number_of(&self, target: &Target) -> Option<usize> {
        self.targets.iter().position(|other| **other == *target)
    }

    /// Name of a target in the shared table, distinct within the plan. It is [`Target::key`]
    /// unless an earlier target differs only in token, TLS, times or policy.
    pub fn key(&self, target: usize) -> u128 {
        self.keys[target]
    }
}

/// The names that occur more than once.
fn repeated<'a>(names: impl Iterator<Item = &'a str>) -> HashSet<String> {
    let mut seen = HashSet::new();
    names.filter(|name| !seen.insert(*name)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consul::token::Token;
    use crate::model::Admit;
    use crate::watch::testing::{endpoint, target};
    use std::time::Duration;

    #[test]
    fn equal_blocks_share_a_target_and_selections_share_a_watch() {
        let endpoint = Arc::new(endpoint("http://127.0.0.1:1"));
        let web = target(&endpoint, "web");
        let warning = Selection { admit: Admit::Warning, ..Selection::default() };
        let web_warning = Target { selection: warning, ..web.clone() };
        let api = target(&endpoint, "api");
        // Equal by content, not by address.
        let same = Target { endpoint: Arc::new((*endpoint).clone()), ..web.clone() };
        let (plan, blocks) = Plan::new(vec![web, web_warning, api, same], 0);
        assert_eq!(blocks, [0, 1, 2, 0]);
        let numbers = |watch: &WatchPlan| watch.targets.iter().map(|(n, _)| *n).collect();
        let targets: Vec<Vec<usize>> = plan.watches.iter().map(numbers).collect();
        assert_eq!(targets, [vec![0, 1], vec![2]]);
        assert_eq!(plan.connections, 1);
    }

    #[test]
    fn another_token_or_time_is_another_watch_with_a_key_of_its_own() {
        let plain = Arc::new(endpoint("http://127.0.0.1:1"));
        let token = Some(Token::value("s").unwrap());
        let secret = Arc::new(Endpoint { token, ..(*plain).clone() });
        let web = target(&plain, "web");
        let timing = Timing { wait: Duration::from_secs(1), ..web.timing };
        let blocks = vec![web.clone(), target(&secret, "web"), Target { timing, ..web.clone() }];
        let (plan, _) = Plan::new(blocks, 64);
        assert_eq!(plan.watches.len(), 3);
        assert_eq!(plan.key(0), web.key());
        assert_eq!(plan.targets[1].key(), web.key(), "a token never changes the key");
        let keys: std::collections::HashSet<_> = (0..3).map(|target| plan.key(target)).collect();
        assert_eq!(keys.len(), 3);
    }

    #[test]
    fn queries_and_targets_with_equal_names_are_logged_with_their_upstreams() {
        let endpoint = Arc::new(endpoint("http://127.0.0.1:1"));
        let (web, api) = (target(&endpoint, "web"), target(&endpoint, "api"));
        let timing = Timing { wait: Duration::from_secs(1), ..web.timing };
        let policy = Policy { max_removal: Some(9), ..web.policy };
        let blocks = vec![
            web.clone(),
            Target { timing, ..web.clone() },
            web.clone(),
            api.clone(),
            Target { policy, ..api },
        ];
        let (mut plan, of_block) = Plan::new(blocks, 64);
        let upstreams = ["a", "b", "c", "d", "e"].map(str::to_owned);
        plan.name_upstreams(&of_block, &upstreams);
        let of_watch = |watch: &WatchPlan| (watch.name.clone(), watch.target_names.clone());
        let names: Vec<_> = plan.watches.iter().map(of_watch).collect();
        let (first, second) =
            ("service \"web\" in upstream \"a\", \"c\"", "service \"web\" in upstream \"b\"");
        let api = "service \"api\" in upstream";
        assert_eq!(names[0], (first.to_owned(), vec![first.to_owned()]));
        assert_eq!(names[1], (second.to_owned(), vec![second.to_owned()]));
        let targets = vec![format!("{api} \"d\""), format!("{api} \"e\"")];
        assert_eq!(names[2], ("service \"api\"".to_owned(), targets));
    }

    #[test]
    fn the_key_tells_servers_queries_and_selections_apart() {
        let key = |url: &str, service: &str, tags: &[&str]| {
            let mut target = target(&Arc::new(endpoint(url)), service);
            target.selection.tags = tags.iter().map(|&tag| tag.to_owned()).collect();
            target.key()
        };
        let keys = [
            key("http://a", "web", &[]),
            key("http://b", "web", &[]),
            key("http://a", "api", &[]),
            key("http://a", "web", &["x", "y"]),
            key("http://a", "web", &["xy"]),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(keys[0], key("http://a", "web", &[]));
    }
}
