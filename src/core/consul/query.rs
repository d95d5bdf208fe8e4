//! What one request asks ([`View`], [`Fetch`]), and a [`Query`] as the path of that request.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::model::{Consistency, Query, Source};

/// Everything but RFC 3986's unreserved characters.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// As [`ESCAPED`], but slashes part the folders of a key.
const KEY: &AsciiSet = &ESCAPED.remove(b'/');

/// Which part of a service, or of all services, is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum View {
    /// Everything that the query's source has.
    #[default]
    Full,
    /// The index alone, which every change of the service moves: the query asks for a tag that no
    /// instance has. Key/value and prepared queries are answered in full.
    Index,
    /// The critical checks of all services and nodes.
    Critical,
    /// The checks in warning.
    Warning,
    /// The names of all services, with their tags.
    Names,
}

/// From where Consul may answer.
///
/// Client agents since Consul 1.10 answer `/v1/health/service` from a copy of the state, a
/// materialized view that a stream keeps up to date, if the request has an index or `cached`, and no
/// `near`; any agent answers `cached` from its cache. A copy may stop following the state without
/// an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReadFrom {
    /// Wherever the query's consistency allows.
    #[default]
    Anywhere,
    /// A server: neither a stream's view nor the agent's cache.
    Server,
    /// The leader: nor a follower.
    Leader,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Which of the endpoint's servers.
    pub server: usize,
    /// Block on this index, at least 1; `None`: Consul answers at once.
    pub index: Option<u64>,
    /// Longest time to block.
    pub wait: Duration,
    /// It only checks whether the first server is back: the connection to the server in use stays
    /// open, and the timeout is short.
    pub probe: bool,
    /// From where Consul may answer. [`ReadFrom::Leader`] verifies what copies said, so it needs
    /// the full answer.
    pub from: ReadFrom,
}

impl Fetch {
    /// A read that Consul answers at once.
    pub fn read(server: usize, wait: Duration) -> Fetch {
        Fetch { server, index: None, wait, probe: false, from: ReadFrom::Anywhere }
    }
}

/// Whether answers may come from a copy of the state, and a server can be asked instead: see
/// [`ReadFrom`].
pub fn may_be_copy(query: &Query) -> bool {
    query.source == Source::Health
        && match query.consistency {
            Consistency::Cached => true,
            Consistency::Consistent => false,
            Consistency::Default | Consistency::Stale => !has_near(query),
        }
}

/// A tag that no instance has: Consul accepts any text.
const NO_TAG: &str = "nginx-consul:none";

/// Path and query string of a request.
///
/// With an `index` it blocks for up to `wait`, without one Consul answers at once. Empty parameters
/// are left out: to Consul, `tag=` is a tag that nothing has. Neither `passing` nor `tag` is ever
/// sent, since one answer serves every selection.
pub fn path(query: &Query, view: View, fetch: Fetch) -> String {
    let Fetch { from, index, wait, .. } = fetch;
    let mut path = subject(query, view);
    if query.source == Source::Kv {
        push(&mut path, "recurse", None);
    }
    if view == View::Index && has_tags(query.source) {
        push(&mut path, "tag", Some(NO_TAG));
    }
    for (name, value) in query.parameters() {
        push(&mut path, name, Some(value));
    }
    match query.consistency {
        Consistency::Stale if from != ReadFrom::Leader => push(&mut path, "stale", None),
        Consistency::Cached if from == ReadFrom::Anywhere => push(&mut path, "cached", None),
        Consistency::Consistent => push(&mut path, "consistent", None),
        Consistency::Default | Consistency::Stale | Consistency::Cached => {}
    }
    if index.is_some() && is_kept_from_streams(query, view, from) {
        // A stream's view has no order, so Consul answers this from a server.
        push(&mut path, "near", Some("_agent"));
    }
    if let Some(index) = index {
        push(&mut path, "index", Some(&index.to_string()));
        push(&mut path, "wait", Some(&go_duration(wait)));
    }
    path
}

/// Adds a parameter.
fn push(path: &mut String, name: &str, value: Option<&str>) {
    path.push(if path.contains('?') { '&' } else { '?' });
    path.push_str(name);
    if let Some(value) = value {
        path.push('=');
        path.extend(utf8_percent_encode(value, ESCAPED));
    }
}

/// Whether a blocking query needs a `near`, so that a server answers it. A streamed answer would
/// ignore `consistent`.
fn is_kept_from_streams(query: &Query, view: View, from: ReadFrom) -> bool {
    let is_streamed = query.source == Source::Health && matches!(view, View::Full | View::Index);
    let is_unwanted = from != ReadFrom::Anywhere || query.consistency == Consistency::Consistent;
    is_streamed && is_unwanted && !has_near(query)
}

fn has_near(query: &Query) -> bool {
    query.parameters().any(|(name, _)| name == "near")
}

