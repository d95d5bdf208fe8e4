//! To whom a slot belongs: an instance as a member of a target. The slot stays with it when it leaves
//! the target's set, so that requests in flight go on counting and failures are not forgotten; what is
//! noted then is only when it left. The slot of an instance that has left and has no requests in flight
//! can be given to another one.

use super::counters::{PeerCounters, has_requests};
use super::layout::{SlotRef, Table, slot as word};
use super::platform::atomic::Ordering::{AcqRel, Relaxed, Release};

/// Bits of the hash of the address.
const ADDRESS_BITS: u32 = 22;
const ADDRESS: u64 = (1 << ADDRESS_BITS) - 1;
const LEFT: u64 = 1 << ADDRESS_BITS;
const TIME_SHIFT: u32 = ADDRESS_BITS + 1;

/// The owner of the slot of an instance in the set of a target.
pub(super) fn owner(key: u128, identity: u64) -> u64 {
    identity ^ key as u64 ^ ((key >> 64) as u64).rotate_left(32)
}

/// Since when the owner of a slot is a member of the set, or has left it, and a hash of its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Membership(u64);

impl Membership {
    /// A member since a moment of the monotonic clock, milliseconds, at the address with this
    /// [`PeerRecord::address_id`](super::block::PeerRecord::address_id).
    pub(super) fn of(since: u64, address: u64) -> Membership {
        Membership(since << TIME_SHIFT | hash(address))
    }

    fn left(self, now: u64) -> Membership {
        Membership(now << TIME_SHIFT | LEFT | self.0 & ADDRESS)
    }

    pub(super) fn raw(self) -> u64 {
        self.0
    }

    /// Since when, milliseconds of the monotonic clock.
    #[inline]
    pub(super) fn since(self) -> u64 {
        self.0 >> TIME_SHIFT
    }

    pub(super) fn has_left(self) -> bool {
        self.0 & LEFT != 0
    }

    pub(super) fn is_at(self, address: u64) -> bool {
        self.0 & ADDRESS == hash(address)
    }
}

fn hash(address: u64) -> u64 {
    address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - ADDRESS_BITS)
}

impl PeerCounters<'_> {
    #[inline]
    pub(super) fn membership(&self) -> Membership {
        Membership(self.load(word::MEMBERSHIP))
    }

    /// A member begins its slow start anew, unless another process has just changed its membership.
    pub(super) fn restart(&self, now: u64) {
        let before = self.membership();
        if !before.has_left() {
            let Membership(anew) = Membership(now << TIME_SHIFT | before.0 & ADDRESS);
            let word = &self.words[word::MEMBERSHIP];
            let _ = word.compare_exchange(before.0, anew, Relaxed, Relaxed);
        }
    }

    /// When the instance appeared, returned, or recovered from its failures, milliseconds of the
    /// monotonic clock; 0: it was there from the first answer.
    #[inline]
    pub fn started(&self) -> u64 {
        self.membership().since()
    }
}

impl Table<'_> {
    /// Notes that the owner of a slot, if it has one, is not a member any more.
    pub(super) fn note_left(&self, slot: SlotRef, now: u64) {
        let counters = self.peer_counters(slot);
        let before = counters.membership();
        if counters.load(word::OWNER) != 0 && !before.has_left() {
            counters.words[word::MEMBERSHIP].store(before.left(now).0, Release);
        }
    }

    /// Whether the owner of the slot is a member.
    pub(super) fn has_member(&self, slot: usize) -> bool {
        let load = |word| self.slot_word(slot, word).load(Relaxed);
        load(word::OWNER) != 0 && !Membership(load(word::MEMBERSHIP)).has_left()
    }

    /// Gives a slot to a new owner, with all counters at 0.
    pub(super) fn give_slot(&self, slot: SlotRef, owner: u64, (since, address): (u64, u64)) {
        let words = self.peer_counters(slot).words;
        words[word::OWNER + 1..word::WORDS].iter().for_each(|word| word.store(0, Relaxed));
        words[word::MEMBERSHIP].store(Membership::of(since, address).raw(), Relaxed);
        words[word::OWNER].store(owner, Release);
    }

    /// Takes a slot from its owner, unless it has requests in flight; `true` if it is nobody's now.
    ///
    /// A request counts itself and then looks at the owner, so either this sees the request, or the
    /// request sees that the slot has no owner any more: both change the same word, one after the
    /// other.
    pub(super) fn take_slot(&self, slot: SlotRef) -> bool {
        let owner = &self.peer_counters(slot).words[word::OWNER];
        let before = owner.load(Relaxed);
        owner.store(0, Relaxed);
        let is_free =
            self.shards_of(slot).iter().all(|word| !has_requests(word.fetch_add(0, AcqRel)));
        if !is_free {
            owner.store(before, Release);
        }
        is_free
    }
}
