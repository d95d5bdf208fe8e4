//! Services that requests name: `consul_dynamic $service`.
//!
//! ```text
//! worker ── Channel ──▶ ServiceResolver (threads of worker 0) ◀── names of all services ── Consul
//!   ▲                      │ a service              │ none
//!   └── table: entry ◀─────┴─▶ Watcher follows it    └─▶ table: verdict
//! ```
//!
//! Names come from outside. What a worker lets through ([`Allowed`]) is looked up in the names that
//! Consul's catalogue lists ([`Catalog`]); nothing is ever asked about a single name. A service
//! takes an entry of the table until nobody asks for it any more, what is none takes a cell of the
//! verdicts for a moment.
//!
//! The names are read when a request names what they don't list, once for all who wait, and not
//! more than four times a second. So a service that was registered just before its first request is
//! found, and a flood of names costs Consul no more than that. A watch on the catalogue whose names
//! are in the zone would not spare this read, since it is always a moment behind, and Consul would
//! send it all names at every registration, though nobody names a new service.

use std::hash::Hash;
use std::time::Duration;

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::model::ServiceName;
use crate::watch::{Plan, Target};

mod catalog;
mod channel;
mod allow;
mod registry;
mod resolver;
mod store;

pub use allow::{Allowed, Refusal};
pub use catalog::Catalog;
pub use channel::Channel;
pub use resolver::ServiceResolver;
pub use store::ServiceStore;

/// What a block with a service named by requests asks for, whatever the name.
#[derive(Debug)]
pub struct Template {
    /// One for each datacenter, the first to be used first; without a service.
    pub targets: Vec<Target>,
    /// `consul_allow_service`.
    pub allowed: Allowed,
    /// Who asks last before it is dropped has asked this long ago (`consul_idle`).
    pub idle: Duration,
    /// How long it holds that there is no such service.
    pub absent: Duration,
    /// Numbers of the catalogues that its services are in.
    catalogs: Vec<usize>,
    /// Tells the services of different blocks apart, the same over reloads; never from the token.
    pub key: u128,
}

/// The templates of a configuration, and how many services they may have at a time.
#[derive(Debug, Default)]
pub struct Templates {
    all: Vec<Template>,
    catalogs: Vec<Catalog>,
    /// `consul_max_services`.
    pub max: usize,
}

/// Where the peers of a named service come from.
#[derive(Clone, Debug)]
pub struct ServiceTarget {
    /// Name in the table.
    pub key: u128,
    /// The target of the plan that it is, if a block names the service too.
    pub fixed: Option<usize>,
    /// What to ask.
    pub target: Target,
}

impl Templates {
    /// Of the blocks of a configuration, in their order.
    pub fn new(mut all: Vec<Template>, max: usize) -> Templates {
        let mut catalogs = Vec::new();
        for template in &mut all {
            let of = template.targets.iter().map(Catalog::of);
            template.catalogs = of.map(|catalog| number_in(&mut catalogs, catalog)).collect();
        }
        Templates { all, catalogs, max }
    }

    /// Where their services are listed; the resolver has a connection for each.
    pub fn catalogs(&self) -> &[Catalog] {
        &self.catalogs
    }

    /// That of a block, by its number among them.
    pub fn of_block(&self, number: usize) -> Option<&Template> {
        self.all.get(number)
    }

    /// The one with this key.
    pub fn find(&self, key: u128) -> Option<&Template> {
        self.all.iter().find(|template| template.key == key)
    }

    /// That of a service, if it allows the name still.
    pub fn admit(&self, service: &ServiceName) -> Option<&Template> {
        let template = self.find(service.template)?;
        let name = template.allowed.check(service.name.as_bytes());
        (name.as_ref() == Ok(&service.name)).then_some(template)
    }

    /// Their keys.
    pub fn keys(&self) -> Vec<u128> {
        self.all.iter().map(|template| template.key).collect()
    }
}

impl Template {
    /// Settings of a block. What its token shows must never become another block's, also not when
    /// a reload takes blocks away or puts them in another order.
    pub fn new(
        block: &[u8],
        targets: Vec<Target>,
        allowed: Allowed,
        (idle, absent): (Duration, Duration),
    ) -> Template {
        let of: Vec<u128> = targets.iter().map(Target::key).collect();
        let key = hash((of, &allowed.tags, block));
        Template { targets, allowed, idle, absent, catalogs: Vec::new(), key }
    }

    /// Where the peers of a service come from, in the order of use.
    #[allow(clippy::mutable_key_type, reason = "Tls is compared by its options, which are fixed")]
    pub fn places(&self, name: &str, plan: &Plan) -> Vec<ServiceTarget> {
        let place = |target: &Target| {
            let mut target = target.clone();
            target.query.service = name.to_owned();
            target.selection.tags.extend(self.allowed.tags.iter().cloned());
            let fixed = plan.number_of(&target);
            let own_key = || hash((self.key, target.key()));
            let key = fixed.map_or_else(own_key, |number| plan.key(number));
            ServiceTarget { key, fixed, target }
        };
        self.targets.iter().map(place).collect()
    }

    /// What the verdict on a service is noted under. Not the key of a place, which is another
    /// block's too if it is fixed: that one may ask in other datacenters besides.
    pub fn verdict_key(&self, name: &str) -> u128 {
        hash((self.key, name))
    }

    /// What the table calls a service.
    pub fn named(&self, name: &str) -> ServiceName {
        ServiceName { template: self.key, name: name.to_owned() }
    }
}

fn hash(value: impl Hash) -> u128 {
    let mut h = SipHasher13::new();
    value.hash(&mut h);
    h.finish128().as_u128()
}

/// The number of a catalogue among others, added if it is new.
fn number_in(catalogs: &mut Vec<Catalog>, catalog: Catalog) -> usize {
    let known = catalogs.iter().position(|other| *other == catalog);
    known.unwrap_or_else(|| {
        catalogs.push(catalog);
        catalogs.len() - 1
    })
}

#[cfg(test)]
mod tests;
