//! Compares the services that are followed with those in the table and with the requests.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::lookup::{KnownCatalog, Shared, State};
use super::registry::idle;
use crate::model::Level;

/// How long a target stays that this configuration does not follow, after its last use.
const LINGER: Duration = Duration::from_secs(3);

/// How long a read of the catalogs shows that Consul can be asked. It is compared once a second.
const PROOF: Duration = Duration::from_secs(2);
/// Longest time between two reads for this; a twentieth of `consul_idle` is enough.
const MAX_PROOF: Duration = Duration::from_secs(30);

impl Shared {
    /// Follows the services that other processes have found, and drops those that no request names.
    pub(super) fn reconcile(&self, state: &mut State) {
        self.adopt_existing(state);
        self.evict_over_limit(state, None);
        self.drop_idle(state);
        if let Some((service, error)) = state.refused.take() {
            let name = service.name.escape_debug();
            let line = format!("no room for service \"{name}\": {error}");
            self.store.log(Level::Error, line);
        }
        let evicted = std::mem::take(&mut state.evicted);
        if evicted > 0 {
            let s = if evicted == 1 { "" } else { "s" };
            let line = format!(
                "{evicted} service{s} named by requests evicted for newer ones, increase \
                 \"consul_max_services\" or the size in \"consul_zone\""
            );
            self.store.log(Level::Warn, line);
        }
    }

    /// Drops the services that no request names any more, if Consul can be asked about them. Their
    /// watches may not know yet that it can't, so the catalogs are read first.
    fn drop_idle(&self, state: &mut State) {
        let unused_for = |target| self.store.unused_for(target);
        let limit = |key| self.templates.find(key).map_or(Duration::ZERO, |template| template.idle);
        let mut unproven = HashSet::new();
        let mut shortest = MAX_PROOF;
        for (service, beyond) in idle(&state.registry, limit, unused_for) {
            let mut targets = state.registry[&service].iter();
            if !targets.all(|target| self.store.is_in_step(*target)) {
                continue;
            }
            let template = self.templates.find(service.template);
            let catalogs = template.map(|template| &*template.catalogs).unwrap_or_default();
            let (proven, others): (Vec<usize>, Vec<usize>) = catalogs
                .iter()
                .partition(|number| state.catalogs[**number].was_read_within(beyond.min(PROOF)));
            if proven.len() < catalogs.len() {
                shortest = shortest.min(limit(service.template) / 20);
                unproven.extend(others);
                continue;
            }
            self.drop_service(state, &service);
            let name = service.name.escape_debug();
            let line =
                format!("service \"{name}\": dropped, no request named it within consul_idle");
            self.store.log(Level::Info, line);
        }
        if unproven.is_empty() || state.idle_asked.is_some_and(|at| at.elapsed() < shortest) {
            return;
        }
        state.idle_asked = Some(Instant::now());
        for number in unproven {
            let known = &mut state.catalogs[number];
            known.is_wanted_for_idle = true;
            self.want(known);
        }
    }

    /// Follows the services in the table that this process does not follow: those of the earlier
    /// configuration, also if its worker 0 has added them while it was ending.
    fn adopt_existing(&self, state: &mut State) {
        for (service, target) in self.store.services() {
            if self.templates.find(service.template).is_none() {
                continue;
            }
            let mut has_room = true;
            if !state.registry.contains_key(&service) {
                if let Some(template) = self.templates.admit(&service) {
                    has_room = self.follow(state, &service, template).is_ok();
                }
            }
            let targets = state.registry.get(&service);
            let is_followed = targets.is_some_and(|targets| targets.contains(&target));
            // The workers of the configuration before take requests for a moment more.
            let is_in_use = || has_room && self.store.unused_for(target) < LINGER;
            if !is_followed && !is_in_use() {
                self.store.remove(target);
            }
        }
    }
}

impl KnownCatalog {
    /// Consul has answered a read that began within this time.
    fn was_read_within(&self, time: Duration) -> bool {
        let names = self.names.as_ref().and_then(|names| names.as_ref().ok());
        names.is_some_and(|names| names.began.elapsed() < time)
    }
}
