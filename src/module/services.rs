//! The services that upstreams follow: those in the configuration, and those that requests have
//! named.

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use nginx_consul_core::model;
use nginx_consul_core::table::Table;
use nginx_consul_core::watch::{Plan, Target};

use crate::peer::{OnDemandUpstream, Upstream};
use crate::upstreams::Upstreams;

/// The entries of the table by their keys.
pub(crate) type Entries = HashMap<u128, usize>;

/// The services of a configuration, by number: first the targets of its plan, then each entry of
/// the table, which may be the entry of a service that a request has named.
pub(crate) struct Services<'a> {
    pub(crate) upstreams: &'a Upstreams,
    pub(crate) table: Table<'static>,
    plan: &'a Arc<Plan>,
    entries: Rc<Entries>,
}

/// A set of a service's instances that upstreams follow.
pub(crate) struct Followed<'a> {
    pub(crate) key: u128,
    /// Its entry in the table, if it has one.
    pub(crate) entry: Option<usize>,
    pub(crate) target: Cow<'a, Target>,
    /// A request has named it.
    pub(crate) is_named: bool,
    /// It has one instance.
    pub(crate) is_single: bool,
    /// The upstreams that follow it.
    pub(crate) blocks: Vec<&'a Upstream>,
}

impl<'a> Services<'a> {
    /// `None` if no upstream follows Consul.
    pub(crate) fn new(upstreams: &'a Upstreams) -> Option<Services<'a>> {
        Services::at(upstreams, Rc::new(upstreams.table()?.entries()))
    }

    /// As [`Services::new`], with the entries that another one had found.
    pub(crate) fn at(upstreams: &'a Upstreams, entries: Rc<Entries>) -> Option<Services<'a>> {
        let (table, plan) = (upstreams.table()?, upstreams.plan.as_ref()?);
        Some(Services { upstreams, table, plan, entries })
    }

    /// The entries that it has found.
    pub(crate) fn entries(&self) -> Rc<Entries> {
        Rc::clone(&self.entries)
    }

    /// How many services the configuration names.
    pub(crate) fn planned(&self) -> usize {
        self.plan.targets.len()
    }

    /// All numbers.
    pub(crate) fn numbers(&self) -> std::ops::Range<usize> {
        0..self.planned()
            + self.upstreams.templates.as_ref().map_or(0, |_| self.table.entry_capacity())
    }

    /// The name of a service; `None` if there is none of this number.
    pub(crate) fn name(&self, number: usize) -> Option<Cow<'a, str>> {
        match self.plan.targets.get(number) {
            Some(target) => Some(Cow::Borrowed(&target.query.service)),
            None => Some(Cow::Owned(self.table.service_name(number - self.planned())?.name)),
        }
    }

    /// A service; `None` if there is none of this number.
    pub(crate) fn get(&self, number: usize) -> Option<Followed<'a>> {
        let Some(target) = self.plan.targets.get(number) else {
            return self.named(number - self.planned());
        };
        let follows = |block: &&Upstream| block.sets().iter().any(|s| s.target == number);
        let blocks: Vec<&Upstream> = self.upstreams.fixed().filter(follows).collect();
        let key = self.plan.key(number);
        Some(Followed {
            key,
            entry: self.entries.get(&key).copied(),
            target: Cow::Borrowed(target),
            is_named: false,
            is_single: blocks.first().is_some_and(|block| block.is_single()),
            blocks,
        })
    }

    fn named(&self, entry: usize) -> Option<Followed<'a>> {
        let (key, named) = (self.table.key(entry), self.table.service_name(entry)?);
        let template = self.upstreams.templates.as_ref()?.find(named.template)?;
        let places = template.targets_of(&named.name, self.plan);
        let place = places.into_iter().find(|place| place.key == key)?;
        let follows =
            |block: &&OnDemandUpstream| block.template().is_some_and(|t| t.key == named.template);
        let blocks: Vec<&OnDemandUpstream> = self.upstreams.on_demand().filter(follows).collect();
        Some(Followed {
            key,
            entry: Some(entry),
            target: Cow::Owned(place.target),
            is_named: true,
            is_single: blocks.iter().any(|block| block.is_single(&named.name)),
            blocks: blocks.into_iter().map(OnDemandUpstream::pattern).collect(),
        })
    }
}

impl Followed<'_> {
    /// Names of the upstreams.
    pub(crate) fn upstreams(&self) -> Vec<String> {
        self.blocks.iter().map(|block| block.name().into_owned()).collect()
    }

    /// The scope of overrides for its instances.
    pub(crate) fn scope(&self) -> u64 {
        let query = &self.target.query;
        model::service_scope(&query.service, query.datacenter.as_deref())
    }
}
