//! The services that upstreams follow: those that the configuration names, and those that requests
//! have named.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use nginx_consul_core::balance::Rules;
use nginx_consul_core::named::Template;
use nginx_consul_core::sync::{Plan, Target};
use nginx_consul_core::table::{Table, overrides};

use crate::conf::HttpConf;
use crate::peer::Block;
use crate::zone;

/// The services of a configuration, by number: the targets of its plan, and then one for each entry
/// of the table, which may be that of a service that a request has named.
pub(crate) struct Services {
    pub(crate) http: &'static HttpConf,
    pub(crate) table: Table<'static>,
    plan: &'static Arc<Plan>,
    entries: HashMap<u128, usize>,
}

/// A set of a service's instances that upstreams follow.
pub(crate) struct Followed {
    pub(crate) key: u128,
    /// Where it is in the table, once it has a place there.
    pub(crate) entry: Option<usize>,
    pub(crate) target: Cow<'static, Target>,
    /// A request has named it.
    pub(crate) is_named: bool,
    pub(crate) upstreams: Vec<String>,
    pub(crate) rules: Rules,
    /// It has one instance.
    pub(crate) is_single: bool,
    /// One of the upstreams has `consul_keepalive`.
    pub(crate) keeps_alive: bool,
}

impl Services {
    /// `None` if no block follows Consul.
    pub(crate) fn new(http: &'static HttpConf) -> Option<Services> {
        let table = zone::table(http.shm_zone()?)?;
        Some(Services { http, table, plan: http.plan.as_ref()?, entries: table.entries() })
    }

    /// How many the configuration names.
    pub(crate) fn planned(&self) -> usize {
        self.plan.targets.len()
    }

    /// All numbers.
    pub(crate) fn numbers(&self) -> std::ops::Range<usize> {
        0..self.planned() + self.http.templates.as_ref().map_or(0, |_| self.table.entry_capacity())
    }

    /// The name of a service; `None` if there is none of this number.
    pub(crate) fn name(&self, number: usize) -> Option<Cow<'static, str>> {
        match self.plan.targets.get(number) {
            Some(target) => Some(Cow::Borrowed(&target.query.service)),
            None => Some(Cow::Owned(self.table.named(number - self.planned())?.name)),
        }
    }

    /// A service; `None` if there is none of this number.
    pub(crate) fn get(&self, number: usize) -> Option<Followed> {
        let Some(target) = self.plan.targets.get(number) else {
            return self.named(number - self.planned());
        };
        let follows = |block: &&Block| block.sources().iter().any(|s| s.target == number);
        let blocks: Vec<&Block> = self.http.blocks().filter(follows).collect();
        let (key, is_single) =
            (self.plan.key(number), blocks.first().is_some_and(|b| b.is_single()));
        let entry = self.entries.get(&key).copied();
        Some(Followed::new((key, entry), Cow::Borrowed(target), &blocks, is_single))
    }

    fn named(&self, entry: usize) -> Option<Followed> {
        let (key, named) = (self.table.key(entry), self.table.named(entry)?);
        let template = self.http.templates.as_ref()?.find(named.template)?;
        let places = template.places(&named.name, self.plan);
        let place = places.into_iter().find(|place| place.key == key)?;
        let blocks = self.http.named_blocks();
        let blocks: Vec<_> = blocks
            .filter(|block| block.template().map(Template::key) == Some(named.template))
            .collect();
        let is_single = blocks.iter().any(|block| block.is_single(&named.name));
        let patterns: Vec<&Block> = blocks.iter().map(|block| block.pattern()).collect();
        let place =
            Followed::new((key, Some(entry)), Cow::Owned(place.target), &patterns, is_single);
        Some(Followed { is_named: true, ..place })
    }
}

impl Followed {
    fn new(
        (key, entry): (u128, Option<usize>),
        target: Cow<'static, Target>,
        blocks: &[&Block],
        is_single: bool,
    ) -> Followed {
        Followed {
            key,
            entry,
            target,
            is_named: false,
            upstreams: blocks.iter().map(|block| block.name().into_owned()).collect(),
            rules: blocks.first().map(|block| block.rules()).unwrap_or_default(),
            is_single,
            keeps_alive: blocks.iter().any(|block| block.keeps_alive()),
        }
    }

    /// By which its instances are known to overrides.
    pub(crate) fn scope(&self) -> u64 {
        let query = &self.target.query;
        overrides::scope(&query.service, query.datacenter.as_deref())
    }
}
