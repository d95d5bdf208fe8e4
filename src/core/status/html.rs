//! The status page as HTML: one page, nothing loaded from elsewhere.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{Peer, Service, StateFile, Status, Tier, Upstream};
use crate::text::printable as shown;

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem}\
h1{font-size:1.3rem}h2{font-size:1.1rem;margin:2rem 0 0}\
p{margin:.2rem 0}table{border-collapse:collapse;width:100%;margin:.6rem 0}\
th,td{text-align:left;padding:.25rem .8rem .25rem 0;border-bottom:1px solid #8884}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
.bad{color:#c0392b}.dim{opacity:.7}code{font-size:.95em}";

pub(super) fn page(status: &Status) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "nginx-consul" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "nginx-consul " (status.module.version) }
                p.dim {
                    "nginx " (status.nginx.version) ", worker " (status.nginx.worker)
                    " (" (status.nginx.pid) "), zone " (status.zone.name) ": "
                    (status.zone.used / 1024) " of " (status.zone.size / 1024) " KiB, "
                    a href="?format=json" { "JSON" }
                }
                @if let Some(state) = &status.state { (state_file(state)) }
                @for upstream in &status.upstreams { (tiers(upstream)) }
                @for service in &status.services { (section(service, None)) }
                @if let Some(named) = &status.named {
                    h2 { "Named by requests: " (named.services.len()) " of at most " (named.max) }
                    @for named in &named.services {
                        (section(&named.service, Some(named.last_used_seconds)))
                    }
                }
            }
        }
    }
}

fn state_file(state: &StateFile) -> Markup {
    html! {
        p.dim { "state file " code { (shown(&state.path)) } ", written " (ago(state.age_seconds)) }
        @if let Some(error) = &state.error { p.bad { "it can't be written: " (shown(error)) } }
    }
}

/// The way of a block's requests, the tier in use in bold.
fn tiers(upstream: &Upstream) -> Markup {
    html! {
        p {
            "upstream " strong { (shown(&upstream.name)) } ", " (upstream.method) " over "
            @for (at, tier) in upstream.tiers.iter().enumerate() {
                @if at > 0 { " → " }
                @if upstream.in_use.as_ref() == Some(&tier.name) { strong { (shown(&tier_text(tier))) } }
                @else { (shown(&tier_text(tier))) }
            }
            @if upstream.in_use.is_none() { span.bad { " none usable" } }
            @if upstream.panic == Some(true) { span.bad { " panic: failures keep nobody out" } }
        }
    }
}

fn tier_text(tier: &Tier) -> String {
    match (tier.usable, tier.peers) {
        (Some(usable), Some(peers)) => format!("{} ({usable} of {peers})", tier.name),
        _ => tier.name.clone(),
    }
}

fn section(service: &Service, last_used: Option<f64>) -> Markup {
    html! {
        h2 { (shown(&service.service)) }
        p {
            "upstream " (shown(&service.upstreams.join(", "))) " · " (service.status)
            @if service.from != "health" { " · source " (service.from) }
            @if last_used.is_some() { " · named " (ago(last_used)) }
            @for tag in &service.tags { " · tag " code { (shown(tag)) } }
            @if let Some(dc) = &service.datacenter { " · datacenter " (shown(dc)) }
            @if let Some(filter) = &service.filter { " · filter " code { (shown(filter)) } }
        }
        p {
            "index " (service.index) " · generation " (service.generation)
            " · last good answer " (ago(service.last_good_seconds))
            " · last change " (ago(service.last_change_seconds))
            @if service.source == Some("state file") { " · " strong { "from state file" } }
            " · from " (shown(service.server.as_deref().unwrap_or("-")))
            @if let Some(ms) = service.delay_ms {
                " · " (service.mode) ", changes seen within " (ms) " ms"
            }
        }
        @if let Some(error) = &service.last_error {
            p.bad { (service.failures) " failed in a row: " (shown(error)) }
        }
        @if let Some(pending) = service.pending {
            p.bad {
                "the last answer lacks peers: " (pending.removals) " would leave, "
                @if pending.of == 0 { "and are kept" }
                @else { "confirmed by " (pending.confirmed) " of " (pending.of) " reads" }
            }
        }
        @if !service.refusals.is_empty() {
            p.dim { "answers refused so far: " (refusals(service)) }
        }
        table {
            thead { tr {
                th { "server" } th { "node" } th { "service id" } th { "tags" } th { "health" }
                th { "state" } th.n { "weight" } th.n { "in flight" } th.n { "picks" }
                th.n { "fails" }
            } }
            tbody {
                @for peer in &service.peers { (row(peer)) }
                @if service.peers.is_empty() { tr { td.bad colspan="10" { "no usable instance" } } }
            }
        }
    }
}

fn refusals(service: &Service) -> String {
    let each = service.refusals.iter().map(|(reason, count)| format!("{reason} {count}"));
    each.collect::<Vec<_>>().join(", ")
}

fn row(peer: &Peer) -> Markup {
    html! {
        tr {
            td { (peer.server) } td { (shown(&peer.node)) } td { (shown(&peer.service_id)) }
            td { (shown(&peer.tags.join(", "))) } td { (shown(&peer.health)) }
            td.bad[peer.state != "up"] { (peer.state) }
            td.n { (peer.weight) @if peer.backup { " backup" } } td.n { (peer.in_flight) } td.n { (peer.picks) }
            td.n { (peer.fails) }
        }
    }
}

fn ago(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "never".into(), |s| format!("{s:.1} s ago"))
}
