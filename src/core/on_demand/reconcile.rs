//! Compares the services that are followed with those in the table and with the requests.

use std::time::Duration;

use super::lookup::{Shared, State};
use super::registry::idle;
use crate::model::Level;

/// How long a target stays that this configuration does not follow, after its last use.
const LINGER: Duration = Duration::from_secs(3);

impl Shared {
    /// Follows the services that other processes have found, and drops those that no request names.
    pub(super) fn reconcile(&self, state: &mut State) {
        self.adopt_existing(state);
        self.evict_over_limit(state, None);
        let unused_for = |target| self.store.unused_for(target);
        let limit = |key| self.templates.find(key).map_or(Duration::ZERO, |template| template.idle);
        for service in idle(&state.registry, limit, unused_for) {
            self.drop_service(state, &service);
            let name = service.name.escape_debug();
            let line =
                format!("service \"{name}\": dropped, no request named it within consul_idle");
            self.store.log(Level::Info, line);
        }
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
