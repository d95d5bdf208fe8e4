//! What is followed compared with what is asked for, once a second.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Desk;
use crate::named::Place;
use crate::named::roster::Step;
use crate::sync::Level;
use crate::table::Named;

impl Desk {
    /// Takes over what other processes have found, and drops what nobody asks for.
    pub(super) fn tidy(&self) {
        self.adopt();
        let now_ms = self.book.now_ms();
        let since = |key| now_ms.saturating_sub(self.templates.idle(key).as_millis() as u64);
        let last_used = |target| self.book.last_used(target);
        loop {
            let victim = self.roster.lock().excess(last_used, Instant::now());
            let Some(victim) = victim else { break };
            self.drop_for_newer(&victim);
        }
        let idle = self.roster.lock().idle(since, last_used);
        for service in idle {
            self.drop_service(&service);
            let name = service.name.escape_debug();
            let line = format!("service \"{name}\": no request has named it for long, dropped");
            self.book.log(Level::Info, line);
        }
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let s = if dropped == 1 { "" } else { "s" };
            let line = format!(
                "{dropped} service{s} named by requests dropped for newer ones, increase \
                 \"consul_max_services\" or the size in \"consul_zone\""
            );
            self.book.log(Level::Warn, line);
        }
    }

    /// Follows the services in the table that this process does not follow: of the configuration
    /// before, or found by its worker 0 in its last moments.
    fn adopt(&self) {
        let mut of: HashMap<Named, HashMap<u128, usize>> = HashMap::new();
        for (number, key, service) in self.book.named() {
            of.entry(service).or_default().insert(key, number);
        }
        for (service, numbers) in of {
            if self.templates.find(service.template).is_none() {
                continue;
            }
            let Some(template) = self.templates.admit(&service) else {
                numbers.into_values().for_each(|number| self.book.close(number));
                continue;
            };
            if self.roster.lock().ask(&service, true, Instant::now()) != Step::Ask {
                continue;
            }
            // Another thread may have dropped it since.
            if !numbers.values().all(|number| self.book.is_open(*number)) {
                numbers.into_values().for_each(|number| self.book.close(number));
                self.roster.lock().dropped(&service);
                continue;
            }
            let places = template.places(&service.name, &self.plan);
            let number = |place: &Place| match numbers.get(&place.key) {
                Some(number) => Some(*number),
                None => self.book.open(&service, place.key).ok(),
            };
            let own = places.iter().filter(|place| place.fixed.is_none());
            let held: Vec<_> = own.filter_map(|place| Some((number(place)?, place))).collect();
            let targets = held.iter().map(|(number, _)| *number).collect();
            self.roster.lock().found(service.clone(), targets);
            for (number, place) in held {
                self.follow.follow(number, place.target.clone());
            }
        }
    }
}
