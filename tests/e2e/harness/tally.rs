//! Counting who answered, as a string to compare.

use std::collections::BTreeMap;
use std::fmt;

/// How often each outcome was seen; prints as `a: 5, b: 1`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<String, usize>);

impl Tally {
    /// Counts one.
    pub fn add(&mut self, outcome: impl Into<String>) {
        self.add_many(outcome, 1);
    }

    /// Counts several.
    pub fn add_many(&mut self, outcome: impl Into<String>, count: usize) {
        *self.0.entry(outcome.into()).or_default() += count;
    }

    /// Adds all that another counted.
    pub fn merge(&mut self, other: &Tally) {
        for (outcome, count) in &other.0 {
            self.add_many(outcome.as_str(), *count);
        }
    }

    /// How often `outcome` was seen.
    pub fn of(&self, outcome: &str) -> usize {
        self.0.get(outcome).copied().unwrap_or(0)
    }

    /// How many were counted in all.
    pub fn total(&self) -> usize {
        self.0.values().sum()
    }

    /// The outcomes, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The outcomes, in order, joined by a space.
    pub fn outcomes(&self) -> String {
        self.names().collect::<Vec<_>>().join(" ")
    }
}

impl<S: Into<String>> FromIterator<S> for Tally {
    fn from_iter<I: IntoIterator<Item = S>>(outcomes: I) -> Tally {
        let mut tally = Tally::default();
        outcomes.into_iter().for_each(|outcome| tally.add(outcome));
        tally
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = self.0.iter().map(|(o, n)| format!("{o}: {n}")).collect();
        f.write_str(&parts.join(", "))
    }
}
