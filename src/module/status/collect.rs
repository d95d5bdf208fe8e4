//! Tells a document what there is, a little at a time.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nginx_consul_core::status::{Connections, Document, Head, Nginx, VERSION, Version, Zone};
use nginx_consul_core::table::Table;

use super::service::{Peers, Users, service};
use crate::conf::{self, HttpConf};
use crate::orders::Shown;
use crate::peer::{Block, NamedBlock};
use crate::zone;

/// Peers between looks at the clock.
const PEERS: usize = 32;

/// The way through all that the status says.
pub(super) struct Walk {
    http: &'static HttpConf,
    table: Option<Table<'static>>,
    /// Milliseconds since the epoch, when it began: for all alike.
    now: u64,
    /// Only this service.
    only: Option<String>,
    document: Box<dyn Document>,
    blocks: Vec<&'static Block>,
    named_blocks: Vec<&'static NamedBlock>,
    /// Of each target of the plan.
    users: Vec<Vec<&'static Block>>,
    entries: HashMap<u128, usize>,
    orders: Rc<Shown>,
    next: Next,
    peers: Option<Peers>,
}

/// What comes next, by number.
enum Next {
    Upstream(usize),
    Planned(usize),
    /// An entry of the table.
    Named(usize),
    Nothing,
}

impl Walk {
    /// The way from its beginning; `None` if there is no such service.
    pub(super) fn new(
        http: &'static HttpConf,
        only: Option<String>,
        mut document: Box<dyn Document>,
    ) -> Option<Walk> {
        // SAFETY: the zone of the running configuration, or null.
        let table = unsafe { http.shm_zone.as_ref() }.and_then(zone::table);
        let now = now_ms();
        if only.as_ref().is_some_and(|name| !is_known(http, table, name)) {
            return None;
        }
        document.head(head(http, table, now));
        // SAFETY: blocks of the running configuration.
        let blocks: Vec<&Block> = unsafe {
            http.blocks.iter().filter_map(|&block| conf::srv_conf(block).block.as_deref()).collect()
        };
        // SAFETY: as above.
        let named_blocks = unsafe {
            let blocks = http.named_blocks.iter();
            blocks.filter_map(|&block| conf::srv_conf(block).named.as_deref()).collect()
        };
        let targets = http.plan.as_ref().map_or(0, |plan| plan.targets.len());
        let mut users: Vec<Vec<&Block>> = vec![Vec::new(); targets];
        for block in &blocks {
            for source in block.sources() {
                users[source.target].push(block);
            }
        }
        let entries = table.map_or_else(HashMap::new, |table| table.entries());
        let orders = table.map(|table| Shown::new(table, now)).unwrap_or_default();
        Some(Walk {
            http,
            table,
            now,
            only,
            document,
            blocks,
            named_blocks,
            users,
            entries,
            orders: Rc::new(orders),
            next: Next::Upstream(0),
            peers: None,
        })
    }

