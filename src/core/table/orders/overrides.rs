//! The orders about instances, as they change a set.

use std::collections::HashMap;

use super::{Action, Subject};
use crate::table::Record;

/// The orders about instances, for who makes a worker's copy of a set.
#[derive(Clone, Debug, Default)]
pub struct Overrides(pub(super) Vec<(Subject, Action)>);

impl Overrides {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is ordered of an instance in an `upstream`, or in all of them (0). One that is narrowed
    /// to the `upstream` counts more than one for all.
    pub fn find(&self, (of_scope, of_upstream): (u64, u64), instance: u64) -> Option<Action> {
        let named = |at: u64| {
            let key = Subject::Instance { scope: of_scope, upstream: at, identity: instance };
            self.0.iter().find(|(subject, _)| *subject == key).map(|(_, action)| *action)
        };
        named(of_upstream).or_else(|| if of_upstream == 0 { None } else { named(0) })
    }

    /// Makes the records of a set what is ordered of them.
    pub fn apply(&self, (of_scope, of_upstream): (u64, u64), records: &mut [Record]) {
        let mut ordered: HashMap<u64, (bool, Action)> = HashMap::new();
        for (subject, action) in &self.0 {
            let Subject::Instance { scope, upstream, identity } = *subject else { continue };
            let is_narrow = upstream != 0;
            if scope == of_scope && (!is_narrow || upstream == of_upstream) {
                let held = ordered.entry(identity).or_insert((is_narrow, *action));
                if is_narrow {
                    *held = (true, *action);
                }
            }
        }
        if ordered.is_empty() {
            return;
        }
        for record in records {
            if let Some((_, action)) = ordered.get(&record.identity) {
                record.obey(*action);
            }
        }
    }
}
