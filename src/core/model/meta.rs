//! `Service.Meta` as variables show it.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Values of an instance's `Service.Meta`, by the names that variables use.
pub type Meta = BTreeMap<String, String>;

/// The keys of `Service.Meta` that a configuration has variables for.
///
/// A key is written as in a variable's name: in lower case, with `_` for `-`.
///
/// It is left out of hashes, so that two queries that differ only in this have the same key in the
/// table: a reload with another log format keeps the peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetaKeys(Arc<[String]>);

impl MetaKeys {
    /// Takes the names as in variables.
    pub fn new(names: impl IntoIterator<Item = String>) -> MetaKeys {
        let mut names: Vec<String> = names.into_iter().collect();
        names.sort_unstable();
        names.dedup();
        MetaKeys(names.into())
    }

    /// The name of the variable for a key of `Service.Meta`, if there is one.
    pub(crate) fn wanted(&self, key: &str) -> Option<&String> {
        if self.0.is_empty() {
            return None;
        }
        let is_same = |(a, b): (u8, u8)| a == if b == b'-' { b'_' } else { b.to_ascii_lowercase() };
        self.0.iter().find(|n| n.len() == key.len() && n.bytes().zip(key.bytes()).all(is_same))
    }
}

impl Hash for MetaKeys {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}
