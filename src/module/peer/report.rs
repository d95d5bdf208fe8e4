//! What an upstream tells the status page, probes and variables.

use std::time::Duration;

use nginx_consul_core::balance::{PickContext, Tier, Tried};
use nginx_consul_core::clock::age;
use nginx_consul_core::labels::LabelSet;
use nginx_consul_core::status;
use nginx_consul_core::status::ready::{Demand, Lack, Origin, SetState};

use super::set::{PeerView, WatchedSet};
use super::upstream::Upstream;
use super::worker::monotonic;

impl Upstream {
    /// Where its requests go, for the status page.
    pub(crate) fn status(&self) -> status::Upstream {
        let worker = self.worker.get();
        let view = worker.and_then(|worker| Some((worker, self.sets.view(worker)?)));
        let tried = Tried::default();
        let mut tiers = Vec::new();
        let mut panic = None;
        if let Some((worker, view)) = &view {
            let mut context = self.pick_context(&worker.table, view.peers(), &tried);
            context.panic = self.is_in_panic(&context);
            panic = self.options.panic.map(|_| context.panic);
            tiers = self.tiers(&context);
        }
        if self.options.has_fallback {
            let name = "servers".to_owned();
            tiers.push(status::Tier { name, peers: None, usable: None });
        }
        let (name, service) = (self.name().into_owned(), self.service().to_owned());
        let method = self.method_name().to_owned();
        status::Upstream { panic, ..status::Upstream::new(name, service, method, tiers) }
    }

    /// The tiers of instances, also those without any; but a set may have no backups at all.
    fn tiers(&self, context: &PickContext<'_, '_>) -> Vec<status::Tier> {
        let sets = self.sets().iter().enumerate();
        let all = sets.flat_map(|(number, set)| [(number, set, false), (number, set, true)]);
        let tier = |(number, set, backup): (usize, &WatchedSet, bool)| {
            let tiers = context.view.tiers();
            let found = tiers.iter().find(|t| (t.set, t.backup) == (number, backup));
            let peers = found.map_or(0..0, Tier::peers);
            let datacenter = set.datacenter.as_deref().unwrap_or("instances");
            (!backup || found.is_some()).then(|| status::Tier {
                name: format!("{datacenter}{}", if backup { " backup" } else { "" }),
                peers: Some(peers.len()),
                usable: Some(peers.filter(|&peer| context.is_usable(peer)).count()),
            })
        };
        all.filter_map(tier).collect()
    }

    /// What variables tell of the peers of a view's set.
    pub(super) fn labels<'a>(&self, view: &'a PeerView, set: usize) -> Option<&'a LabelSet> {
        self.sets.labels(self.worker.get(), view, set)
    }

    /// When Consul's last good answer for a set came, milliseconds of the monotonic clock.
    pub(super) fn last_good(&self, set: usize) -> Option<u64> {
        let table = self.worker.get()?.table();
        let entry = self.sets().get(set)?.present(table)?;
        Some(table.last_good(entry)).filter(|&at| at != 0)
    }

    /// Whether it is ready to serve.
    pub(crate) fn judge(&self, demand: &Demand) -> Result<(), Lack> {
        let worker = self.worker.get();
        let known = |set: &WatchedSet| {
            let table = worker?.table();
            let entry = set.present(table).or_else(|| table.find(set.key))?;
            let fresh = table.freshness(entry);
            let origin = match (table.has_data(entry), fresh.restored, fresh.confirmed) {
                (false, ..) => None,
                (_, true, _) => Some(Origin::State),
                (.., true) => Some(Origin::Live),
                (.., false) => Some(Origin::Zone),
            };
            let age = Duration::from_millis(age(fresh.last_good, monotonic()));
            Some(SetState { origin, age, failures: fresh.failures, error: fresh.error })
        };
        let sets = self.sets().iter().map(|set| known(set).unwrap_or_default());
        demand.judge(sets, |enough| {
            let view = worker.and_then(|worker| Some((worker, self.sets.view(worker)?)));
            let Some((worker, view)) = &view else { return 0 };
            let tried = Tried::default();
            let context = self.pick_context(&worker.table, view.peers(), &tried);
            (0..view.len()).filter(|&peer| context.is_usable(peer)).take(enough).count()
        })
    }
}
