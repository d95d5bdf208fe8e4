//! The status page as HTML: one page, nothing loaded from elsewhere.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{Document, Head, Peer, PeerState, Service, StateFile, Tier, Upstream};
use crate::text::printable as shown;

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem}\
h1{font-size:1.3rem}h2{font-size:1.1rem;margin:2rem 0 0}\
p{margin:.2rem 0}table{border-collapse:collapse;width:100%;margin:.6rem 0}\
th,td{text-align:left;padding:.25rem .8rem .25rem 0;border-bottom:1px solid #8884}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
.bad{color:#c0392b}.dim{opacity:.7}code{font-size:.95em}";

/// What the page is to show.
#[derive(Default)]
pub(super) struct Page {
    head: Option<Head>,
    upstreams: Vec<Upstream>,
    services: Vec<(Service, Vec<Peer>)>,
    /// The services that requests may name, and how many come before them.
    named: Option<(usize, usize)>,
}

impl Document for Page {
    fn head(&mut self, head: Head) {
        self.head = Some(head);
    }

    fn upstream(&mut self, upstream: Upstream) {
        self.upstreams.push(upstream);
    }

    fn service(&mut self, service: Service) {
        self.services.push((service, Vec::new()));
    }

    fn peer(&mut self, peer: Peer) {
        if let Some((_, peers)) = self.services.last_mut() {
            peers.push(peer);
        }
    }

    fn named(&mut self, max: usize) {
        self.named = Some((max, self.services.len()));
    }

    fn finish(self: Box<Self>) -> Vec<Vec<u8>> {
        let page = self.head.as_ref().map(|head| page(head, &self));
        vec![page.map_or_else(String::new, Markup::into_string).into_bytes()]
    }
}

fn page(status: &Head, page: &Page) -> Markup {
    let named_from = page.named.map_or(page.services.len(), |(_, from)| from);
    let (services, named) = page.services.split_at(named_from);
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
                @for upstream in &page.upstreams { (tiers(upstream)) }
                @for (service, peers) in services { (section(service, peers)) }
                @if let Some((max, _)) = page.named {
                    h2 { "Named by requests: " (named.len()) " of at most " (max) }
                    @for (service, peers) in named { (section(service, peers)) }
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

fn section(service: &Service, peers: &[Peer]) -> Markup {
    html! {
        h2 { (shown(&service.service)) }
        p {
            "upstream " (shown(&service.upstreams.join(", "))) " · " (service.status)
            @if service.from != "health" { " · source " (service.from) }
            @if service.last_used_seconds.is_some() { " · named " (ago(service.last_used_seconds)) }
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
                @for peer in peers { (row(peer)) }
                @if peers.is_empty() { tr { td.bad colspan="10" { "no usable instance" } } }
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
            td.bad[peer.state != PeerState::Up] { (peer.state.word()) }
            td.n { (peer.weight) @if peer.backup { " backup" } } td.n { (peer.in_flight) } td.n { (peer.picks) }
            td.n { (peer.fails) }
        }
    }
}

fn ago(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "never".into(), |s| format!("{s:.1} s ago"))
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::super::testing::{head, peer, service, upstream, write};
    use super::*;

    #[test]
    fn the_page_has_a_row_for_each_peer_and_shows_hostile_text_as_text() {
        let page = write(Format::Html, true, |doc| {
            doc.head(head());
            doc.upstream(upstream("api", "web"));
            doc.service(service("web", "api"));
            let tags = vec!["<script>alert(\"1\")</script>".into()];
            doc.peer(Peer { tags, ..peer("127.0.0.1:80", PeerState::Up) });
            doc.named(5000);
            let named = service("shop", "any");
            doc.service(Service { last_used_seconds: Some(2.5), ..named });
        });
        for part in [
            "<table",
            "127.0.0.1:80",
            "web-1",
            "&lt;script&gt;",
            "0.2 s ago",
            "no_leader 3, stale 1",
            "/var/&lt;state&gt;",
            "from state file",
            "<strong>dc&lt;2&gt; (1 of 2)</strong>",
            "2 would leave, confirmed by 1 of 3 reads",
            "1 of at most 5000",
            "named 2.5 s ago",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        assert!(!page.contains("<script>"), "{page}");
    }
}
