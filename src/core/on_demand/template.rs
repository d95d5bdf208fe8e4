//! What a block asks for if requests name its service.

use std::hash::Hash;
use std::time::Duration;

use siphasher::sip128::{Hasher128, SipHasher13};

use super::allow::Allowed;
use super::catalog::Catalog;
use crate::model::ServiceName;
use crate::watch::{Plan, Target};

/// What one block asks for, whatever the name of the service.
#[derive(Debug)]
pub struct Template {
    /// One for each datacenter, in the order of use; without a service.
    pub targets: Vec<Target>,
    /// `consul_allow_service`.
    pub allowed: Allowed,
    /// A service is dropped if no request has named it for this long (`consul_idle`).
    pub idle: Duration,
    /// How long it holds that a service does not exist.
    pub absent: Duration,
    /// How long a request waits for a service (`consul_first_wait`).
    pub patience: Duration,
    /// Numbers of the catalogs that list its services.
    pub(super) catalogs: Vec<usize>,
    /// Distinguishes the services of different blocks, the same over reloads; never from the token.
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

/// Where the peers of a named service come from: a target, with its key in the table.
#[derive(Clone, Debug)]
pub struct ServiceTarget {
    /// Name in the table.
    pub key: u128,
    /// The number of the same target in the plan, if a block of the configuration names the service.
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

    /// The catalogs that list their services.
    pub fn catalogs(&self) -> &[Catalog] {
        &self.catalogs
    }

    /// The templates of the blocks whose services a catalog lists.
    pub(super) fn with_catalog(&self, number: usize) -> impl Iterator<Item = &Template> {
        self.all.iter().filter(move |template| template.catalogs.contains(&number))
    }

    /// The template of a block, by its number among these blocks.
    pub fn of_block(&self, number: usize) -> Option<&Template> {
        self.all.get(number)
    }

    /// The template with this key.
    pub fn find(&self, key: u128) -> Option<&Template> {
        self.all.iter().find(|template| template.key == key)
    }

    /// The template of a service, if it still allows the name.
    pub fn admit(&self, service: &ServiceName) -> Option<&Template> {
        let template = self.find(service.template)?;
        let name = template.allowed.check(service.name.as_bytes());
        (name.as_ref() == Ok(&service.name)).then_some(template)
    }

    /// The keys of all templates.
    pub fn keys(&self) -> Vec<u128> {
        self.all.iter().map(|template| template.key).collect()
    }
}

impl Template {
    /// The template of a block. What its token can read must never be given to another block, even
    /// if a reload removes blocks or changes their order.
    pub fn new(
        block: &[u8],
        targets: Vec<Target>,
        allowed: Allowed,
        (idle, absent, patience): (Duration, Duration, Duration),
    ) -> Template {
        let of: Vec<u128> = targets.iter().map(Target::key).collect();
        let key = hash((of, &allowed.tags, block));
        Template { targets, allowed, idle, absent, patience, catalogs: Vec::new(), key }
    }

    /// The targets of a service, in the order of use.
    #[allow(clippy::mutable_key_type, reason = "Tls is compared by its options, which are fixed")]
    pub fn targets_of(&self, name: &str, plan: &Plan) -> Vec<ServiceTarget> {
        let target_of = |target: &Target| {
            let mut target = target.clone();
            target.query.service = name.to_owned();
            target.selection.tags.extend(self.allowed.tags.iter().cloned());
            let fixed = plan.number_of(&target);
            let own_key = || hash((self.key, target.key()));
            let key = fixed.map_or_else(own_key, |number| plan.key(number));
            ServiceTarget { key, fixed, target }
        };
        self.targets.iter().map(target_of).collect()
    }

    /// The key of a service's lookup result. Not the key of a target: if that is fixed, it is another
    /// block's too, which may ask in other datacenters besides.
    pub fn lookup_key(&self, name: &str) -> u128 {
        hash((self.key, name))
    }

    /// The name of a service in the table.
    pub fn named(&self, name: &str) -> ServiceName {
        ServiceName { template: self.key, name: name.to_owned() }
    }
}

fn hash(value: impl Hash) -> u128 {
    let mut h = SipHasher13::new();
    value.hash(&mut h);
    h.finish128().as_u128()
}

/// The number of a catalog among others, added if it is new.
fn number_in(catalogs: &mut Vec<Catalog>, catalog: Catalog) -> usize {
    let known = catalogs.iter().position(|other| *other == catalog);
    known.unwrap_or_else(|| {
        catalogs.push(catalog);
        catalogs.len() - 1
    })
}
