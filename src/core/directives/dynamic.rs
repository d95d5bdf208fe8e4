//! `consul_dynamic service [parameter=value]…`.

use super::words::{Parsed, Words, text};
use crate::balance::ServerParams;
use crate::model::{Query, Selection, Source};
use crate::params::Params;

/// What the directive says.
#[derive(Clone, Debug)]
pub struct Dynamic {
    /// What to ask Consul, but for the datacenter; without a service if requests name it.
    pub query: Query,
    /// The service's name has variables.
    pub by_request: bool,
    /// `dc=`, in the order of use; empty: the agent's own.
    pub datacenters: Vec<String>,
    /// Which instances to take.
    pub selection: Selection,
    /// Parameters of instances that have none of their own.
    pub params: ServerParams,
}

impl Dynamic {
    /// Reads the directive.
    ///
    /// # Errors
    ///
    /// A parameter is unknown, invalid or duplicate, or means nothing to the source.
    pub fn parse(words: &Words<'_>) -> Parsed<Dynamic> {
        let service = text(words.first())?.to_owned();
        let mut dynamic = Dynamic {
            by_request: service.contains('$'),
            query: Query { service, ..Query::default() },
            datacenters: Vec::new(),
            selection: Selection::default(),
            params: ServerParams::default(),
        };
        let (mut params, mut seen) = (Params::default(), Vec::new());
        words.parameters(1, |name, value| {
            seen.push(name.to_owned());
            dynamic.set(name, value, &mut params).ok_or(None)
        })?;
        dynamic.params = dynamic.params.merged_with(&params);
        dynamic.check(&seen).map_err(|why| format!("\"{}\" directive {why}", words.name))?;
        Ok(dynamic)
    }

    /// Takes a parameter; `None` if it is unknown or invalid.
    fn set(&mut self, name: &str, value: &str, params: &mut Params) -> Option<()> {
        // No name of these has a dollar sign: it would be a variable, which only the service may be.
        let is_name = matches!(name, "dc" | "ns" | "partition");
        if value.is_empty() || is_name && value.contains('$') {
            return None;
        }
        let Dynamic { query, selection, .. } = self;
        let owned = || Some(value.to_owned());
        match name {
            "tag" => selection.tags.push(value.to_owned()),
            "source" => query.source = value.parse().ok()?,
            "filter" => query.filter = owned(),
            "dc" => self.datacenters = datacenters(value)?,
            "ns" => query.namespace = owned(),
            "partition" => query.partition = owned(),
            "near" => query.near = owned(),
            "address" => query.address = owned(),
            "status" => selection.admit = value.parse().ok()?,
            "consistency" => query.consistency = value.parse().ok()?,
            "max_fails" | "max_conns" | "fail_timeout" | "slow_start" => {
                params.set(name, value).ok()?;
            }
            _ => return None,
        }
        Some(())
    }

    /// Checks the service and the parameters against each other. Errors go on from
    /// `"consul_dynamic" directive …`.
    fn check(&mut self, parameters: &[String]) -> Parsed {
        let (source, service) = (self.query.source, &self.query.service);
        if service.is_empty() {
            return Err("has an empty service name".into());
        }
        if service.contains('=') {
            return Err(format!("needs a service name before \"{service}\""));
        }
        let meaningless = meaningless_to(source);
        if let Some(name) = parameters.iter().find(|name| meaningless.contains(&name.as_str())) {
            return Err(format!("can't have \"{name}\" with \"source={}\"", source.name()));
        }
        if self.by_request && !matches!(source, Source::Health | Source::Catalog) {
            let source = source.name();
            return Err(format!("can't have a service from a variable with \"source={source}\""));
        }
        if source == Source::Kv {
            self.query.service = self.query.service.trim_matches('/').to_owned();
            if self.query.service.is_empty() {
                return Err("needs a prefix of keys".into());
            }
        }
        Ok(())
    }
}

/// Names separated by commas, none twice.
fn datacenters(value: &str) -> Option<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for name in value.split(',') {
        if name.is_empty() || names.iter().any(|known| known == name) {
            return None;
        }
        names.push(name.to_owned());
    }
    Some(names)
}

/// Parameters that mean nothing to a source.
fn meaningless_to(source: Source) -> &'static [&'static str] {
    match source {
        Source::Health => &[],
        Source::Catalog => &["status"],
        Source::Kv => &["tag", "status", "filter", "near", "address"],
        Source::Query => &["filter"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directives::testing::read;
    use crate::model::{Admit, Consistency};

    fn parse(words: &str) -> Parsed<Dynamic> {
        read(&format!("consul_dynamic {words}"), Dynamic::parse)
    }

    #[test]
    fn every_parameter_has_its_place() {
        let all = parse(
            "web tag=a tag=b dc=x,y ns=n partition=p near=_agent address=wan filter=f \
             status=any consistency=stale max_fails=3 fail_timeout=9s",
        )
        .unwrap();
        let query = &all.query;
        assert_eq!((&*query.service, query.source), ("web", Source::Health));
        let owned = |text: &str| Some(text.to_owned());
        assert_eq!((&query.namespace, &query.partition), (&owned("n"), &owned("p")));
        assert_eq!((&query.near, &query.address), (&owned("_agent"), &owned("wan")));
        assert_eq!((&query.filter, query.consistency), (&owned("f"), Consistency::Stale));
        assert_eq!(
            (&*all.datacenters, all.selection.admit),
            (&["x".into(), "y".into()][..], Admit::Any)
        );
        assert_eq!(all.selection.tags, ["a", "b"]);
        assert!(!all.by_request);
    }

    #[test]
    fn a_service_with_a_variable_is_named_by_requests() {
        assert!(parse("$service").unwrap().by_request);
        let error = parse("$s source=kv").unwrap_err();
        assert!(
            error.ends_with("can't have a service from a variable with \"source=kv\""),
            "{error}"
        );
    }

    #[test]
    fn the_slashes_around_a_prefix_of_keys_are_left_out() {
        assert_eq!(parse("/a/b/ source=kv").unwrap().query.service, "a/b");
        let error = parse("/ source=kv").unwrap_err();
        assert_eq!(error, "\"consul_dynamic\" directive needs a prefix of keys");
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (words, error) in [
            ("web dc=a,a", "invalid value \"dc=a,a\" in \"consul_dynamic\" directive"),
            ("web dc=a,$b", "invalid value \"dc=a,$b\" in \"consul_dynamic\" directive"),
            ("web ns=$n", "invalid value \"ns=$n\" in \"consul_dynamic\" directive"),
            ("web dc=", "invalid value \"dc=\" in \"consul_dynamic\" directive"),
            ("web colour=red", "invalid value \"colour=red\" in \"consul_dynamic\" directive"),
            ("web max_fails=x", "invalid value \"max_fails=x\" in \"consul_dynamic\" directive"),
            ("tag=a", "\"consul_dynamic\" directive needs a service name before \"tag=a\""),
            (
                "web source=query filter=f",
                "\"consul_dynamic\" directive can't have \"filter\" with \"source=query\"",
            ),
            (
                "web source=catalog status=any",
                "\"consul_dynamic\" directive can't have \"status\" with \"source=catalog\"",
            ),
        ] {
            assert_eq!(parse(words).unwrap_err(), error, "{words}");
        }
        let empty = Dynamic::parse(&Words { name: "consul_dynamic", words: &[b""] }).unwrap_err();
        assert_eq!(empty, "\"consul_dynamic\" directive has an empty service name");
    }
}
