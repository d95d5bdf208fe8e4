//! The names of all services, for when too many are asked for that don't exist.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Place;
use crate::consul::client::Client;
use crate::consul::overview::key;
use crate::sync::{Subject, names_of_all};

/// How long a list holds: Consul makes four a second at most, whatever is asked for.
const HOLDS: Duration = Duration::from_millis(250);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(5);

/// The lists in use, one for each datacenter and token.
#[derive(Default)]
pub(super) struct Lists(Mutex<Vec<List>>);

struct List {
    /// Whose, whatever the service.
    of: Subject,
    until: Instant,
    names: Option<HashSet<u64>>,
}

impl Lists {
    /// Whether a service is in one of the lists of its places; `None` if that can't be told.
    pub(super) fn has(&self, places: &[Place], name: &str, client: &mut Client) -> Option<bool> {
        let mut lists = self.0.lock();
        let mut is_certain = true;
        for place in places.iter().filter(|place| place.fixed.is_none()) {
            match current(&mut lists, place, client) {
                Some(names) if names.contains(&key(name)) => return Some(true),
                Some(_) => {}
                None => is_certain = false,
            }
        }
        is_certain.then_some(false)
    }
}

fn current<'a>(
    lists: &'a mut Vec<List>,
    place: &Place,
    client: &mut Client,
) -> Option<&'a HashSet<u64>> {
    let mut of = place.target.subject();
    of.query.service.clear();
    let at = match lists.iter().position(|list| list.of == of) {
        Some(at) => at,
        None => {
            lists.push(List { of, until: Instant::now(), names: None });
            lists.len() - 1
        }
    };
    let list = &mut lists[at];
    if list.until <= Instant::now() {
        list.names = names_of_all(client, &list.of).ok();
        list.until = Instant::now() + if list.names.is_some() { HOLDS } else { PAUSE };
    }
    list.names.as_ref()
}