/// Whether [`View::Index`] saves anything.
pub fn has_tags(source: Source) -> bool {
    matches!(source, Source::Health | Source::Catalog)
}

fn subject(query: &Query, view: View) -> String {
    let (before, escaped, after) = match (view, query.source) {
        (View::Critical, _) => return "/v1/health/state/critical".to_owned(),
        (View::Warning, _) => return "/v1/health/state/warning".to_owned(),
        (View::Names, _) => return "/v1/catalog/services".to_owned(),
        (_, Source::Health) => ("/v1/health/service/", ESCAPED, ""),
        (_, Source::Catalog) => ("/v1/catalog/service/", ESCAPED, ""),
        (_, Source::Kv) => ("/v1/kv/", KEY, ""),
        (_, Source::Query) => ("/v1/query/", ESCAPED, "/execute"),
    };
    format!("{before}{}{after}", utf8_percent_encode(&query.service, escaped))
}

/// Path and query string of a request for the token itself, where the query goes to.
pub fn token_self(query: &Query) -> String {
    let mut path = "/v1/acl/token/self".to_owned();
    let places = query.parameters().filter(|(name, _)| ["dc", "ns", "partition"].contains(name));
    places.for_each(|(name, value)| push(&mut path, name, Some(value)));
    path
}

/// A duration in Go's form. The unit is needed: Consul answers 400 to `wait=10`.
fn go_duration(time: Duration) -> String {
    if time.subsec_nanos() == 0 {
        format!("{}s", time.as_secs())
    } else {
        format!("{}ms", time.as_millis().max(1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::MetaKeys;

    fn path(
        query: &Query,
        view: View,
        from: ReadFrom,
        index: Option<u64>,
        wait: Duration,
    ) -> String {
        super::path(query, view, Fetch { from, index, ..Fetch::read(0, wait) })
    }

    fn query(service: &str) -> Query {
        Query { service: service.to_owned(), ..Query::default() }
    }

    #[test]
    fn a_plain_query_has_no_parameters() {
        assert_eq!(
            path(&query("web"), View::Full, ReadFrom::Anywhere, None, Duration::ZERO),
            "/v1/health/service/web"
        );
    }

    #[test]
    fn index_and_wait_go_together_and_wait_has_a_unit() {
        let path = |wait| path(&query("web"), View::Full, ReadFrom::Anywhere, Some(42), wait);
        assert_eq!(path(Duration::from_secs(60)), "/v1/health/service/web?index=42&wait=60s");
        assert_eq!(
            path(Duration::from_millis(1500)),
            "/v1/health/service/web?index=42&wait=1500ms"
        );
    }

    #[test]
    fn every_parameter_is_escaped_and_empty_ones_are_left_out() {
        let full = Query {
            source: Source::Health,
            service: "a/b c?".to_owned(),
            datacenter: Some("dc 1".to_owned()),
            namespace: Some(String::new()),
            partition: Some("p&q=r".to_owned()),
            near: Some("_agent".to_owned()),
            filter: Some("\"v2\" in Service.Tags and Node.Meta.ä != \"+\"".to_owned()),
            consistency: Consistency::Stale,
            address: Some("wan".to_owned()),
            meta: MetaKeys::default(),
        };
        assert_eq!(
            path(&full, View::Full, ReadFrom::Anywhere, None, Duration::ZERO),
            "/v1/health/service/a%2Fb%20c%3F?dc=dc%201&partition=p%26q%3Dr&near=_agent\
             &filter=%22v2%22%20in%20Service.Tags%20and%20Node.Meta.%C3%A4%20%21%3D%20%22%2B%22\
             &stale"
        );
    }

    #[test]
    fn an_index_alone_is_asked_for_by_a_tag_that_nobody_has() {
        let of = |source, view| {
            let query = Query { source, datacenter: Some("dc2".to_owned()), ..query("web") };
            path(&query, view, ReadFrom::Anywhere, None, Duration::ZERO)
        };
        let (health, catalog) = (Source::Health, Source::Catalog);
        let end = "/service/web?tag=nginx-consul%3Anone&dc=dc2";
        assert_eq!(of(health, View::Index), format!("/v1/health{end}"));
        assert_eq!(of(catalog, View::Index), format!("/v1/catalog{end}"));
        assert_eq!(of(Source::Kv, View::Index), of(Source::Kv, View::Full));
        assert_eq!(of(Source::Query, View::Index), of(Source::Query, View::Full));
        assert_eq!(of(health, View::Critical), "/v1/health/state/critical?dc=dc2");
        assert_eq!(of(catalog, View::Warning), "/v1/health/state/warning?dc=dc2");
        assert_eq!(of(health, View::Names), "/v1/catalog/services?dc=dc2");
    }

    #[test]
    fn each_source_has_its_path() {
        let path = |source, index| {
            let query = Query { source, ..query("a/b c") };
            path(&query, View::Full, ReadFrom::Anywhere, index, Duration::from_secs(9))
        };
        assert_eq!(path(Source::Catalog, Some(7)), "/v1/catalog/service/a%2Fb%20c?index=7&wait=9s");
        assert_eq!(path(Source::Kv, Some(7)), "/v1/kv/a/b%20c?recurse&index=7&wait=9s");
        assert_eq!(path(Source::Query, None), "/v1/query/a%2Fb%20c/execute");
    }

    #[test]
    fn the_token_is_asked_for_where_the_query_goes() {
        assert_eq!(token_self(&query("web")), "/v1/acl/token/self");
        let there =
            Query { datacenter: Some("dc 1".into()), namespace: Some("a".into()), ..query("web") };
        assert_eq!(token_self(&there), "/v1/acl/token/self?dc=dc%201&ns=a");
    }

    #[test]
    fn consistency_is_a_bare_word() {
        for (consistency, end) in [
            (Consistency::Default, "web"),
            (Consistency::Stale, "web?stale"),
            (Consistency::Consistent, "web?consistent"),
            (Consistency::Cached, "web?cached"),
        ] {
            let path = path(
                &Query { consistency, ..query("web") },
                View::Full,
                ReadFrom::Anywhere,
                None,
                Duration::ZERO,
            );
            assert!(path.ends_with(end), "{path}");
        }
    }

    #[test]
    fn a_blocking_query_can_be_kept_from_streams_and_caches() {
        let path = |query: &Query, from, index| {
            let path = path(query, View::Full, from, index, Duration::from_secs(9));
            path.strip_prefix("/v1/health/service/web").map(str::to_owned)
        };
        let of = |consistency| Query { consistency, ..query("web") };
        for (consistency, any, server, leader) in [
            (Consistency::Default, "", "near=_agent&", "near=_agent&"),
            (Consistency::Stale, "stale&", "stale&near=_agent&", "near=_agent&"),
            (Consistency::Cached, "cached&", "near=_agent&", "near=_agent&"),
            (
                Consistency::Consistent,
                "consistent&near=_agent&",
                "consistent&near=_agent&",
                "consistent&near=_agent&",
            ),
        ] {
            let query = of(consistency);
            for (from, start) in
                [(ReadFrom::Anywhere, any), (ReadFrom::Server, server), (ReadFrom::Leader, leader)]
            {
                let expected = format!("?{start}index=7&wait=9s");
                assert_eq!(path(&query, from, Some(7)), Some(expected), "{consistency:?} {from:?}");
            }
        }
        // What does not block is not streamed, unless it is cached.
        assert_eq!(path(&of(Consistency::Cached), ReadFrom::Leader, None).unwrap(), "");
        assert_eq!(path(&of(Consistency::Stale), ReadFrom::Leader, None).unwrap(), "");
        assert_eq!(path(&of(Consistency::Stale), ReadFrom::Server, None).unwrap(), "?stale");
        assert_eq!(
            path(&of(Consistency::Consistent), ReadFrom::Leader, None).unwrap(),
            "?consistent"
        );
        let near = Query { near: Some("n1".into()), ..query("web") };
        let expected = "?near=n1&index=7&wait=9s";
        assert_eq!(path(&near, ReadFrom::Server, Some(7)).unwrap(), expected);
    }

    #[test]
    fn only_what_consul_streams_gets_another_parameter() {
        for source in [Source::Catalog, Source::Kv, Source::Query] {
            let query = Query { source, ..query("web") };
            let path = |from| path(&query, View::Full, from, Some(7), Duration::from_secs(9));
            assert_eq!(path(ReadFrom::Leader), path(ReadFrom::Anywhere));
            assert!(!may_be_copy(&query));
        }
        for view in [View::Critical, View::Warning, View::Names] {
            let query = Query { consistency: Consistency::Consistent, ..query("web") };
            let path = path(&query, view, ReadFrom::Server, Some(7), Duration::from_secs(9));
            assert!(!path.contains("near"), "{path}");
        }
        let near = Query { near: Some("_agent".into()), ..query("web") };
        assert!(may_be_copy(&query("web")) && !may_be_copy(&near));
        let of = |consistency| Query { consistency, ..near.clone() };
        assert!(
            may_be_copy(&of(Consistency::Cached)) && !may_be_copy(&of(Consistency::Consistent))
        );
    }

    proptest! {
        #[test]
        fn any_service_and_filter_make_a_valid_target(service in ".*", filter in ".*") {
            let query = Query { filter: Some(filter), ..query(&service) };
            let path = path(&query, View::Full, ReadFrom::Anywhere, Some(1), Duration::from_secs(60));
            prop_assert!(path.bytes().all(|b| b.is_ascii_graphic()));
            prop_assert_eq!(path.matches('?').count(), 1);
            prop_assert!(path.parse::<http::uri::PathAndQuery>().is_ok());
        }
    }
}
