//! `Service.Meta`: how nginx is to treat the instance, and what variables tell of it.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::model::{Meta, MetaKeys};
use crate::params::{BadParam, PREFIX, Params};
use crate::text::{quote, shortened};

/// Most flaws that are told of one instance.
const MAX_FLAWS: usize = 4;

/// Longest value that is kept whole, in bytes; Consul takes no longer ones.
const MAX_VALUE: usize = 512;

/// The parts of `Service.Meta` that matter.
#[derive(Debug, Default)]
pub(crate) struct Own {
    pub(crate) params: Params,
    /// What is wrong with parameters.
    pub(crate) flaws: Vec<String>,
    pub(crate) meta: Meta,
}

/// Reads the pairs that matter; the values of the others are not looked at. `None`, or `null` as
/// Consul writes it, has none.
pub(crate) fn parse(json: Option<&RawValue>, keys: Option<&MetaKeys>) -> serde_json::Result<Own> {
    let mut own = Own::default();
    let Some(json) = json else { return Ok(own) };
    // In order, as Consul writes it.
    let pairs: BTreeMap<String, &RawValue> = serde_json::from_str(json.get())?;
    for (key, value) in pairs {
        let wanted = keys.and_then(|keys| keys.wanted(&key));
        let parameter = key.strip_prefix(PREFIX);
        if wanted.is_none() && parameter.is_none() {
            continue;
        }
        let value: String = serde_json::from_str(value.get())?;
        if let Some(parameter) = parameter {
            own.set(parameter, (&key, &value));
        }
        if let Some(name) = wanted {
            // Keys that differ only in case or hyphens have one variable: the first counts.
            let value = || shortened(value, MAX_VALUE);
            own.meta.entry(name.clone()).or_insert_with(value);
        }
    }
    Ok(own)
}

impl Own {
    /// Takes the pair that is a parameter.
    fn set(&mut self, name: &str, (key, value): (&str, &str)) {
        let flaw = match self.params.set(name, value) {
            Ok(()) => return,
            Err(BadParam::Name) => format!("unknown parameter \"{}\"", quote(key)),
            Err(BadParam::Value) => {
                format!("invalid value \"{}\" of \"{}\"", quote(value), quote(key))
            }
        };
        if self.flaws.len() < MAX_FLAWS {
            self.flaws.push(format!("{flaw} in Service.Meta"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(json: &str, keys: &[&str]) -> Meta {
        let json: &RawValue = serde_json::from_str(json).unwrap();
        let keys = MetaKeys::new(keys.iter().map(|&key| key.to_owned()));
        parse(Some(json), Some(&keys)).unwrap().meta
    }

    #[test]
    fn only_the_keys_that_have_variables_are_kept() {
        let json = r#"{"Canary-Group":"blue","other":7,"n":"x","version":"1.2"}"#;
        let kept = meta(json, &["canary_group", "version", "absent"]);
        let expected = [("canary_group", "blue"), ("version", "1.2")];
        assert!(kept.iter().map(|(k, v)| (k.as_str(), v.as_str())).eq(expected), "{kept:?}");
        assert!(meta(json, &[]).is_empty());
    }

    #[test]
    fn of_keys_with_one_name_the_first_counts() {
        assert_eq!(meta(r#"{"A-B":"1","a-b":"2","a_b":"3"}"#, &["a_b"])["a_b"], "1");
    }

    #[test]
    fn a_value_is_short_whoever_wrote_it() {
        let json = format!(r#"{{"v":"{}"}}"#, "x".repeat(100_000));
        assert_eq!(meta(&json, &["v"])["v"].len(), MAX_VALUE);
    }

    #[test]
    fn a_parameter_for_nginx_may_have_a_variable_too() {
        let json: &RawValue = serde_json::from_str(r#"{"nginx_weight":"7"}"#).unwrap();
        let keys = MetaKeys::new(["nginx_weight".to_owned()]);
        let own = parse(Some(json), Some(&keys)).unwrap();
        assert_eq!((own.params.weight.map(u16::from), &*own.meta["nginx_weight"]), (Some(7), "7"));
    }
}
