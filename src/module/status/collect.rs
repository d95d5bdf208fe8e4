//! Writes the status into a document step by step, so that a long status doesn't block the worker.

use std::rc::Rc;
use std::time::{Duration, Instant};

use nginx_consul_core::clock::{Clock, age};
use nginx_consul_core::model::Limit;
use nginx_consul_core::status::{
    self, Connections, Document, Format, Nginx, Status, VERSION, Version, Zone, document,
};
use nginx_consul_core::table::{Overrides, Table};

use super::service::{Peers, service};
use crate::ffi::process;
use crate::peer::Upstream;
use crate::services::{Entries, Services};
use crate::upstreams::Upstreams;
use nginx_consul_core::table_writer::StateFile;

/// Peers between two checks of the time.
const PEERS: usize = 32;

/// The position in the status that is being written. It outlives the request that has begun it, and
/// so refers to nothing of the configuration, which each turn passes.
pub(super) struct Walk {
    entries: Rc<Entries>,
    /// When it began; the same for all services.
    now: Clock,
    /// Only this service.
    only: Option<String>,
    document: Box<dyn Document>,
    /// Number of the next upstream.
    upstream: usize,
    overrides: Rc<Overrides>,
    /// Number of the next service.
    next: usize,
    peers: Option<Peers>,
}

impl Walk {
    /// At the beginning.
    pub(super) fn new(
        upstreams: &Upstreams,
        only: Option<String>,
        (format, with_peers): (Format, bool),
    ) -> Walk {
        let (services, now) = (Services::new(upstreams), Clock::now());
        let table = services.as_ref().map(|services| services.table);
        let overrides = table.and_then(|table| table.overrides(now.monotonic)).unwrap_or_default();
        Walk {
            entries: services.map(|services| services.entries()).unwrap_or_default(),
            now,
            only,
            document: document(format, with_peers, head(upstreams, table, now)),
            upstream: 0,
            overrides: Rc::new(overrides),
            next: 0,
            peers: None,
        }
    }

    /// Continues for about that long, with the upstreams of the same configuration; `true` at the
    /// end.
    pub(super) fn go_on(&mut self, upstreams: &Upstreams, time: Duration) -> bool {
        let start = Instant::now();
        let Some(services) = Services::at(upstreams, Rc::clone(&self.entries)) else { return true };
        let mut rest = upstreams.fixed().skip(self.upstream);
        while self.step(&services, &mut rest).is_some() {
            if start.elapsed() >= time {
                return false;
            }
        }
        true
    }

    /// What was written.
    pub(super) fn finish(self) -> Vec<Vec<u8>> {
        self.document.finish()
    }

    /// Writes an upstream, a service, or some peers; `None` at the end.
    fn step<'u>(
        &mut self,
        services: &Services<'_>,
        upstreams: &mut impl Iterator<Item = &'u Upstream>,
    ) -> Option<()> {
        let is_wanted = |name: &str| self.only.as_ref().is_none_or(|only| only == name);
        if let Some(peers) = &mut self.peers {
            for _ in 0..PEERS {
                let Some((_, peer)) = peers.next(services.table, self.now.monotonic) else {
                    self.peers = None;
                    break;
                };
                self.document.peer(peer);
            }
            return Some(());
        }
        if let Some(upstream) = upstreams.next() {
            self.upstream += 1;
            if is_wanted(upstream.service()) {
                self.document.upstream(upstream.status());
            }
            return Some(());
        }
        let (number, templates) = (self.next, services.upstreams.templates.as_ref());
        self.next += 1;
        if let Some(templates) = templates.filter(|_| number == services.planned()) {
            self.document.on_demand(templates.max);
        }
        let name = services.numbers().contains(&number).then(|| services.name(number))?;
        if name.is_some_and(|name| is_wanted(&name)) {
            if let Some(followed) = services.get(number) {
                let (service, peers) =
                    service(&followed, services.table, &self.overrides, self.now.monotonic);
                self.document.service(service);
                self.peers = Some(peers);
            }
        }
        Some(())
    }
}

fn head(upstreams: &Upstreams, table: Option<Table<'_>>, now: Clock) -> Status {
    let shm_zone = upstreams.shm_zone();
    Status {
        version: VERSION,
        time_ms: now.wall,
        module: Version { version: env!("CARGO_PKG_VERSION").into() },
        nginx: Nginx {
            version: nginx_version(),
            pid: std::process::id(),
            worker: process::worker().unwrap_or_default(),
        },
        zone: Zone {
            name: shm_zone.map_or_else(String::new, |z| z.shm.name.to_string()),
            size: shm_zone.map_or(0, |z| z.shm.size),
            used: table.map_or(0, |t| t.usage()),
        },
        state: table.and_then(|t| Some(state_file(upstreams.state_file.as_ref()?, t, now))),
        connections: connections(upstreams.connections, table, now),
        upstreams: Vec::new(),
        services: Vec::new(),
        on_demand: None,
    }
}

fn state_file(file: &StateFile, table: Table<'_>, now: Clock) -> status::StateFile {
    let (written, error) = table.state_file();
    status::StateFile {
        path: file.path.display().to_string(),
        age_seconds: (written != 0).then(|| age(written, now.monotonic) as f64 / 1000.0),
        error: error.map(|error| error.to_string()),
    }
}

fn connections(max: usize, table: Option<Table<'_>>, now: Clock) -> Connections {
    let (allowed, needed, limit) = table.map_or((0, 0, None), |table| table.allowed_connections());
    let used = table.map_or(0, |table| table.connections(now.monotonic));
    Connections { max, used, allowed, needed, limited_by: limit.map(Limit::word) }
}

/// `NGINX_VERSION`; the module only loads into that very version.
fn nginx_version() -> String {
    let n = nginx_sys::nginx_version;
    format!("{}.{}.{}", n / 1_000_000, n / 1000 % 1000, n % 1000)
}
