//! The status as JSON.

use serde_json::value::to_raw_value;

use super::document::{Document, OnDemand, Peer, Service, Status, Upstream};
use crate::control::to_json;

/// The status so far.
pub(super) struct Json(pub(super) Status);

impl Json {
    /// The list that services are added to now.
    fn services(&mut self) -> &mut Vec<Service> {
        self.0.on_demand.as_mut().map_or(&mut self.0.services, |found| &mut found.services)
    }
}

impl Document for Json {
    fn upstream(&mut self, upstream: Upstream) {
        self.0.upstreams.push(upstream);
    }

    fn service(&mut self, service: Service) {
        self.services().push(service);
    }

    fn peer(&mut self, peer: Peer) {
        // Serialized now, since there may be thousands.
        if let (Some(service), Ok(peer)) = (self.services().last_mut(), to_raw_value(&peer)) {
            service.peers.push(peer);
        }
    }

    fn on_demand(&mut self, max: usize) {
        self.0.on_demand = Some(OnDemand { max, services: Vec::new() });
    }

    fn finish(self: Box<Self>) -> Vec<Vec<u8>> {
        vec![to_json(&self.0)]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::testing::{peer, service, upstream, write};
    use super::super::{Format, PeerState};
    use super::*;

    fn read(tell: impl FnOnce(&mut dyn Document)) -> Value {
        serde_json::from_str(&write(Format::Json, true, tell)).unwrap()
    }

    #[test]
    fn lists_hold_what_was_added_even_nothing() {
        let empty = read(|_| {});
        assert_eq!((&empty["upstreams"], &empty["services"]), (&json!([]), &json!([])));
        assert_eq!((&empty["version"], &empty["on_demand"]), (&json!(1), &Value::Null));
        let full = read(|doc| {
            doc.upstream(upstream("a", "web"));
            doc.upstream(upstream("b", "db"));
            doc.service(service("web", "a"));
            doc.peer(peer("127.0.0.1:1", PeerState::Up));
            doc.peer(peer("127.0.0.1:2", PeerState::Down));
            doc.service(service("db", "b"));
            doc.on_demand(5000);
            doc.service(service("shop", "any"));
            doc.peer(peer("127.0.0.1:3", PeerState::Busy));
        });
        let lengths = |list: &Value| {
            let services = list.as_array().unwrap().iter();
            services.map(|s| s["peers"].as_array().unwrap().len()).collect::<Vec<_>>()
        };
        assert_eq!(full["upstreams"].as_array().unwrap().len(), 2);
        assert_eq!(lengths(&full["services"]), [2, 0]);
        assert_eq!(
            (&full["on_demand"]["max"], lengths(&full["on_demand"]["services"])),
            (&json!(5000), vec![1])
        );
        assert_eq!(full["services"][0]["peers"][1]["state"], "down");
        let none_on_demand = read(|doc| doc.on_demand(7));
        assert_eq!(none_on_demand["on_demand"], json!({"max": 7, "services": []}));
    }

    #[test]
    fn hostile_text_stays_text() {
        let text = "</script>\"\\\n\u{7}";
        let status = read(|doc| {
            doc.service(Service { last_error: Some(text.into()), ..service(text, "a") });
            doc.peer(Peer { tags: vec![text.into()], ..peer("[::1]:1", PeerState::Up) });
        });
        let shown = &status["services"][0];
        assert_eq!((&shown["service"], &shown["last_error"]), (&json!(text), &json!(text)));
        assert_eq!(shown["peers"][0]["tags"], json!([text]));
    }

    #[test]
    fn refusals_what_is_pending_and_changes_show() {
        let status = read(|doc| {
            doc.service(service("web", "a"));
        });
        let shown = &status["services"][0];
        assert_eq!(shown["refusals"], json!({"no_leader": 3, "stale": 1}));
        assert_eq!(shown["pending"], json!({"removals": 2, "confirmed": 1, "of": 3}));
        let change = json!({
            "time_ms": 1_000, "generation": 3, "joined": ["10.0.0.1:80"], "left": [],
            "joined_total": 9, "left_total": 0, "changed_total": 1,
        });
        assert_eq!(shown["history"], json!([change]));
    }
}
