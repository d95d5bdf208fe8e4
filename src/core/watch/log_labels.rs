//! Names of queries and targets in log lines.

use crate::model::{Admit, Consistency, Query, Selection, Source};

/// `service "web"`, with the parameters of the query that are not defaults.
pub(super) fn query_name(query: &Query) -> String {
    let what = match query.source {
        Source::Health | Source::Catalog => "service",
        Source::Kv => "kv",
        Source::Query => "query",
    };
    let mut name = format!("{what} \"{}\"", query.service.escape_debug());
    if query.source == Source::Catalog {
        name += " source=catalog";
    }
    for (key, value) in query.parameters() {
        name += &format!(" {key}={}", value.escape_debug());
    }
    if let Some(tag) = &query.address {
        name += &format!(" address={}", tag.escape_debug());
    }
    name += match query.consistency {
        Consistency::Default => "",
        Consistency::Stale => " consistency=stale",
        Consistency::Consistent => " consistency=consistent",
        Consistency::Cached => " consistency=cached",
    };
    name
}

pub(super) fn target_name(query: &Query, selection: &Selection) -> String {
    let mut name = query_name(query);
    for tag in &selection.tags {
        name += &format!(" tag={}", tag.escape_debug());
    }
    name += match selection.admit {
        Admit::Passing => "",
        Admit::Warning => " status=warning",
        Admit::Any => " status=any",
    };
    name
}
