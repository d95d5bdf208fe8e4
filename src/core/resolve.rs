//! Resolves host names to addresses, outside nginx's event loop.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::model::Instance;
use crate::stop::{Stop, Woken};

/// A name is not looked up again within this time, however often its service changes.
const FRESH: Duration = Duration::from_secs(5);

/// Most lookups that may wait for the system's resolver at a time; further ones fail at once.
const MAX_HANGING: usize = 4;

/// Resolves host names.
pub trait Resolve {
    /// All addresses of `host`, IPv4 and IPv6, in any order.
    ///
    /// # Errors
    ///
    /// The name has no address, or none was found by `deadline`.
    fn resolve(&self, host: &str, deadline: Instant) -> io::Result<Vec<IpAddr>>;
}

/// The system's resolver (`getaddrinfo`).
///
/// It cannot be interrupted, so each lookup has a thread of its own. After the deadline, and when the
/// watcher stops, nobody waits for that thread.
#[derive(Debug)]
pub struct SystemResolver {
    stop: Arc<Stop>,
    running: Mutex<HashMap<String, Arc<Lookup>>>,
}

#[derive(Debug)]
struct Lookup {
    done: Stop,
    addresses: OnceLock<Result<Vec<IpAddr>, String>>,
}

impl SystemResolver {
    /// Lookups end when `stop` is raised.
    pub fn new(stop: Arc<Stop>) -> Self {
        SystemResolver { stop, running: Mutex::default() }
    }

    fn start(&self, host: &str) -> io::Result<Arc<Lookup>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, lookup| lookup.addresses.get().is_none());
        if let Some(lookup) = running.get(host) {
            return Ok(Arc::clone(lookup));
        }
        if running.len() >= MAX_HANGING {
            return Err(io::Error::other("the system's resolver hangs"));
        }
        let lookup = Arc::new(Lookup { done: Stop::new()?, addresses: OnceLock::new() });
        let name = host.to_owned();
        let shared = Arc::clone(&lookup);
        // 256 KiB: name service modules of the C library need much stack.
        let thread = thread::Builder::new().name("consul-resolve".to_owned());
        thread.stack_size(256 * 1024).spawn(move || {
            let found = (name.as_str(), 0).to_socket_addrs();
            let found = found.map(|all| all.map(|address| address.ip()).collect());
            // Only this thread sets it.
            let _ = shared.addresses.set(found.map_err(|error| error.to_string()));
            shared.done.raise();
        })?;
        running.insert(host.to_owned(), Arc::clone(&lookup));
        Ok(lookup)
    }
}

impl Resolve for SystemResolver {
    fn resolve(&self, host: &str, deadline: Instant) -> io::Result<Vec<IpAddr>> {
        let lookup = self.start(host)?;
        let woken = self.stop.wait(lookup.done.as_fd(), PollFlags::IN, Some(deadline))?;
        match (woken, lookup.addresses.get()) {
            (Woken::Stopped, _) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "stopped")),
            (_, Some(Ok(addresses))) if addresses.is_empty() => {
                Err(io::Error::new(io::ErrorKind::NotFound, "no address"))
            }
            (_, Some(Ok(addresses))) => Ok(addresses.clone()),
            (_, Some(Err(error))) => Err(io::Error::other(error.clone())),
            (_, None) => Err(io::Error::new(io::ErrorKind::TimedOut, "name lookup timed out")),
        }
    }
}

/// Addresses of the host names of one watch.
#[derive(Debug, Default)]
pub struct Names {
    /// Addresses of each host, and when they were looked up.
    known: HashMap<String, (Vec<IpAddr>, Instant)>,
}

impl Names {
    /// Looks up the names of `instances` and forgets all others; IP addresses are not names.
    ///
    /// Takes at most `budget`, and looks a name up again after `every`. A name whose lookup fails keeps
    /// its last addresses. Returns the names that have no address, and why.
    pub fn refresh(
        &mut self,
        instances: &[Instance],
        resolver: &dyn Resolve,
        (budget, every): (Duration, Duration),
    ) -> Vec<(String, String)> {
        let hosts: HashSet<&str> =
            instances.iter().map(|i| i.host.as_str()).filter(|h| is_name(h)).collect();
        self.known.retain(|host, _| hosts.contains(host.as_str()));
        let mut hosts: Vec<&str> = hosts.into_iter().collect();
        // Unknown names first: they have no addresses to fall back to.
        hosts.sort_by_key(|host| (self.known.contains_key(*host), *host));
        let deadline = Instant::now() + budget;
        let mut unresolved = Vec::new();
        for host in hosts {
            let now = Instant::now();
            let last = self.known.get(host);
            if last.is_some_and(|(_, at)| now.duration_since(*at) < FRESH.min(every / 2)) {
                continue;
            }
            let found = if now < deadline {
                resolver.resolve(host, deadline)
            } else {
                Err(io::Error::new(io::ErrorKind::TimedOut, "no time left for name lookups"))
            };
            match found {
                Ok(mut addresses) => {
                    addresses.sort_unstable();
                    addresses.dedup();
                    self.known.insert(host.to_owned(), (addresses, now));
                }
                Err(_) if last.is_some() => {}
                Err(error) => unresolved.push((host.to_owned(), error.to_string())),
            }
        }
        unresolved
    }