    /// Goes on for about that long; whether the end is reached.
    pub(super) fn go_on(&mut self, time: Duration) -> bool {
        let start = Instant::now();
        while self.step() {
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

    /// One block, one service, or some peers; `false` at the end.
    fn step(&mut self) -> bool {
        if let Some((peers, table)) = self.peers.as_mut().zip(self.table) {
            for _ in 0..PEERS {
                let Some(peer) = peers.next(table, self.now) else {
                    self.peers = None;
                    break;
                };
                self.document.peer(peer);
            }
            return true;
        }
        self.next = match self.next {
            Next::Upstream(number) => match self.blocks.get(number) {
                Some(block) => {
                    if self.is_wanted(&block.service) {
                        self.document.upstream(block.status());
                    }
                    Next::Upstream(number + 1)
                }
                None => Next::Planned(0),
            },
            Next::Planned(target) if target < self.users.len() => {
                self.planned(target);
                Next::Planned(target + 1)
            }
            Next::Planned(_) => match self.http.templates.as_ref().filter(|_| self.table.is_some())
            {
                Some(templates) => {
                    self.document.named(templates.max);
                    Next::Named(0)
                }
                None => Next::Nothing,
            },
            Next::Named(entry) if self.table.is_some_and(|t| entry < t.entry_capacity()) => {
                self.named(entry);
                Next::Named(entry + 1)
            }
            Next::Named(_) | Next::Nothing => return false,
        };
        true
    }

    fn is_wanted(&self, service: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == service)
    }

    /// A service that blocks name.
    fn planned(&mut self, target: usize) {
        let (Some(plan), Some(table)) = (&self.http.plan, self.table) else { return };
        let followed = &plan.targets[target];
        if !self.is_wanted(&followed.query.service) {
            return;
        }
        let (key, blocks) = (plan.key(target), &self.users[target]);
        let first = blocks.first();
        let users = Users {
            upstreams: blocks.iter().map(|block| block.name().into_owned()).collect(),
            rules: first.map(|block| block.rules).unwrap_or_default(),
            is_single: first.is_some_and(|block| block.is_single()),
            keeps_alive: blocks.iter().any(|block| block.keeps_alive()),
        };
        let entry = self.entries.get(&key).copied();
        let (service, peers) =
            service(followed, key, (table, entry), users, (&self.orders, self.now));
        self.document.service(service);
        self.peers = peers;
    }

    /// A service that a request has named, if the entry is that of one.
    fn named(&mut self, entry: usize) -> Option<()> {
        let (templates, plan) = (self.http.templates.as_ref()?, self.http.plan.as_ref()?);
        let table = self.table?;
        let named = table.named(entry)?;
        if !self.is_wanted(&named.name) {
            return None;
        }
        let template = templates.find(named.template)?;
        let key = table.key(entry);
        let place = template.places(&named.name, plan).into_iter().find(|p| p.key == key)?;
        let asks = |block: &&&NamedBlock| block.template().is_some_and(|t| t.key == named.template);
        let blocks: Vec<_> = self.named_blocks.iter().filter(asks).collect();
        let users = Users {
            upstreams: blocks.iter().map(|block| block.pattern().name().into_owned()).collect(),
            rules: blocks.first().map(|block| block.pattern().rules).unwrap_or_default(),
            is_single: blocks.iter().any(|block| block.is_single(&named.name)),
            keeps_alive: blocks.iter().any(|block| block.pattern().keeps_alive()),
        };
        let (mut service, peers) =
            service(&place.target, key, (table, Some(entry)), users, (&self.orders, self.now));
        let unused = self.now.saturating_sub(table.last_used(entry));
        service.last_used_seconds = Some(unused as f64 / 1000.0);
        self.document.service(service);
        self.peers = peers;
        Some(())
    }
}

/// Whether a block follows the service, or a request has named it.
fn is_known(http: &HttpConf, table: Option<Table<'_>>, name: &str) -> bool {
    let mut planned = http.plan.iter().flat_map(|plan| &plan.targets);
    let is_named = |table: Table<'_>| {
        http.templates.is_some()
            && (0..table.entry_capacity())
                .any(|entry| table.named(entry).is_some_and(|named| named.name == name))
    };
    planned.any(|target| target.query.service == name) || table.is_some_and(is_named)
}

fn head(http: &HttpConf, table: Option<Table<'_>>, now: u64) -> Head {
    // SAFETY: the zone of the running configuration, or null.
    let shm_zone = unsafe { http.shm_zone.as_ref() };
    Head {
        version: VERSION,
        time_ms: now,
        module: Version { version: env!("CARGO_PKG_VERSION").into() },
        nginx: Nginx {
            version: nginx_version(),
            pid: std::process::id(),
            // SAFETY: set once, before init_process.
            worker: unsafe { nginx_sys::ngx_worker },
        },
        zone: Zone {
            name: shm_zone.map_or_else(String::new, |z| z.shm.name.to_string()),
            size: shm_zone.map_or(0, |z| z.shm.size),
            used: table.map_or(0, |t| t.usage()),
        },
        state: table.and_then(|t| Some(http.state_file()?.status(t, now))),
        connections: Connections {
            max: http.connections(),
            used: table.map_or(0, |t| t.connections(now)),
        },
    }
}

/// `NGINX_VERSION`; the module only loads into that very version.
fn nginx_version() -> String {
    let n = nginx_sys::nginx_version;
    format!("{}.{}.{}", n / 1_000_000, n / 1000 % 1000, n % 1000)
}

/// Milliseconds since the epoch, as the event loop knows them.
fn now_ms() -> u64 {
    // SAFETY: ngx_cached_time always points to a valid time; only the event loop moves it.
    let time = unsafe { &*nginx_sys::ngx_cached_time.cast_const() };
    u64::try_from(time.sec).unwrap_or(0) * 1000 + time.msec as u64
}
