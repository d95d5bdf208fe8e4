//! Entries: the state of one target besides its peers, chiefly how fresh its data is.

use std::collections::HashMap;
use std::time::Duration;

use super::layout::{Table, entry as word, header};
use super::platform::atomic::Ordering::{Acquire, Relaxed, Release};
use super::words::{join, load_text, split, store_text, wide};
use crate::model::{Mode, Pending, Reason, ServiceName};
use crate::process::ProcessId;

/// How fresh the data of a target is, for the status. Times are milliseconds of the monotonic clock; 0
/// is never.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// `X-Consul-Index` of the last good answer.
    pub index: u64,
    /// When the last good answer came.
    pub last_good: u64,
    /// When the set last changed.
    pub last_change: u64,
    /// Failures in a row since the last good answer.
    pub failures: u64,
    /// Number of the server that answered or failed last.
    pub server: usize,
    /// How the service is followed.
    pub mode: Mode,
    /// The set is from the state file; no answer has come since.
    pub restored: bool,
    /// The watcher that runs now has had a good answer.
    pub confirmed: bool,
    /// When Consul is asked again after a failure.
    pub retry_at: u64,
    /// The last error, empty if there was none since the last good answer.
    pub error: String,
    /// A removal that waits to be confirmed.
    pub pending: Option<Pending>,
}

