//! What there is to order something of.

use std::collections::BTreeSet;

use nginx_consul_core::control::{Frozen, InstanceShown, Override, Refusal, SelectionShown};
use nginx_consul_core::model::{Query, Selection as Selected};
use nginx_consul_core::table::{Image, Order, Subject, Table, orders};
use nginx_consul_core::text::quote;

use crate::conf::{self, HttpConf};
use crate::sink::now_ms;
use crate::zone;

/// The services of a configuration.
pub(super) struct Services {
    http: &'static HttpConf,
    pub(super) table: Table<'static>,
}

/// A set of a service's instances that upstreams follow.
pub(super) struct Selection {
    pub(super) key: u128,
    pub(super) entry: Option<usize>,
    query: Query,
    selected: Selected,
    pub(super) upstreams: Vec<String>,
}

/// An instance, as a selection has it.
pub(super) struct Found {
    pub(super) scope: u64,
    pub(super) identity: u64,
    pub(super) shown: InstanceShown,
}

impl Services {
    /// `None` if no block follows Consul.
    pub(super) fn new(http: &'static HttpConf) -> Option<Services> {
        // SAFETY: the zone of the running configuration, or null.
        let table = zone::table(unsafe { http.shm_zone.as_ref() }?)?;
        Some(Services { http, table })
    }

    /// Their names, and those that requests have named.
    pub(super) fn names(&self) -> Vec<String> {
        let planned = self.http.plan.iter().flat_map(|plan| plan.targets.iter());
        let mut names: BTreeSet<String> =
            planned.map(|target| target.query.service.clone()).collect();
        names.extend(self.named().map(|(_, named)| named.name));
        names.into_iter().collect()
    }

    fn named(&self) -> impl Iterator<Item = (usize, nginx_consul_core::table::Named)> {
        let entries = 0..self.table.entry_capacity();
        entries.filter_map(|entry| Some((entry, self.table.named(entry)?)))
    }

    /// The selections of a service, in one upstream or all.
    ///
    /// # Errors
    ///
    /// There is no such service, or the upstream does not follow it (404).
    pub(super) fn of_name(
        &self,
        name: &str,
        upstream: Option<&str>,
    ) -> Result<Vec<Selection>, Refusal> {
        let mut found = self.planned_of(name);
        found.extend(self.named_of(name));
        if found.is_empty() {
            let text = format!("no upstream follows a service \"{}\" now", quote(name));
            return Err(Refusal::new(404, "ServiceNotFound", text));
        }
        if let Some(upstream) = upstream {
            found.retain(|selection| selection.upstreams.iter().any(|name| name == upstream));
            if found.is_empty() {
                let (upstream, name) = (quote(upstream), quote(name));
                let text = format!("no upstream \"{upstream}\" follows service \"{name}\"");
                return Err(Refusal::new(404, "UpstreamNotFound", text));
            }
        }
        Ok(found)
    }

    fn planned_of(&self, name: &str) -> Vec<Selection> {
        let Some(plan) = &self.http.plan else { return Vec::new() };
        let targets = plan.targets.iter().enumerate();
        let of_name = targets.filter(|(_, target)| target.query.service == name);
        of_name
            .map(|(number, target)| {
                let key = plan.key(number);
                Selection {
                    key,
                    entry: self.table.find(key),
                    query: target.query.clone(),
                    selected: target.selection.clone(),
                    upstreams: self.users(number),
                }
            })
            .collect()
    }

    /// The blocks that use a target of the plan.
    fn users(&self, target: usize) -> Vec<String> {
        // SAFETY: blocks of the running configuration.
        let blocks =
            self.http.blocks.iter().filter_map(|&b| unsafe { &conf::srv_conf(b).block }.as_ref());
        let of_target = blocks.filter(|b| b.sources().iter().any(|s| s.target == target));
        of_target.map(|block| block.name().into_owned()).collect()
    }

    fn named_of(&self, name: &str) -> Vec<Selection> {
        let (Some(templates), Some(plan)) = (&self.http.templates, &self.http.plan) else {
            return Vec::new();
        };
        let of_entry = |(entry, named): (usize, nginx_consul_core::table::Named)| {
            let template = templates.find(named.template)?;
            let key = self.table.key(entry);
            let place = template.places(&named.name, plan).into_iter().find(|p| p.key == key)?;
            // SAFETY: blocks of the running configuration.
            let blocks = self
                .http
                .named_blocks
                .iter()
                .filter_map(|&b| unsafe { &conf::srv_conf(b).named }.as_ref());
            let asks = blocks.filter(|block| {
                block.template().is_some_and(|template| template.key == named.template)
            });
            Some(Selection {
                key,
                entry: Some(entry),
                query: place.target.query,
                selected: place.target.selection,
                upstreams: asks.map(|block| block.pattern().name().into_owned()).collect(),
            })
        };
        self.named().filter(|(_, named)| named.name == name).filter_map(of_entry).collect()
    }
}

impl Selection {
    pub(super) fn scope(&self) -> u64 {
        orders::scope(&self.query.service, self.query.datacenter.as_deref())
    }

    /// Its set; an empty one before the first answer.
    fn image(&self, table: Table<'_>) -> Image {
        self.entry.and_then(|entry| table.read(entry, self.key)).unwrap_or_default()
    }

    /// Its instances, with what is ordered of them.
    pub(super) fn instances(&self, table: Table<'_>, ordered: &[Order]) -> Vec<Found> {
        let (image, scope, now) = (self.image(table), self.scope(), now_ms());
        let details = image.details();
        let of_record = |(record, detail)| {
            let record: &nginx_consul_core::table::Record = record;
            let identity = record.identity;
            let is_about_it = |order: &&Order| {
                matches!(order.subject, Subject::Instance { scope: s, identity: i, .. }
                    if (s, i) == (scope, identity))
            };
            let about_it = ordered.iter().filter(is_about_it).filter(|o| o.is_in_force(now));
            let overrides = about_it.map(Override::from).collect();
            let shown = InstanceShown::new((record, detail), self.upstreams.clone(), overrides);
            Found { scope, identity, shown }
        };
        image.records.iter().zip(&details).map(of_record).collect()
    }

    pub(super) fn shown(&self, table: Table<'_>, ordered: &[Order]) -> SelectionShown {
        let now = now_ms();
        let is_about_it =
            |order: &&Order| order.subject == Subject::Target(self.key) && order.is_in_force(now);
        let frozen = self.entry.and_then(|entry| {
            let order = ordered.iter().find(is_about_it)?;
            Some(Frozen::new(order, table.withheld(entry)))
        });
        SelectionShown {
            upstreams: self.upstreams.clone(),
            datacenter: self.query.datacenter.clone(),
            tags: self.selected.tags.clone(),
            generation: self.entry.map_or(0, |entry| table.generation(entry)),
            frozen,
            instances: self.instances(table, ordered).into_iter().map(|f| f.shown).collect(),
        }
    }
}
