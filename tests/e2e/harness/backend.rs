//! Backends that say who they are.

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustls::{HandshakeKind, ServerConfig, ServerConnection, StreamOwned};
use socket2::SockRef;

use crate::ports;
use crate::wire::{self, Head};

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
    /// A connection answers one request; the next on it finds it closed, as one that was kept too
    /// long.
    Stale,
}

#[derive(Debug, Default)]
struct Shared {
    name: String,
    manner: Mutex<Manner>,
    released: Condvar,
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
/// It answers with its name. A path like `/wait/50` delays the answer by so many milliseconds,
/// `/size/1000` answers with so many bytes; `Upgrade` turns a connection into an echo.
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
        let shared = Arc::new(Shared { name: name.to_owned(), ..Shared::default() });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accept(&accepting, &listener, tls.as_ref()));
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
        thread::spawn(move || {
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

fn serve<S: Read + Write>(shared: &Shared, socket: &TcpStream, stream: S) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut answered = false;
    while let Some(head) = wire::read_head(&mut reader)? {
        if answered && *lock(&shared.manner) == Manner::Stale {
            return Ok(());
        }
        answered = true;
        wire::read_body(&mut reader, &head, false)?;
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let busy = shared.busy.fetch_add(1, Ordering::SeqCst) + 1;
        shared.most_busy.fetch_max(busy, Ordering::SeqCst);
        let goes_on = answer(shared, socket, &head, reader.get_mut());
        shared.busy.fetch_sub(1, Ordering::SeqCst);
        if !goes_on? || shared.stopping.load(Ordering::SeqCst) {
            return Ok(());
        }
        if head.header("upgrade").is_some() {
            return echo(reader);
        }
    }
    Ok(())
}

/// Answers one request; says whether the connection goes on.
fn answer<S: Write>(
    shared: &Shared,
    socket: &TcpStream,
    head: &Head,
    stream: &mut S,
) -> io::Result<bool> {
    let mut status = 200;
    let manner = behave(shared);
    match manner {
        Manner::Status(other) => status = other,
        Manner::Reset | Manner::ResetAfter(_) => {
            if let Manner::ResetAfter(delay) = manner {
                thread::sleep(delay);
            }
            SockRef::from(socket).set_linger(Some(Duration::ZERO))?;
            return Ok(false);
        }
        Manner::Slow(delay) => thread::sleep(delay),
        Manner::Well | Manner::Hold | Manner::Stale => {}
    }
    if let Some(protocol) = head.header("upgrade") {
        write!(stream, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: {protocol}\r\n")?;
        write!(stream, "Connection: Upgrade\r\nX-Backend: {}\r\n\r\n", shared.name)?;
        stream.flush()?;
        return Ok(true);
    }
    let body = body(&shared.name, head.word(1));
    let connection = if head.closes() { "close" } else { "keep-alive" };
    let message = format!(
        "HTTP/1.1 {status} Said\r\nContent-Length: {}\r\nConnection: {connection}\r\n\
         X-Backend: {}\r\n\r\n{body}",
        body.len(),
        shared.name
    );
    stream.write_all(message.as_bytes())?;
    stream.flush()?;
    Ok(!head.closes())
}

/// The manner in force, once nothing is held.
fn behave(shared: &Shared) -> Manner {
    let mut manner = lock(&shared.manner);
    while *manner == Manner::Hold {
        manner = shared.released.wait(manner).unwrap_or_else(PoisonError::into_inner);
    }
    *manner
}

fn body(name: &str, path: &str) -> String {
    let number = |prefix| path.strip_prefix(prefix).and_then(|n: &str| n.parse::<usize>().ok());
    if let Some(milliseconds) = number("/wait/") {
        thread::sleep(Duration::from_millis(milliseconds as u64));
    }
    number("/size/").map_or_else(|| format!("{name}\n"), |size| "x".repeat(size))
}

fn echo<S: Read + Write>(mut reader: BufReader<S>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        reader.get_mut().write_all(&buffer[..n])?;
        reader.get_mut().flush()?;
    }
}
