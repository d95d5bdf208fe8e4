//! The status as JSON.

use serde::Serialize;

use super::{Document, Head, Peer, Service, Upstream};

/// The text so far, and what is open at its end.
#[derive(Default)]
pub(super) struct Json {
    text: Vec<u8>,
    list: List,
    /// A service's list of peers is open, too.
    in_service: bool,
    /// The innermost list has no item yet.
    is_empty: bool,
}

/// The list that is open.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum List {
    #[default]
    None,
    Upstreams,
    Services,
    Named,
}

impl Json {
    /// Writes a value, as the next of its list.
    fn item(&mut self, value: &impl Serialize) {
        if !std::mem::take(&mut self.is_empty) {
            self.text.push(b',');
        }
        self.value(value);
    }

    fn value(&mut self, value: &impl Serialize) {
        // Writing to memory doesn't fail, nor do our types.
        let _ = serde_json::to_writer(&mut self.text, value);
    }

    /// Opens a list at the end of the object that was written last, as its last member.
    fn open_member(&mut self, opening: &str) {
        if self.text.last() == Some(&b'}') {
            self.text.pop();
        }
        self.text.push(b',');
        self.open(opening);
    }

    fn open(&mut self, opening: &str) {
        self.text.extend_from_slice(opening.as_bytes());
        self.is_empty = true;
    }

    fn end_service(&mut self) {
        if std::mem::take(&mut self.in_service) {
            self.text.extend_from_slice(b"]}");
            self.is_empty = false;
        }
    }

    /// Goes on to the list of services.
    fn end_upstreams(&mut self) {
        if self.list == List::Upstreams {
            self.list = List::Services;
            self.open("],\"services\":[");
        }
    }
}

impl Document for Json {
    fn head(&mut self, head: Head) {
        self.value(&head);
        self.open_member("\"upstreams\":[");
        self.list = List::Upstreams;
    }

    fn upstream(&mut self, upstream: Upstream) {
        self.item(&upstream);
    }

    fn service(&mut self, service: Service) {
        self.end_upstreams();
        self.end_service();
        self.item(&service);
        self.open_member("\"peers\":[");
        self.in_service = true;
    }

    fn peer(&mut self, peer: Peer) {
        self.item(&peer);
    }

    fn named(&mut self, max: usize) {
        self.end_upstreams();
        self.end_service();
        self.list = List::Named;
        self.open(&format!("],\"named\":{{\"max\":{max},\"services\":["));
    }

    fn finish(mut self: Box<Self>) -> Vec<Vec<u8>> {
        self.end_upstreams();
        self.end_service();
        let end: &[u8] = if self.list == List::Named { b"]}}\n" } else { b"]}\n" };
        self.text.extend_from_slice(end);
        vec![self.text]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::testing::{head, peer, service, upstream, write};
    use super::super::{Format, PeerState};
    use super::*;

    fn read(tell: impl FnOnce(&mut dyn Document)) -> Value {
        serde_json::from_str(&write(Format::Json, true, tell)).unwrap()
    }

    #[test]
    fn lists_hold_what_was_told_be_it_nothing() {
        let empty = read(|doc| doc.head(head()));
        assert_eq!((&empty["upstreams"], &empty["services"]), (&json!([]), &json!([])));
        assert_eq!((&empty["version"], &empty["named"]), (&json!(1), &Value::Null));
        let full = read(|doc| {
            doc.head(head());
            doc.upstream(upstream("a", "web"));
            doc.upstream(upstream("b", "db"));
            doc.service(service("web", "a"));
            doc.peer(peer("127.0.0.1:1", PeerState::Up));
            doc.peer(peer("127.0.0.1:2", PeerState::Down));
            doc.service(service("db", "b"));
            doc.named(5000);
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
            (&full["named"]["max"], lengths(&full["named"]["services"])),
            (&json!(5000), vec![1])
        );
        assert_eq!(full["services"][0]["peers"][1]["state"], "down");
        let none_named = read(|doc| {
            doc.head(head());
            doc.named(7);
        });
        assert_eq!(none_named["named"], json!({"max": 7, "services": []}));
    }

    #[test]
    fn hostile_text_stays_text() {
        let text = "</script>\"\\\n\u{7}";
        let status = read(|doc| {
            doc.head(head());
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
            doc.head(head());
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
