//! The load balancing methods of nginx that may stand before `consul_dynamic`, and all others.

use nginx_sys::ngx_http_upstream_srv_conf_t;

use super::args::Parsed;
use super::directives::{Directive, Directives, file_of};
use crate::peer::InitUpstream;

/// What picks in place of `consul_balance`.
#[derive(Clone)]
pub(crate) struct Inner {
    pub(crate) init: InitUpstream,
    /// Its lines in the configuration, for people.
    pub(crate) name: String,
}

/// What a directive that is about a load balancing method is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A method that nginx ships and that keeps its state with the peers, so that a block may have
    /// many sets of them.
    OfPeers,
    /// One that keeps state in the block; and the line that does the same.
    OfBlock(String),
    /// nginx's `sticky`, which wraps the method before it and keeps nothing in the block.
    Sticky,
    /// nginx's `keepalive`, which wraps the method before it.
    Keepalive,
    /// Whatever nginx doesn't ship.
    Foreign,
}

impl Kind {
    /// As the sources of nginx 1.22 to 1.31 have it.
    pub(super) fn of(directive: &Directive) -> Kind {
        let Some(module) = directive.module.strip_prefix("ngx_http_upstream_") else {
            return Kind::Foreign;
        };
        let words: Vec<&str> = directive.words.iter().map(String::as_str).collect();
        let instead = |method: &str| Kind::OfBlock(format!("consul_balance {method};"));
        match (module, &words[..]) {
            ("least_conn_module", ["least_conn", ..])
            | ("least_time_module", ["least_time", ..])
            | ("ip_hash_module", ["ip_hash", ..])
            | ("hash_module", ["hash", _]) => Kind::OfPeers,
            // The points of the ring.
            ("hash_module", ["hash", key, _, ..]) => instead(&format!("hash {key} consistent")),
            // The ranges of the peers' weights.
            ("random_module", ["random", "two", method, ..])
                if method.starts_with("least_time") =>
            {
                instead("least_time")
            }
            ("random_module", ["random", "two", ..]) => instead("least_conn"),
            ("random_module", ["random", ..]) => instead("random"),
            // The instance of each session.
            ("sticky_module", ["sticky", "learn", ..]) => instead("hash key consistent"),
            ("sticky_module", ["sticky", ..]) => Kind::Sticky,
            ("keepalive_module", ["keepalive", ..]) => Kind::Keepalive,
            _ => Kind::Foreign,
        }
    }

    fn is_sticky(directive: &Directive) -> bool {
        directive.name() == "sticky" && Kind::of(directive) != Kind::Foreign
    }

    /// Whether it takes the place of the method before it, as all but what wraps that do.
    pub(super) fn replaces(directive: &Directive) -> bool {
        match Kind::of(directive) {
            Kind::OfPeers => true,
            Kind::OfBlock(_) => !Kind::is_sticky(directive),
            _ => false,
        }
    }
}

impl Inner {
    /// The method that has taken the block before `consul_dynamic`, if any. Errors go on from
    /// `"consul_dynamic" directive …`.
    pub(super) fn of(
        upstream: &ngx_http_upstream_srv_conf_t,
        directives: &Directives,
        by_request: bool,
    ) -> Parsed<Option<Inner>> {
        let Some(init) = upstream.peer.init_upstream else { return Ok(None) };
        let set: Vec<&Directive> = directives.methods.iter().filter(|d| d.is_set).collect();
        if let Some(directive) = set.iter().find(|d| Kind::of(d) == Kind::Foreign) {
            return Err(cannot_be_with(directive));
        }
        if set.iter().any(|d| Kind::of(d) == Kind::Keepalive) {
            return Err("must stand before \"keepalive\"".into());
        }
        // nginx warns of those that are replaced.
        let from = set.iter().rposition(|directive| Kind::replaces(directive)).unwrap_or(0);
        let set = set.get(from..).unwrap_or_default();
        for directive in set.iter().filter(|_| by_request) {
            if let Kind::OfBlock(instead) = Kind::of(directive) {
                return Err(format!(
                    "with a variable can't be used together with \"{}\" in {}, which keeps one \
                     table for the whole \"upstream\": use \"{instead}\"",
                    directive.words.join(" "),
                    directive.place
                ));
            }
        }
        if set.is_empty() {
            return Err(format!(
                "can't be used together with a load balancing method of {}",
                file_of(init as *const _)
            ));
        }
        let lines: Vec<String> = set.iter().map(|directive| directive.words.join(" ")).collect();
        Ok(Some(Inner { init, name: lines.join("; ") }))
    }
}

/// Goes on from `"consul_dynamic" directive …`.
fn cannot_be_with(directive: &Directive) -> String {
    format!(
        "can't be used together with the load balancing method {}: nginx doesn't ship it",
        directive.shown()
    )
}

/// Checks what stands after `consul_dynamic`; `took` is the function that has the block in its place,
/// if one has. Errors go on from `"consul_dynamic" directive …`. Returns the last directive that wraps
/// the block's peers, if nginx doesn't ship it.
pub(super) fn check_after(
    after: &[Directive],
    took: Option<InitUpstream>,
) -> Parsed<Option<&Directive>> {
    let mut wraps = None;
    for directive in after {
        let is_lua = directive.name().starts_with("balancer_by_lua");
        match Kind::of(directive) {
            Kind::Keepalive => {}
            Kind::Foreign if took.is_none() && !is_lua => wraps = Some(directive),
            Kind::Foreign => return Err(cannot_be_with(directive)),
            _ => {
                return Err(format!(
                    "is without effect, \"{}\" in {} must stand before \"consul_dynamic\"",
                    directive.name(),
                    directive.place
                ));
            }
        }
    }
    match took {
        None => Ok(wraps),
        Some(init) => Err(format!(
            "is without effect, a load balancing method of {} takes the block away",
            file_of(init as *const _)
        )),
    }
}
