//! What is told of a block to variables, probes and the log.

use std::time::Duration;

use nginx_consul_core::balance::{PickContext, Tier, Tried};
use nginx_consul_core::labels::LabelSet;
use nginx_consul_core::status;
use nginx_consul_core::status::ready::{Demand, Known, Lack, Origin};

use nginx_sys::{NGX_LOG_ERR, ngx_log_t};

use super::super::clock::now;
use super::super::nginx_method::Snapshots;
use super::super::view::PeerView;
use super::super::watched_set::Source;
use super::Upstream;

impl Upstream {
    /// Its method, as the configuration names it.
    pub(in super::super) fn method_name(&self) -> &str {
        self.nginx_method.as_ref().map_or(self.method().name(), Snapshots::name)
    }

    /// Where its requests go, for the status page.
    pub(crate) fn status(&self) -> status::Upstream {
        let view = self.worker().and_then(|worker| Some((worker, self.view(worker)?)));
        let tried = Tried::default();
        let mut tiers = Vec::new();
        let mut panic = None;
        if let Some((worker, view)) = &view {
            let mut candidates = self.candidates(&worker.table, view.peers(), &tried);
            candidates.panic = self.is_in_panic(&candidates);
            panic = self.options.panic.map(|_| candidates.panic);
            tiers = self.tiers(&candidates);
        }
        if self.has_fallback() {
            let name = "servers".to_owned();
            tiers.push(status::Tier { name, peers: None, usable: None });
        }
        let (name, service) = (self.name().into_owned(), self.service.clone());
        let method = self.method_name().to_owned();
        status::Upstream { panic, ..status::Upstream::new(name, service, method, tiers) }
    }

    /// The tiers of instances, those that have none among them; but not every set has backups.
    fn tiers(&self, candidates: &PickContext<'_, '_>) -> Vec<status::Tier> {
        let all = (0..self.sources.len()).flat_map(|set| [(set, false), (set, true)]);
        let tier = |(set, backup)| {
            let found = candidates.view.tiers().iter().find(|t| (t.set, t.backup) == (set, backup));
            let peers = found.map_or(0..0, Tier::peers);
            let datacenter = self.sources[set].datacenter.as_deref().unwrap_or("instances");
            (!backup || found.is_some()).then(|| status::Tier {
                name: format!("{datacenter}{}", if backup { " backup" } else { "" }),
                peers: Some(peers.len()),
                usable: Some(peers.filter(|&peer| candidates.is_usable(peer)).count()),
            })
        };
        all.filter_map(tier).collect()
    }

    /// What variables tell of the peers of a view's set. A request that names a variable that the
    /// configuration doesn't know (by SSI, say) is too late if the set has changed; the next ones
    /// are not.
    pub(in super::super) fn labels<'a>(
        &self,
        view: &'a PeerView,
        set: usize,
    ) -> Option<&'a LabelSet> {
        view.labels(set, || {
            self.keep_labels(true);
            let source = self.sources.get(set)?;
            let table = self.worker()?.table;
            let mut image = table.read(source.present(table)?, source.key)?;
            let is_same = image.generation == view.peers().generations()[set];
            if is_same { LabelSet::take(&mut image) } else { None }
        })
    }

    /// When Consul's last good answer for a set came, milliseconds since the epoch.
    pub(in super::super) fn last_good_ms(&self, set: usize) -> Option<u64> {
        let table = self.worker()?.table;
        let entry = self.sources.get(set)?.present(table)?;
        Some(table.last_good_ms(entry)).filter(|&at| at != 0)
    }

    /// Whether it is ready to serve.
    pub(crate) fn judge(&self, demand: &Demand) -> Result<(), Lack> {
        let worker = self.worker();
        let known = |source: &Source| {
            let table = worker?.table;
            let entry = source.present(table).or_else(|| table.find(source.key))?;
            let fresh = table.freshness(entry);
            let origin = match (table.has_data(entry), fresh.restored, fresh.confirmed) {
                (false, ..) => None,
                (_, true, _) => Some(Origin::State),
                (.., true) => Some(Origin::Live),
                (.., false) => Some(Origin::Zone),
            };
            let age = now().millis.saturating_sub(fresh.last_good);
            let age = Duration::from_millis(age);
            Some(Known { origin, age, failures: fresh.failures, error: fresh.error })
        };
        let sets = self.sources.iter().map(|source| known(source).unwrap_or_default());
        demand.judge(sets, |enough| {
            let view = worker.and_then(|worker| Some((worker, self.view(worker)?)));
            let Some((worker, view)) = &view else { return 0 };
            let tried = Tried::default();
            let candidates = self.candidates(&worker.table, view.peers(), &tried);
            (0..view.len()).filter(|&peer| candidates.is_usable(peer)).take(enough).count()
        })
    }

    /// Says, once a second at most, that there is nobody to ask.
    pub(in super::super) fn complain(&self, log: *mut ngx_log_t) {
        // Where nobody's name led here, the log knows why.
        if self.service.is_empty() || !self.complained.is_due() {
            return;
        }
        ngx::ngx_log_error!(
            NGX_LOG_ERR,
            log,
            "consul: no usable instance of service \"{}\" in upstream \"{}\"",
            self.service.escape_debug(),
            self.name()
        );
    }
}
