//! Warnings about the answers to one query, each logged once.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::sink::Sink;
use crate::model::{Level, Skipped, Source};
use crate::text::quote;

/// Most warnings that one query ever logs, and most per answer.
const MAX_WARNINGS: usize = 1000;
const MAX_WARNINGS_PER_ANSWER: usize = 10;

/// What was logged already, by hash.
#[derive(Default)]
pub(super) struct Warnings {
    is_quiet: bool,
    skipped: HashSet<u64>,
    refused: HashSet<u64>,
}

impl Warnings {
    /// Logs nothing.
    pub(super) fn quiet() -> Self {
        Warnings { is_quiet: true, ..Warnings::default() }
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    /// Logs instances that are skipped, or of which a part is ignored: `verb` says which.
    pub(super) fn log_skipped(
        &mut self,
        (name, source): (&str, Source),
        skipped: &[Skipped],
        verb: &str,
        sink: &dyn Sink,
    ) {
        if self.is_quiet {
            return;
        }
        let logged = &mut self.skipped;
        let is_new = |one: &&Skipped| logged.len() < MAX_WARNINGS && logged.insert(hash(one));
        let new: Vec<&Skipped> = skipped.iter().filter(is_new).collect();
        for skipped in new.iter().take(MAX_WARNINGS_PER_ANSWER) {
            let (id, node) = (quote(&skipped.id), quote(&skipped.node));
            let reason = &skipped.reason;
            let who = match source {
                Source::Kv => format!("key \"{id}\""),
                _ => format!("instance \"{id}\" on node \"{node}\""),
            };
            let line = format!("{name}: {who} {verb}: {reason}");
            sink.log(Level::Warn, line);
        }
        let more = new.len().saturating_sub(MAX_WARNINGS_PER_ANSWER);
        if more > 0 {
            sink.log(Level::Warn, format!("{name}: {more} more instances {verb}"));
        }
    }

    /// Logs that the sink refused the set of a target, and why.
    pub(super) fn log_refused(&mut self, target: usize, name: &str, reason: &str, sink: &dyn Sink) {
        let mut is_new =
            || self.refused.len() < MAX_WARNINGS && self.refused.insert(hash(&(target, reason)));
        if !self.is_quiet && is_new() {
            sink.log(Level::Error, format!("{name}: {reason}, keeping the old peers"));
        }
    }

    /// A set was published: the next refusal is logged again.
    pub(super) fn on_published(&mut self) {
        self.refused.clear();
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut h = DefaultHasher::new();
    value.hash(&mut h);
    h.finish()
}
