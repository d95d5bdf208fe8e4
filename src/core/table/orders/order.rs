//! An order, and as what it lies in a cell.

use std::hash::{Hash, Hasher};

use siphasher::sip::SipHasher13;

use crate::text::{beginning, shortened};

/// Words of a cell.
pub(in crate::table) const WORDS: usize = 48;
/// 0: free.
pub(super) const DIGEST: usize = 0;
pub(super) const SUBJECT: usize = 1;
const ACTION: usize = 4;
const SINCE: usize = 5;
pub(super) const UNTIL: usize = 6;
/// Of the four texts, 16 bits each.
const LENGTHS: usize = 7;
const TEXTS: usize = 8;
/// Of a service or an instance.
const NAME_BYTES: usize = 88;
const UPSTREAM_BYTES: usize = 64;
pub(super) const BY_BYTES: usize = (WORDS - TEXTS) * 8 - 2 * NAME_BYTES - UPSTREAM_BYTES;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The set of a target stays as it is.
    Freeze,
    /// No new request; those in flight end.
    Drain,
    /// The same, of one that is out of order.
    Down,
    /// Neither its failures nor its own word keep it out.
    Up,
    /// This weight, at least 1.
    Weight(u16),
}

/// What an order is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A target of this key.
    Target(u128),
    /// An instance.
    Instance {
        /// [`scope`] of its service.
        scope: u64,
        /// [`upstream`] that it holds for; 0: all.
        upstream: u64,
        /// As in [`Record::identity`](super::super::Record::identity).
        identity: u64,
    },
}

/// An order. Times are milliseconds since the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What about.
    pub subject: Subject,
    /// What is to be done.
    pub action: Action,
    /// When it was given.
    pub since_ms: u64,
    /// When its time is over; 0: never.
    pub until_ms: u64,
    /// The service, for people; a long name is [shortened](order_text).
    pub service: String,
    /// The instance's service id, likewise; empty where it is about a target.
    pub instance: String,
    /// The `upstream` that it is narrowed to; empty: all.
    pub upstream: String,
    /// Who gave it.
    pub by: String,
}

/// A name as orders keep it.
pub fn order_text(name: &str) -> String {
    shortened(name.to_owned(), NAME_BYTES)
}

/// What the instances of a service in a datacenter, as it is asked for, have in common.
pub fn scope(service: &str, datacenter: Option<&str>) -> u64 {
    digest_of(&(service, datacenter))
}

/// What stands for the name of an `upstream`.
pub fn upstream(name: &[u8]) -> u64 {
    digest_of(&name)
}

/// Never 0.
fn digest_of(value: &impl Hash) -> u64 {
    let mut hasher = SipHasher13::new();
    value.hash(&mut hasher);
    hasher.finish().max(1)
}

impl Subject {
    /// In three words; the last one is 0 for a target only.
    pub(crate) fn encode(self) -> [u64; 3] {
        match self {
            Subject::Target(key) => [key as u64, (key >> 64) as u64, 0],
            Subject::Instance { scope, upstream, identity } => [scope, upstream, identity],
        }
    }

    /// The subject of [`Subject::encode`]'s words.
    pub(crate) fn decode([first, second, identity]: [u64; 3]) -> Subject {
        match identity {
            0 => Subject::Target(u128::from(second) << 64 | u128::from(first)),
            identity => Subject::Instance { scope: first, upstream: second, identity },
        }
    }
}

impl Action {
    fn encode(self) -> u64 {
        match self {
            Action::Freeze => 1 << 32,
            Action::Drain => 2 << 32,
            Action::Down => 3 << 32,
            Action::Up => 4 << 32,
            Action::Weight(weight) => 5 << 32 | u64::from(weight),
        }
    }

    fn decode(raw: u64) -> Option<Action> {
        match raw >> 32 {
            1 => Some(Action::Freeze),
            2 => Some(Action::Drain),
            3 => Some(Action::Down),
            4 => Some(Action::Up),
            5 => Some(Action::Weight((raw as u16).max(1))),
            _ => None,
        }
    }

    /// As the API calls it.
    pub fn name(self) -> &'static str {
        match self {
            Action::Freeze => "freeze",
            Action::Drain => "drain",
            Action::Down => "down",
            Action::Up => "up",
            Action::Weight(_) => "weight",
        }
    }

    /// The action of that name about an instance; `None` if there is none, or not with such a weight.
    pub(crate) fn of_instance(name: &str, weight: Option<u16>) -> Option<Action> {
        match (name, weight) {
            ("weight", Some(weight)) if weight > 0 => Some(Action::Weight(weight)),
            ("drain", None) => Some(Action::Drain),
            ("down", None) => Some(Action::Down),
            ("up", None) => Some(Action::Up),
            _ => None,
        }
    }

    /// The weight, where that is what is ordered.
    pub fn weight(self) -> Option<u16> {
        match self {
            Action::Weight(weight) => Some(weight),
            _ => None,
        }
    }
}

impl Order {
    pub(super) fn encode(&self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words[SUBJECT..ACTION].copy_from_slice(&self.subject.encode());
        words[ACTION] = self.action.encode();
        (words[SINCE], words[UNTIL]) = (self.since_ms, self.until_ms);
        let mut bytes = Vec::with_capacity((WORDS - TEXTS) * 8);
        let texts = [
            &shortened(self.service.clone(), NAME_BYTES),
            &shortened(self.upstream.clone(), UPSTREAM_BYTES),
            &shortened(self.instance.clone(), NAME_BYTES),
            beginning(&self.by, BY_BYTES),
        ];
        for (at, text) in texts.iter().enumerate() {
            words[LENGTHS] |= (text.len() as u64) << (16 * at);
            bytes.extend(text.bytes());
        }
        let packed = crate::table::words::pack(&bytes);
        words[TEXTS..TEXTS + packed.len()].copy_from_slice(&packed);
        words[DIGEST] = digest_of(&&words[SUBJECT..]);
        words
    }

    /// `None` if these words are no order, or not one only.
    pub(super) fn decode(words: &[u64; WORDS]) -> Option<Order> {
        if words[DIGEST] != digest_of(&&words[SUBJECT..]) {
            return None;
        }
        let bytes: Vec<u8> = words[TEXTS..].iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut start = 0;
        let mut text = |at: usize| {
            let end = start + usize::from((words[LENGTHS] >> (16 * at)) as u16);
            let text = String::from_utf8_lossy(bytes.get(start..end)?).into_owned();
            start = end;
            Some(text)
        };
        let (service, upstream, instance, by) = (text(0)?, text(1)?, text(2)?, text(3)?);
        let subject = [words[SUBJECT], words[SUBJECT + 1], words[SUBJECT + 2]];
        let subject = Subject::decode(subject);
        let action = Action::decode(words[ACTION])?;
        // An order of one kind about something of the other would do nothing.
        let fits = (action == Action::Freeze) == matches!(subject, Subject::Target(_));
        let (since_ms, until_ms) = (words[SINCE], words[UNTIL]);
        let order = Order { subject, action, since_ms, until_ms, service, instance, upstream, by };
        fits.then_some(order)
    }

    /// Whether its time is not over.
    pub fn is_in_force(&self, now_ms: u64) -> bool {
        self.until_ms == 0 || now_ms < self.until_ms
    }
}
