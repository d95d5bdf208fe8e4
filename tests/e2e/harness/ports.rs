//! Free loopback ports that no other test on this machine takes meanwhile.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use socket2::{Domain, Socket, Type};

use crate::wait;

/// Below Linux's range for outgoing connections, so that none of them takes a reserved port.
const FIRST: u16 = 10_240;
const LAST: u16 = 32_000;
/// Longest an address may be taken after its listener is closed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

static HELD: Mutex<Option<HashMap<u16, File>>> = Mutex::new(None);
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Reserves a port on which nothing listens, for as long as this process lives.
///
/// Several runs may share a machine: each port is a locked file in a common folder, and the kernel
/// drops the lock with the process.
///
/// # Panics
/// If no port is free.
pub fn free() -> u16 {
    let folder = folder();
    let span = u32::from(LAST - FIRST);
    let start = process::id().wrapping_mul(7919);
    for _ in 0..span {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port =
            FIRST + u16::try_from(start.wrapping_add(step) % span).expect("within the range");
        if reserve(&folder, port) {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {LAST}");
}

fn folder() -> PathBuf {
    let folder = std::env::temp_dir().join("nginx-consul-ports");
    fs::create_dir_all(&folder).expect("a folder for the port locks");
    // Another user's run must be able to lock here too; only the owner can say so.
    let _ = fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777));
    folder
}

fn reserve(folder: &std::path::Path, port: u16) -> bool {
    let mut held = HELD.lock().expect("the list of ports");
    let held = held.get_or_insert_default();
    if held.contains_key(&port) {
        return false;
    }
    let Ok(file) = File::create(folder.join(port.to_string())) else { return false };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() || !is_free(port) {
        return false;
    }
    held.insert(port, file);
    true
}

/// Starts a process while no port is looked at: until it has become another program, it has this
/// one's sockets, and a port that is being looked at would seem taken.
pub(crate) fn apart<T>(start: impl FnOnce() -> T) -> T {
    let _held = HELD.lock().expect("the list of ports");
    start()
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
        && TcpListener::bind((Ipv6Addr::LOCALHOST, port)).is_ok()
}

/// An address where connecting gets no answer at all: the SYN is dropped, as by a firewall.
#[derive(Debug)]
pub struct BlackHole {
    address: SocketAddr,
    _listener: Socket,
    _fillers: Vec<TcpStream>,
}

impl BlackHole {
    /// Fills a listener's queue, so that the kernel drops whatever comes after.
    ///
    /// # Panics
    /// If the queue doesn't fill.
    pub fn open() -> BlackHole {
        BlackHole::open_at((Ipv4Addr::LOCALHOST, free()).into())
    }

    /// The same at an IPv4 address where nothing listens.
    ///
    /// # Panics
    /// If the address can't be bound, or the queue doesn't fill.
    pub fn open_at(address: SocketAddr) -> BlackHole {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        listener.set_reuse_address(true).expect("SO_REUSEADDR");
        // A process that is being started may have a former listener until it is another program.
        wait::until("the address is free", PATIENCE, || listener.bind(&address.into()).is_ok());
        listener.listen(0).expect("a listener");
        let mut fillers = Vec::new();
        while let Ok(filler) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            fillers.push(filler);
            assert!(fillers.len() < 100, "the queue of {address} never fills");
        }
        BlackHole { address, _listener: listener, _fillers: fillers }
    }

    /// Where connecting hangs.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
