//! Applies the overrides in force to the records of a set.

use std::collections::HashMap;

use crate::model::{Action, Override};
use crate::table::PeerRecord;

/// The overrides in force, by what they are about.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    frozen: HashMap<u128, Override>,
    /// By scope and identity.
    instances: HashMap<(u64, u64), Vec<Override>>,
}

impl FromIterator<Override> for Overrides {
    fn from_iter<I: IntoIterator<Item = Override>>(held: I) -> Overrides {
        let mut overrides = Overrides::default();
        for held in held {
            match held.selection {
                Some(key) => drop(overrides.frozen.insert(key, held)),
                None => overrides.instances.entry(held.instance()).or_default().push(held),
            }
        }
        overrides
    }
}

impl Overrides {
    /// Whether the selection of this key is frozen, and by whom.
    pub fn frozen(&self, key: u128) -> Option<&Override> {
        self.frozen.get(&key)
    }

    /// The overrides of an instance, by its [`service_scope`](crate::model::service_scope) and its
    /// identity: for all upstreams, and for single ones.
    pub fn of_instance(&self, scope: u64, identity: u64) -> &[Override] {
        self.instances.get(&(scope, identity)).map_or(&[], Vec::as_slice)
    }

    /// Applies the overrides to the records of a set that `upstream` uses. An override for this
    /// `upstream` alone takes precedence over one for all.
    pub fn apply(&self, (scope, upstream): (u64, &[u8]), records: &mut [PeerRecord]) {
        if self.instances.is_empty() {
            return;
        }
        for record in records {
            let held = self.of_instance(scope, record.identity);
            let named = |held: &&Override| {
                held.upstream.as_ref().is_some_and(|name| name.as_bytes() == upstream)
            };
            let held =
                held.iter().find(named).or_else(|| held.iter().find(|o| o.upstream.is_none()));
            if let Some(Override { action, weight, .. }) = held {
                match action {
                    Action::Freeze => {}
                    Action::Drain | Action::Down => record.set_down(),
                    Action::Up => record.set_up(),
                    Action::Weight => {
                        record.weight = weight.map_or(record.weight, |w| w.get().into())
                    }
                }
            }
        }
    }
}
