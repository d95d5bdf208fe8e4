//! Backends that say who they are.

mod answer;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::{HandshakeKind, ServerConfig, ServerConnection, StreamOwned};

use crate::{ports, threads};
use answer::serve;

/// How a backend treats its requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// 200 and its name.
    #[default]
    Well,
    /// Another status.
    Status(u16),
    /// The connection is reset instead of an answer.
    Reset,
    /// The same, but later.
    ResetAfter(Duration),
    /// The answer comes later.
    Slow(Duration),
    /// The answer waits until [`Backend::release`], or another manner.
    Hold,
    /// The request is read and never answered.
    Silent,
    /// The answer comes at one byte a second, its header first.
    SlowHeader,
    /// The header comes at once, the body at one byte a second.
    SlowBody,
    /// A connection answers one request; the next on it finds it closed, as one that was kept too
    /// long.
    Stale,
}

#[derive(Debug, Default)]
struct Shared {
    name: String,
    manner: Mutex<Manner>,
    released: Condvar,
    /// How often [`Backend::release`] was called.
    releases: AtomicUsize,
    stopping: AtomicBool,
    connections: AtomicUsize,
    requests: AtomicUsize,
    busy: AtomicUsize,
    most_busy: AtomicUsize,
    resumed: AtomicUsize,
    open: Mutex<HashMap<usize, TcpStream>>,
}

/// A small HTTP/1.1 server with keep-alive, in threads of this process.
///
/// It answers with its name, over HTTP/1.1 or uwsgi. A path like `/wait/50` delays the answer by so
/// many milliseconds, `/size/1000` answers with so many bytes, `/status/304` with that status,
/// `/accel/x` with a redirect of nginx to `/x`; `Upgrade` turns a connection into an echo. Until
/// [`Backend::release`], `/silent` gets no answer, `/stalled` only a header, and `/endless` a body
/// without an end.
#[derive(Debug)]
pub struct Backend {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Backend {
    /// Starts one on a free port of 127.0.0.1.
    pub fn start(name: &str) -> Backend {
        Backend::start_at(name, (Ipv4Addr::LOCALHOST, ports::free()), None)
    }

    /// Starts `names.len()` of them.
    pub fn start_all(names: &[&str]) -> Vec<Backend> {
        names.iter().map(|name| Backend::start(name)).collect()
    }

    /// Starts one on a free port of another address.
    pub fn start_on(name: &str, ip: impl Into<IpAddr>) -> Backend {
        Backend::start_at(name, (ip.into(), ports::free()), None)
    }

    /// Starts one that speaks TLS.
    pub fn start_tls(name: &str, config: Arc<ServerConfig>) -> Backend {
        Backend::start_at(name, (Ipv4Addr::LOCALHOST, ports::free()), Some(config))
    }

    /// Starts one at this address.
    ///
    /// # Panics
    /// If the address can't be bound.
    pub fn start_at(
        name: &str,
        address: impl Into<SocketAddr>,
        tls: Option<Arc<ServerConfig>>,
    ) -> Backend {
        let address = address.into();
        let listener =
            TcpListener::bind(address).unwrap_or_else(|error| panic!("bind {address}: {error}"));
        Backend::over(name, listener, tls)
    }

    /// Starts one that accepts from this listener.
    pub(crate) fn over(
        name: &str,
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
    ) -> Backend {
        let address = listener.local_addr().expect("a bound listener");
        let shared = Arc::new(Shared { name: name.to_owned(), ..Shared::default() });
        let accepting = Arc::clone(&shared);
        threads::spawn(move || accept(&accepting, &listener, tls.as_ref()));
        Backend { shared, address }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        lock(&self.shared.open).len()
    }

    /// Requests received so far.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Requests being answered now.
    pub fn busy(&self) -> usize {
        self.shared.busy.load(Ordering::SeqCst)
    }

    /// Most requests that were being answered at a time.
    pub fn most_busy(&self) -> usize {
        self.shared.most_busy.load(Ordering::SeqCst)
    }

    /// TLS handshakes that resumed a session.
    pub fn resumed(&self) -> usize {
        self.shared.resumed.load(Ordering::SeqCst)
    }

    /// Changes how requests are treated, those being held included.
    pub fn set(&self, manner: Manner) {
        *lock(&self.shared.manner) = manner;
        self.shared.released.notify_all();
    }

    /// Answers the requests being held, and all that come.
    pub fn release(&self) {
        self.shared.releases.fetch_add(1, Ordering::SeqCst);
        self.set(Manner::Well);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.release();
        // Wakes the accepting thread, which then drops the listener.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        for stream in lock(&self.shared.open).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener, tls: Option<&Arc<ServerConfig>>) {
    for stream in listener.incoming() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let Ok(clone) = stream.try_clone() else { continue };
        let number = shared.connections.fetch_add(1, Ordering::SeqCst);
        lock(&shared.open).insert(number, clone);
        let (shared, tls) = (Arc::clone(shared), tls.cloned());
        threads::spawn(move || {
            // An error here is the peer's going away, which tests see at its other end.
            let _ = converse(&shared, &stream, tls);
            lock(&shared.open).remove(&number);
        });
    }
}

fn converse(shared: &Shared, stream: &TcpStream, tls: Option<Arc<ServerConfig>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let Some(config) = tls else { return serve(shared, stream, stream.try_clone()?) };
    let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut socket = stream.try_clone()?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    if connection.handshake_kind() == Some(HandshakeKind::Resumed) {
        shared.resumed.fetch_add(1, Ordering::SeqCst);
    }
    serve(shared, stream, StreamOwned::new(connection, socket))
}