    /// Addresses of a host as it stands in an [`Instance`]; empty if unknown. The flag says that
    /// it is a name.
    pub fn addresses(&self, host: &str) -> (Vec<IpAddr>, bool) {
        match host.parse() {
            Ok(ip) => (vec![ip], false),
            Err(_) => (self.known.get(host).map(|(all, _)| all.clone()).unwrap_or_default(), true),
        }
    }

    /// Whether any name is in use: their addresses may change though Consul's answer does not.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

/// Whether this host needs a lookup.
pub fn is_name(host: &str) -> bool {
    host.parse::<IpAddr>().is_err()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::num::NonZeroU16;

    use super::*;
    use crate::model::Health;
    use crate::params::Params;

    /// Time for a lookup, and between lookups.
    pub(crate) const TIMES: (Duration, Duration) =
        (Duration::from_secs(1), Duration::from_secs(30));

    /// Answers from a list and notes what was asked.
    #[derive(Default)]
    pub(crate) struct Script {
        pub(crate) answers: RefCell<HashMap<&'static str, Vec<&'static str>>>,
        pub(crate) asked: RefCell<Vec<String>>,
    }

    impl Resolve for Script {
        fn resolve(&self, host: &str, _: Instant) -> io::Result<Vec<IpAddr>> {
            self.asked.borrow_mut().push(host.to_owned());
            let answers = self.answers.borrow();
            let found = answers.get(host).ok_or_else(|| io::Error::other("no such name"))?;
            Ok(found.iter().map(|ip| ip.parse().unwrap()).collect())
        }
    }

    pub(crate) fn instance(id: &str, host: &str) -> Instance {
        Instance {
            node: "n".to_owned(),
            id: id.to_owned(),
            host: host.to_owned(),
            port: 80,
            tags: Vec::new(),
            health: Health::Passing,
            weight_passing: NonZeroU16::MIN,
            weight_warning: 1,
            datacenter: String::new(),
            params: Params::default(),
            meta: Default::default(),
        }
    }

    fn refresh(names: &mut Names, script: &Script, hosts: &[&str]) -> Vec<String> {
        let instances: Vec<_> = hosts.iter().map(|host| instance("i", host)).collect();
        for name in names.known.values_mut() {
            name.1 -= FRESH;
        }
        let unresolved = names.refresh(&instances, script, TIMES);
        unresolved.into_iter().map(|(host, error)| format!("{host}: {error}")).collect()
    }

    fn addresses(names: &Names, host: &str) -> Vec<String> {
        names.addresses(host).0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_never_touch_the_resolver() {
        let (mut names, script) = (Names::default(), Script::default());
        assert!(refresh(&mut names, &script, &["10.0.0.1", "::1"]).is_empty());
        assert!(script.asked.borrow().is_empty());
        assert_eq!(addresses(&names, "::1"), ["::1"]);
    }

    #[test]
    fn all_addresses_of_a_name_are_taken_in_one_order() {
        let (mut names, script) = (Names::default(), Script::default());
        script.answers.borrow_mut().insert("a", vec!["::1", "10.0.0.2", "10.0.0.1", "10.0.0.2"]);
        assert!(refresh(&mut names, &script, &["a", "a"]).is_empty());
        assert_eq!(addresses(&names, "a"), ["10.0.0.1", "10.0.0.2", "::1"]);
        assert_eq!(script.asked.borrow().len(), 1, "one lookup per name");
    }

    #[test]
    fn a_failing_name_keeps_its_last_addresses_and_an_unknown_one_is_told() {
        let (mut names, script) = (Names::default(), Script::default());
        script.answers.borrow_mut().insert("a", vec!["10.0.0.1"]);
        assert_eq!(refresh(&mut names, &script, &["a", "b"]), ["b: no such name"]);
        script.answers.borrow_mut().clear();
        assert_eq!(refresh(&mut names, &script, &["a", "b"]), ["b: no such name"]);
        assert_eq!(addresses(&names, "a"), ["10.0.0.1"]);
        assert!(addresses(&names, "b").is_empty());
    }

    #[test]
    fn names_that_are_gone_are_forgotten_and_fresh_ones_left_alone() {
        let (mut names, script) = (Names::default(), Script::default());
        script.answers.borrow_mut().insert("a", vec!["10.0.0.1"]);
        names.refresh(&[instance("i", "a")], &script, TIMES);
        names.refresh(&[instance("i", "a")], &script, TIMES);
        assert_eq!(script.asked.borrow().len(), 1);
        refresh(&mut names, &script, &[]);
        assert!(names.is_empty());
    }

    #[test]
    fn the_budget_bounds_the_lookups() {
        let (mut names, script) = (Names::default(), Script::default());
        let unresolved = names.refresh(&[instance("i", "a")], &script, (Duration::ZERO, TIMES.1));
        assert_eq!(unresolved[0].1, "no time left for name lookups");
        assert!(script.asked.borrow().is_empty());
    }

    #[test]
    fn the_system_knows_localhost() {
        let stop = Arc::new(Stop::new().unwrap());
        let resolver = SystemResolver::new(Arc::clone(&stop));
        let deadline = Instant::now() + Duration::from_secs(10);
        let found = resolver.resolve("localhost", deadline).unwrap();
        assert!(found.iter().all(IpAddr::is_loopback) && !found.is_empty(), "{found:?}");
        stop.raise();
        let stopped = resolver.resolve("localhost", deadline).unwrap_err();
        assert_eq!(stopped.kind(), io::ErrorKind::ConnectionAborted);
    }
}
