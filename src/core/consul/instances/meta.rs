//! The part of `Service.Meta` that says how nginx is to treat the instance.

use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::params::{BadParam, PREFIX, Params};
use crate::text::quote;

/// Most flaws that are told of one instance.
const MAX_FLAWS: usize = 4;

/// The parameters, and what is wrong with others.
pub(crate) type Own = (Params, Vec<String>);

/// Reads the pairs that concern nginx; the others cost nothing. Also `null`, as Consul writes it.
pub(crate) fn parse<'de, D: Deserializer<'de>>(json: D) -> Result<Own, D::Error> {
    json.deserialize_option(MetaVisitor)
}

struct MetaVisitor;

impl<'de> Visitor<'de> for MetaVisitor {
    type Value = Own;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of texts")
    }

    fn visit_none<E>(self) -> Result<Own, E> {
        Ok(Own::default())
    }

    fn visit_some<D: Deserializer<'de>>(self, json: D) -> Result<Own, D::Error> {
        json.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Own, A::Error> {
        let (mut params, mut flaws) = Own::default();
        while let Some(key) = map.next_key::<String>()? {
            let Some(name) = key.strip_prefix(PREFIX) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value: String = map.next_value()?;
            let flaw = match params.set(name, &value) {
                Ok(()) => continue,
                Err(BadParam::Name) => format!("unknown parameter \"{}\"", quote(&key)),
                Err(BadParam::Value) => {
                    format!("invalid value \"{}\" of \"{}\"", quote(&value), quote(&key))
                }
            };
            if flaws.len() < MAX_FLAWS {
                flaws.push(format!("{flaw} in Service.Meta"));
            }
        }
        Ok((params, flaws))
    }
}
