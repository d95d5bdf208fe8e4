//! Numbers and text as words of the zone, and back.

use super::platform::atomic::{AtomicU64, Ordering::Relaxed};
use crate::text::beginning;

/// Bytes as words, the last one filled with zeros.
pub(super) fn pack(bytes: &[u8]) -> Vec<u64> {
    let word = |chunk: &[u8]| {
        let mut w = [0; 8];
        w[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(w)
    };
    bytes.chunks(8).map(word).collect()
}

/// The bytes of words, without zeros at the end. Only for text, which has no zeros.
pub(super) fn unpack(words: impl Iterator<Item = u64>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(words.size_hint().0 * 8);
    words.for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
    bytes.truncate(bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1));
    bytes
}

/// Stores the beginning of a text in all of these words.
pub(super) fn store_text(words: &[AtomicU64], text: &str) {
    let packed = pack(beginning(text, words.len() * 8).as_bytes());
    let packed = packed.into_iter().chain(std::iter::repeat(0));
    words.iter().zip(packed).for_each(|(word, packed)| word.store(packed, Relaxed));
}

/// The text in these words.
pub(super) fn load_text(words: &[AtomicU64]) -> String {
    let bytes = unpack(words.iter().map(|word| word.load(Relaxed)));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Two numbers as a word.
pub(super) fn join(upper: u32, lower: u32) -> u64 {
    u64::from(upper) << 32 | u64::from(lower)
}

/// The two numbers of a word.
pub(super) fn split(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// A number of two words, the lower one first.
pub(super) fn wide([lower, upper]: [u64; 2]) -> u128 {
    u128::from(upper) << 64 | u128::from(lower)
}
