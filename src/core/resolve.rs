//! Resolves host names to addresses, outside nginx's event loop.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::event::PollFlags;

use crate::address::is_supported;
use crate::stop::{Stop, Woken};

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
    running: Mutex<HashMap<String, Running>>,
}

/// A lookup and its thread.
type Running = (Arc<Lookup>, JoinHandle<()>);

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
        // Joined, and not detached: glibc's pthread_detach() may crash if the thread ends in that moment
        // (https://sourceware.org/bugzilla/show_bug.cgi?id=19951).
        let has_ended =
            |(_, (lookup, _)): &(_, &(Arc<Lookup>, _))| lookup.addresses.get().is_some();
        let ended = running.iter().filter(has_ended).map(|(host, _)| host.clone());
        for host in ended.collect::<Vec<_>>() {
            running.remove(&host).into_iter().for_each(|(_, thread)| drop(thread.join()));
        }
        if let Some((lookup, _)) = running.get(host) {
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
        let thread = thread.stack_size(256 * 1024).spawn(move || {
            // Only this thread sets it.
            let _ = shared.addresses.set(look_up(&name).map_err(|error| error.to_string()));
            shared.done.raise();
        })?;
        running.insert(host.to_owned(), (Arc::clone(&lookup), thread));
        Ok(lookup)
    }
}

/// The addresses of a name that this system can connect to, as the kernel sees them.
fn look_up(name: &str) -> io::Result<Vec<IpAddr>> {
    let found = (name, 0).to_socket_addrs()?.map(|address| address.ip().to_canonical());
    let (supported, others): (Vec<_>, Vec<_>) = found.partition(|ip| is_supported(*ip));
    match (supported.is_empty(), others.is_empty()) {
        (false, _) => Ok(supported),
        (true, true) => Err(io::Error::new(io::ErrorKind::NotFound, "no address")),
        (true, false) => {
            Err(io::Error::other("it has IPv6 addresses only, this system has no IPv6"))
        }
    }
}

impl Resolve for SystemResolver {
    fn resolve(&self, host: &str, deadline: Instant) -> io::Result<Vec<IpAddr>> {
        let lookup = self.start(host)?;
        let woken = self.stop.wait(lookup.done.as_fd(), PollFlags::IN, Some(deadline))?;
        match (woken, lookup.addresses.get()) {
            (Woken::Stopped, _) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "stopped")),
            (_, Some(Ok(addresses))) => Ok(addresses.clone()),
            (_, Some(Err(error))) => Err(io::Error::other(error.clone())),
            (_, None) => Err(io::Error::new(io::ErrorKind::TimedOut, "name lookup timed out")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

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
