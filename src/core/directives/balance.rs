//! `consul_balance method` and `consul_balance hash key [consistent]`.

use super::words::{Parsed, Words, invalid, text};
use crate::balance::Method;

/// The method, and the words of the key of `hash`, which may have variables.
///
/// # Errors
///
/// The method is unknown, `hash` has no key, or there are words too many.
pub fn balance<'a>(words: &Words<'a>) -> Parsed<(Method, Option<&'a [u8]>)> {
    let directive = words.name;
    let hash = |consistent, key| Ok((Method::Hash { consistent }, Some(key)));
    match *words.words {
        [b"hash"] => Err(format!("no key of \"hash\" in \"{directive}\" directive")),
        [b"hash", key] => hash(false, key),
        [b"hash", key, b"consistent"] => hash(true, key),
        [b"hash", _, word, ..] | [_, word, ..] => Err(invalid(directive, word)),
        _ => {
            let name = text(words.first())?;
            let method = Method::from_name(name).ok_or_else(|| {
                format!(
                    "unknown method \"{name}\" in \"{directive}\" directive, it must be \
                     \"round_robin\", \"random\", \"least_conn\", \"least_time\" or \"hash\""
                )
            })?;
            Ok((method, None))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directives::testing::read;

    fn parse(words: &str) -> Parsed<(Method, Option<String>)> {
        read(&format!("consul_balance {words}"), |words| {
            let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
            balance(words).map(|(method, key)| (method, key.map(text)))
        })
    }

    #[test]
    fn a_hash_has_a_key_and_other_methods_have_none() {
        assert_eq!(parse("least_conn"), Ok((Method::LeastConn, None)));
        let key = || Some("$uri".to_owned());
        assert_eq!(parse("hash $uri"), Ok((Method::Hash { consistent: false }, key())));
        assert_eq!(parse("hash $uri consistent"), Ok((Method::Hash { consistent: true }, key())));
        for words in ["hash", "hash $uri sideways", "random two", "ip_hash"] {
            assert!(parse(words).is_err(), "{words}");
        }
    }
}
