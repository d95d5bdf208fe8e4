//! The reads that are under way, and which services may be read besides.

use std::collections::HashMap;

/// Reads under way, by the number of the scope.
#[derive(Default)]
pub(super) struct Reads {
    all: usize,
    of_scope: HashMap<Option<usize>, usize>,
}

impl Reads {
    /// Whether a service of this scope may be read now, of `scopes`. A scope that doesn't answer has no
    /// more than half of the readers if there are others, each of which can always begin one read.
    pub(super) fn may_begin(
        &self,
        scope: Option<usize>,
        (readers, scopes): (usize, usize),
    ) -> bool {
        let own = self.of_scope.get(&scope).copied().unwrap_or(0);
        let share = if scopes > 1 { (readers / 2).max(1) } else { readers };
        own == 0 || self.all < readers && own < share
    }

    /// How many threads they need, with one for a scope that has no read.
    pub(super) fn threads(&self, scopes: usize) -> usize {
        self.all + usize::from(scopes > self.of_scope.len())
    }

    pub(super) fn begin(&mut self, scope: Option<usize>) {
        self.all += 1;
        *self.of_scope.entry(scope).or_default() += 1;
    }

    pub(super) fn end(&mut self, scope: Option<usize>) {
        self.all -= 1;
        if let Some(count) = self.of_scope.get_mut(&scope) {
            *count -= 1;
            if *count == 0 {
                self.of_scope.remove(&scope);
            }
        }
    }
}