impl Table<'_> {
    /// The entry of a target, if it has one.
    pub fn find(&self, key: u128) -> Option<usize> {
        (0..self.layout.entry_count).find(|&e| self.key(e) == key && key != 0)
    }

    /// The entries of all targets, by key. For a caller that looks for many.
    pub fn entries(&self) -> HashMap<u128, usize> {
        let held = (0..self.layout.entry_count).map(|entry| (self.key(entry), entry));
        held.filter(|(key, _)| *key != 0).collect()
    }

    /// How many more targets there is room for.
    pub fn free_entries(&self) -> usize {
        (0..self.layout.entry_count).filter(|&e| self.key(e) == 0).count()
    }

    /// Key of the target that has the entry; 0 if it is free. The low word decides: it is stored last
    /// and cleared first, so that no entry is lost if the writer is killed in between.
    pub fn key(&self, entry: usize) -> u128 {
        let lo = self.entry_word(entry, word::KEY_LO).load(Acquire);
        if lo == 0 {
            return 0;
        }
        let hi = self.entry_word(entry, word::KEY_HI).load(Acquire);
        wide([lo, hi])
    }

    /// Generation of the entry's set: it moves with every change and is 0 before the first answer.
    /// A request loads only this to know that nothing has changed.
    #[inline]
    pub fn generation(&self, entry: usize) -> u64 {
        self.entry_word(entry, word::GENERATION).load(Acquire)
    }

    /// The sum of all entries' generations: it moves with every change of any set.
    pub fn generations(&self) -> u64 {
        let all = (0..self.layout.entry_count).map(|entry| self.generation(entry));
        all.fold(0, u64::wrapping_add)
    }

    /// Notes a good answer, which came `now`, milliseconds of the monotonic clock.
    pub fn note_good(&self, entry: usize, index: u64, server: usize, mode: Mode, now: u64) {
        let set = |word, value: u64| self.entry_word(entry, word).store(value, Relaxed);
        set(word::INDEX, index);
        set(word::SERVER, server as u64);
        set(word::MODE, encode(mode));
        set(word::FAILURES, 0);
        set(word::ERROR, 0);
        set(word::RESTORED, 0);
        set(word::RETRY_AT, 0);
        self.entry_word(entry, word::LAST_GOOD).store(now, Release);
    }

    /// Notes which process had the good answer.
    pub fn note_confirmed(&self, entry: usize, by: ProcessId) {
        self.entry_word(entry, word::CONFIRMED_BY).store(by.get(), Relaxed);
    }

    /// Notes when Consul is asked again, milliseconds of the monotonic clock.
    pub fn note_retry(&self, entry: usize, at: u64) {
        self.entry_word(entry, word::RETRY_AT).store(at, Relaxed);
    }

    /// Notes the removal that waits for confirmation, if any.
    pub fn note_pending(&self, entry: usize, pending: Option<Pending>) {
        let raw = pending.map_or(0, |p| {
            u64::from(p.removals) << 32 | u64::from(p.confirmed) << 16 | u64::from(p.of)
        });
        self.entry_word(entry, word::PENDING).store(raw, Relaxed);
    }

    /// Counts an answer that changed nothing.
    pub fn count_refusal(&self, entry: usize, reason: Reason) {
        self.entry_word(entry, word::REFUSALS + reason as usize).fetch_add(1, Relaxed);
    }

    /// Answers that changed nothing, by reason; reasons with none are left out.
    pub fn refusals(&self, entry: usize) -> Vec<(Reason, u64)> {
        let count = |reason: &Reason| self.entry_word(entry, word::REFUSALS + *reason as usize);
        Reason::ALL
            .iter()
            .map(|reason| (*reason, count(reason).load(Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// Notes that the entry's set is from the state file, and the index and time of its answer, in
    /// milliseconds of the monotonic clock.
    pub fn note_restored(&self, entry: usize, index: u64, last_good: u64) {
        self.entry_word(entry, word::INDEX).store(index, Relaxed);
        self.entry_word(entry, word::RESTORED).store(1, Relaxed);
        self.entry_word(entry, word::LAST_GOOD).store(last_good, Release);
    }

    /// When the last good answer came, milliseconds of the monotonic clock; 0 if none did.
    pub fn last_good(&self, entry: usize) -> u64 {
        self.entry_word(entry, word::LAST_GOOD).load(Relaxed)
    }

    /// Failures in a row since the last good answer.
    pub fn failures(&self, entry: usize) -> u64 {
        self.entry_word(entry, word::FAILURES).load(Relaxed)
    }

    /// Notes a failure. The text is cut to the room there is.
    pub fn note_failure(&self, entry: usize, error: &str, failures: u64, server: usize) {
        store_text(self.entry_words(entry, word::ERROR..word::WORDS), error);
        self.entry_word(entry, word::SERVER).store(server as u64, Relaxed);
        self.entry_word(entry, word::FAILURES).store(failures, Relaxed);
    }

    /// The name of the service, if a request named it.
    pub fn service_name(&self, entry: usize) -> Option<ServiceName> {
        let name = load_text(self.entry_words(entry, word::NAME..word::CONFIRMED_BY));
        let template = word::TEMPLATE.map(|word| self.entry_word(entry, word).load(Relaxed));
        let is_named = self.key(entry) != 0 && !name.is_empty();
        is_named.then(|| ServiceName { template: wide(template), name })
    }

    /// Notes the name of the service. Only under the publishers' lock, while the entry has no key.
    pub(super) fn set_service_name(&self, entry: usize, named: &ServiceName, now: u64) {
        let set = |word, value| self.entry_word(entry, word).store(value, Relaxed);
        set(word::USED, now);
        set(word::TEMPLATE[0], named.template as u64);
        set(word::TEMPLATE[1], (named.template >> 64) as u64);
        store_text(self.entry_words(entry, word::NAME..word::CONFIRMED_BY), &named.name);
    }

    /// [`service_scope`](crate::model::service_scope) of the target, which it was claimed with.
    pub(super) fn scope(&self, entry: usize) -> u64 {
        self.entry_word(entry, word::SCOPE).load(Relaxed)
    }

    /// When a request last asked for the target, milliseconds of the monotonic clock.
    pub fn last_used(&self, entry: usize) -> u64 {
        self.entry_word(entry, word::USED).load(Relaxed)
    }

    /// Notes that a request asks for the target; a store every second at most.
    #[inline]
    pub fn note_used(&self, entry: usize, now: u64) {
        let word = self.entry_word(entry, word::USED);
        if now.saturating_sub(word.load(Relaxed)) >= 1000 {
            word.store(now, Relaxed);
        }
    }

    pub(super) fn note_change(&self, entry: usize, now: u64) {
        self.entry_word(entry, word::LAST_CHANGE).store(now, Relaxed);
    }

    /// How fresh the data of an entry is.
    pub fn freshness(&self, entry: usize) -> Freshness {
        let get = |word| self.entry_word(entry, word).load(Relaxed);
        Freshness {
            index: get(word::INDEX),
            last_good: get(word::LAST_GOOD),
            last_change: get(word::LAST_CHANGE),
            failures: get(word::FAILURES),
            server: get(word::SERVER) as usize,
            mode: decode(get(word::MODE)),
            restored: get(word::RESTORED) != 0,
            confirmed: get(word::CONFIRMED_BY) != 0
                && get(word::CONFIRMED_BY) == self.load(header::LEADER),
            retry_at: get(word::RETRY_AT),
            error: match get(word::ERROR) {
                0 => String::new(),
                _ => load_text(self.entry_words(entry, word::ERROR..word::WORDS)),
            },
            pending: match get(word::PENDING) {
                0 => None,
                raw => Some(Pending {
                    removals: (raw >> 32) as u32,
                    confirmed: (raw >> 16) as u16,
                    of: raw as u16,
                }),
            },
        }
    }
}

/// A mode as a word, its delay in milliseconds.
fn encode(mode: Mode) -> u64 {
    let ms = |delay: Duration| u32::try_from(delay.as_millis()).unwrap_or(u32::MAX);
    match mode {
        Mode::Blocking => 0,
        Mode::Polling { delay } => join(1, ms(delay)),
        Mode::Triggered { delay } => join(2, ms(delay)),
    }
}

fn decode(raw: u64) -> Mode {
    let (kind, ms) = split(raw);
    let delay = Duration::from_millis(ms.into());
    match kind {
        0 => Mode::Blocking,
        1 => Mode::Polling { delay },
        _ => Mode::Triggered { delay },
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::zone;
    use super::*;

    #[test]
    fn a_failure_shows_until_the_next_good_answer() {
        let table = Table::create(zone(1 << 17), 16).unwrap();
        let e = table.claim(7, ProcessId::own()).unwrap();
        let long = "é".repeat(400);
        table.note_failure(e, &long, 3, 1);
        let seen = table.freshness(e);
        assert!(long.starts_with(&seen.error) && seen.error.len() >= 200, "{}", seen.error.len());
        assert_eq!((seen.failures, seen.server, seen.last_good), (3, 1, 0));
        table.note_restored(e, 41, 500);
        let seen = table.freshness(e);
        assert_eq!((seen.restored, seen.index, seen.last_good), (true, 41, 500));
        assert_eq!(seen.failures, 3, "what is restored is no answer");
        table.note_good(e, 42, 0, Mode::Polling { delay: Duration::from_secs(5) }, 1_000);
        let seen = table.freshness(e);
        assert_eq!((seen.error.as_str(), seen.failures, seen.index), ("", 0, 42));
        assert_eq!(
            (seen.last_good, seen.mode),
            (1_000, Mode::Polling { delay: Duration::from_secs(5) })
        );
        let longest = Mode::Triggered { delay: Duration::from_millis(u32::MAX.into()) };
        table.note_good(e, 42, 0, longest, 1_000);
        assert_eq!(table.freshness(e).mode, longest);
        assert!(!seen.restored);
    }

    #[test]
    fn a_set_is_confirmed_while_the_one_who_saw_the_answer_leads() {
        let table = Table::create(zone(1 << 17), 16).unwrap();
        let (old, new) = (ProcessId::own(), ProcessId::from_raw(7));
        let e = table.claim(7, old).unwrap();
        assert!(!table.freshness(e).confirmed);
        table.acquire_leadership(old);
        table.note_good(e, 42, 0, Mode::Blocking, 1_000);
        table.note_confirmed(e, old);
        assert!(table.freshness(e).confirmed);
        table.acquire_leadership(new);
        assert!(!table.freshness(e).confirmed, "a new worker 0 has not asked yet");
        table.note_confirmed(e, new);
        assert!(table.freshness(e).confirmed);
    }

    #[test]
    fn the_next_try_is_noted_until_a_good_answer() {
        let table = Table::create(zone(1 << 17), 16).unwrap();
        let e = table.claim(7, ProcessId::own()).unwrap();
        table.note_failure(e, "refused", 1, 0);
        table.note_retry(e, 1_250);
        assert_eq!(table.freshness(e).retry_at, 1_250);
        table.note_good(e, 42, 0, Mode::Blocking, 2_000);
        assert_eq!(table.freshness(e).retry_at, 0);
    }

    #[test]
    fn refusals_are_counted_by_reason_and_stay_over_good_answers() {
        let table = Table::create(zone(1 << 17), 16).unwrap();
        let e = table.claim(7, ProcessId::own()).unwrap();
        assert_eq!(table.refusals(e), []);
        // Neither the text of an error nor a pending removal touches a counter.
        table.note_failure(e, &"x".repeat(1000), 1, 0);
        let pending = Pending { removals: 70_000, confirmed: 2, of: 3 };
        table.note_pending(e, Some(pending));
        assert_eq!(table.freshness(e).pending, Some(pending));
        for reason in [Reason::Stale, Reason::Token, Reason::Connect, Reason::Stale] {
            table.count_refusal(e, reason);
        }
        table.note_pending(e, None);
        table.note_good(e, 42, 0, Mode::Blocking, 1_000);
        let counted = [(Reason::Connect, 1), (Reason::Stale, 2), (Reason::Token, 1)];
        assert_eq!(table.refusals(e), counted);
        assert_eq!(table.freshness(e).pending, None);
    }
}
