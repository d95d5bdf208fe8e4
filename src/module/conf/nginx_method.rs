//! The load balancing methods of nginx that may stand before `consul_dynamic`, and all others.

use nginx_sys::ngx_http_upstream_srv_conf_t;

use super::args::Parsed;
use super::directives::{Directive, Directives, file_of};
use crate::peer::{InitUpstream, NginxMethod};

/// What a directive that is about a load balancing method is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A method that nginx ships and that keeps its state with the peers, so that a block may have
    /// many sets of them.
    OfPeers,
    /// One that keeps state in the block; and the `consul_balance` that does the same.
    OfBlock(String),
    /// nginx's `sticky`, which wraps the method before it; and, if it keeps state in the block, the
    /// `consul_balance` that does the same.
    Sticky(Option<&'static str>),
    /// nginx's `keepalive`, which wraps the method before it.
    Keepalive,
    /// Whatever nginx doesn't ship.
    Foreign,
}

impl Kind {
    /// As the sources of nginx 1.22 to 1.31 have it.
    pub(super) fn of(module: &str, words: &[String]) -> Kind {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let module = module.strip_prefix("ngx_http_upstream_").unwrap_or_default();
        match (module, &words[..]) {
            ("least_conn_module", ["least_conn", ..])
            | ("least_time_module", ["least_time", ..])
            | ("ip_hash_module", ["ip_hash", ..])
            | ("hash_module", ["hash", _]) => Kind::OfPeers,
            // The points of the ring.
            ("hash_module", ["hash", key, ..]) => Kind::OfBlock(format!("hash {key} consistent")),
            // The ranges of the peers' weights.
            ("random_module", ["random", rest @ ..]) => Kind::OfBlock(match rest {
                ["two", method, ..] if method.starts_with("least_time") => "least_time".into(),
                ["two", ..] => "least_conn".into(),
                _ => "random".into(),
            }),
            // The instance of each session.
            ("sticky_module", ["sticky", "learn", ..]) => Kind::Sticky(Some("hash key consistent")),
            ("sticky_module", ["sticky", ..]) => Kind::Sticky(None),
            ("keepalive_module", ["keepalive", ..]) => Kind::Keepalive,
            _ => Kind::Foreign,
        }
    }

    /// Whether it takes the place of the method before it, as all but what wraps that do.
    pub(super) fn replaces(&self) -> bool {
        matches!(self, Kind::OfPeers | Kind::OfBlock(_))
    }

    /// The `consul_balance` that does the same as what keeps state in the block.
    fn instead(&self) -> Option<&str> {
        match self {
            Kind::OfBlock(method) => Some(method),
            Kind::Sticky(method) => *method,
            _ => None,
        }
    }
}

/// The method that has taken the block before `consul_dynamic`, if any. Errors go on from
/// `"consul_dynamic" directive …`.
pub(super) fn method_before(
    upstream: &ngx_http_upstream_srv_conf_t,
    directives: &Directives,
    by_request: bool,
) -> Parsed<Option<NginxMethod>> {
    let Some(init) = upstream.peer.init_upstream else { return Ok(None) };
    let set: Vec<&Directive> = directives.methods.iter().filter(|d| d.is_set).collect();
    if let Some(directive) = set.iter().find(|d| d.kind == Kind::Foreign) {
        return Err(cannot_be_with(directive));
    }
    if set.iter().any(|d| d.kind == Kind::Keepalive) {
        return Err("must stand before \"keepalive\"".into());
    }
    // nginx warns of those that are replaced.
    let from = set.iter().rposition(|directive| directive.kind.replaces()).unwrap_or(0);
    let set = set.get(from..).unwrap_or_default();
    let instead = set.iter().find_map(|directive| Some((directive, directive.kind.instead()?)));
    if let (true, Some((Directive { text, place, .. }, instead))) = (by_request, instead) {
        return Err(format!(
            "with a variable can't be used together with \"{text}\" in {place}, which keeps one \
             table for the whole \"upstream\": use \"consul_balance {instead};\""
        ));
    }
    if set.is_empty() {
        let file = file_of(init as *const _);
        return Err(format!("can't be used together with a load balancing method of {file}"));
    }
    let lines: Vec<&str> = set.iter().map(|directive| &*directive.text).collect();
    Ok(Some(NginxMethod { init, name: lines.join("; ") }))
}

/// Goes on from `"consul_dynamic" directive …`.
fn cannot_be_with(directive: &Directive) -> String {
    let shown = &directive.shown;
    format!("can't be used together with the load balancing method {shown}: nginx doesn't ship it")
}

/// Checks what stands after `consul_dynamic`; `took` is the function that has the block in its place,
/// if one has. Errors go on from `"consul_dynamic" directive …`.
pub(super) fn check_after(after: &[Directive], took: Option<InitUpstream>) -> Parsed {
    for directive in after {
        match directive.kind {
            Kind::Keepalive => {}
            // Whether that picks peers of its own shows when requests come.
            Kind::Foreign if took.is_none() && !directive.text.starts_with("balancer_by_lua") => {}
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
    let Some(init) = took else { return Ok(()) };
    let file = file_of(init as *const _);
    Err(format!("is without effect, a load balancing method of {file} takes the block away"))
}
