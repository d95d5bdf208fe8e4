//! Directives for tests.

use super::words::Words;

/// What `read` makes of a directive as it stands in a configuration, words separated by spaces.
pub(super) fn read<T>(directive: &str, read: impl FnOnce(&Words<'_>) -> T) -> T {
    let mut words = directive.split(' ');
    let name = words.next().unwrap_or_default();
    let words: Vec<&[u8]> = words.map(str::as_bytes).collect();
    read(&Words { name, words: &words })
}
