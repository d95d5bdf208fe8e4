//! Sockets that an engine can abort, as the transport of ureq.
//!
//! All descriptors are non-blocking; every wait polls the [`Stop`] beside the socket.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect,
    recv, send, socket_with, sockopt,
};
use rustls::{ClientConnection, StreamOwned};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use crate::consul::server::{Address, Server};
use crate::consul::tls::Tls;
use crate::resolve::{Resolve, SystemResolver};
use crate::stop::{Stop, Woken};

/// Bytes of a connection's buffers: there may be hundreds of connections, and most are idle.
const INPUT_BUFFER: usize = 16 * 1024;
const OUTPUT_BUFFER: usize = 4 * 1024;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// A new connection would be needed, and the request must not have one.
    #[error("the connection was closed")]
    NotAllowed,
    /// The engine ends.
    #[error("stopped")]
    Stopped,
    /// Longer than `consul_connect_timeout`.
    #[error("no connection within {0:?} (consul_connect_timeout)")]
    Timeout(Duration),
    /// The server's host name has no address.
    #[error("cannot resolve \"{0}\" ({1})")]
    Resolve(String, io::Error),
    /// What the system says.
    #[error("cannot connect ({0})")]
    Io(#[from] io::Error),
    /// The handshake failed, or the settings do.
    #[error("tls handshake failed ({0})")]
    Tls(String),
}

/// Connects to one server.
pub(crate) struct Dial {
    pub(crate) server: Server,
    pub(crate) tls: Tls,
    pub(crate) timeout: Duration,
    /// Loopback address to connect to loopback addresses from.
    pub(crate) source: Option<Ipv4Addr>,
    pub(crate) stop: Arc<Stop>,
    /// Whether the present request may have a new connection.
    pub(crate) allowed: AtomicBool,
    pub(crate) last: Mutex<LastDial>,
}

/// The last connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LastDial {
    /// When it was there, without TLS.
    pub(crate) at: Option<Instant>,
    /// It was closed or reset in the TLS handshake.
    pub(crate) was_cut: bool,
}

/// [`Dial`] as ureq wants it.
#[derive(Debug)]
pub(crate) struct DialConnector(pub(crate) Arc<Dial>);

impl Connector for DialConnector {
    type Out = Wire;

    fn connect(&self, _: &ConnectionDetails, _: Option<()>) -> Result<Option<Wire>, ureq::Error> {
        self.0.dial().map(Some).map_err(|error| ureq::Error::Other(Box::new(error)))
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dial({})", self.server)
    }
}

/// ureq resolves before every request, we before every connection.
#[derive(Debug)]
pub(crate) struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(
        &self,
        _: &http::Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        Ok(self.empty())
    }
}

impl Dial {
    fn dial(&self) -> Result<Wire, ConnectError> {
        if !self.allowed.load(Ordering::Relaxed) {
            return Err(ConnectError::NotAllowed);
        }
        let deadline = Instant::now() + self.timeout;
        let stream = match self.server.address() {
            Address::Unix(path) => Stream::Plain(self.connect_unix(path, deadline)?),
            Address::Tcp { host, port, tls: false } => {
                Stream::Plain(self.connect_tcp(host, *port, deadline)?)
            }
            Address::Tcp { host, port, tls: true } => {
                let socket = self.connect_tcp(host, *port, deadline)?;
                Stream::Tls(Box::new(self.handshake(socket, host)?))
            }
        };
        Ok(Wire { stream, buffers: LazyBuffers::new(INPUT_BUFFER, OUTPUT_BUFFER) })
    }

    fn connect_unix(&self, path: &Path, deadline: Instant) -> Result<Socket, ConnectError> {
        let address = SocketAddrUnix::new(path).map_err(io::Error::from)?;
        let fd = new_socket(AddressFamily::UNIX)?;
        // A full backlog is an error here, not something to wait for.
        let connected = connect(&fd, &address);
        self.finish(fd, connected, deadline)
    }

    fn connect_tcp(&self, host: &str, port: u16, until: Instant) -> Result<Socket, ConnectError> {
        let addresses = match host.parse::<IpAddr>() {
            Ok(ip) => vec![ip],
            Err(_) => self.resolve(host, until)?,
        };
        let mut failure = ConnectError::Io(io::Error::other("no address"));
        for (tried, ip) in addresses.iter().enumerate() {
            let address = SocketAddr::new(*ip, port);
            // The addresses left share the time left: a black hole must not eat it all.
            let share = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let now = Instant::now();
            let deadline = now + until.saturating_duration_since(now) / share;
            let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let fd = new_socket(family)?;
            if let (IpAddr::V4(ip), Some(source)) = (ip, self.source) {
                if ip.is_loopback() {
                    // Where there is no such address, the system's choice is good too.
                    let _ = bind(&fd, &SocketAddr::from((source, 0)));
                }
            }
            let connected = connect(&fd, &address);
            match self.finish(fd, connected, deadline) {
                Ok(socket) => {
                    // One small request at a time: waiting for more output gains nothing.
                    sockopt::set_tcp_nodelay(&socket.fd, true).map_err(io::Error::from)?;
                    return Ok(socket);
                }
                Err(ConnectError::Stopped) => return Err(ConnectError::Stopped),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn resolve(&self, host: &str, deadline: Instant) -> Result<Vec<IpAddr>, ConnectError> {
        let resolver = SystemResolver::new(Arc::clone(&self.stop));
        resolver.resolve(host, deadline).map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionAborted => ConnectError::Stopped,
            _ => ConnectError::Resolve(host.to_owned(), error),
        })
    }

    fn finish(
        &self,
        fd: OwnedFd,
        connected: rustix::io::Result<()>,
        deadline: Instant,
    ) -> Result<Socket, ConnectError> {
        match connected {
            Ok(()) => {}
            Err(Errno::INPROGRESS | Errno::INTR) => {
                match self.stop.wait(fd.as_fd(), PollFlags::OUT, Some(deadline))? {
                    Woken::Ready => {}
                    Woken::Stopped => return Err(ConnectError::Stopped),
                    Woken::Timeout => return Err(ConnectError::Timeout(self.timeout)),
                }
                sockopt::socket_error(&fd)
                    .and_then(|result| result)
                    .map_err(|errno| ConnectError::Io(errno.into()))?;
            }
            Err(errno) => return Err(ConnectError::Io(errno.into())),
        }
        *self.last.lock() = LastDial { at: Some(Instant::now()), was_cut: false };
        Ok(Socket { fd, stop: Arc::clone(&self.stop), deadline: Some(deadline) })
    }

    fn handshake(&self, mut socket: Socket, host: &str) -> Result<TlsStream, ConnectError> {
        let tls = |error: &dyn fmt::Display| ConnectError::Tls(error.to_string());
        let config = self.tls.config().map_err(|error| tls(&error))?;
        let name = self.tls.name_for(host).map_err(|error| tls(&error))?;
        let mut session = ClientConnection::new(config, name).map_err(|error| tls(&error))?;
        while session.is_handshaking() {
            session.complete_io(&mut socket).map_err(|error| match error.kind() {
                io::ErrorKind::ConnectionAborted => ConnectError::Stopped,
                io::ErrorKind::TimedOut => ConnectError::Timeout(self.timeout),
                kind => {
                    let is_end = kind == io::ErrorKind::UnexpectedEof || is_reset(&error);
                    self.last.lock().was_cut = is_end;
                    tls(&error)
                }
            })?;
        }
        Ok(StreamOwned::new(session, socket))
    }
}

/// Whether the other side has reset the connection.
pub(crate) fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

fn new_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    // CLOEXEC: nginx executes its new binary on upgrade.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(family, SocketType::STREAM, flags, None)?)
}

type TlsStream = StreamOwned<ClientConnection, Socket>;

/// A connected descriptor.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    stop: Arc<Stop>,
    deadline: Option<Instant>,
}

impl Socket {
    /// Runs `attempt` until it does not have to wait.
    fn retry(
        &self,
        events: PollFlags,
        mut attempt: impl FnMut(&OwnedFd) -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            if self.stop.is_raised() {
                return Err(stopped());
            }
            match attempt(&self.fd) {
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    match self.stop.wait(self.fd.as_fd(), events, self.deadline)? {
                        Woken::Ready => {}
                        Woken::Stopped => return Err(stopped()),
                        Woken::Timeout => return Err(io::ErrorKind::TimedOut.into()),
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Nothing to read and not closed: ready for the next request.
    fn is_idle(&self) -> bool {
        let mut byte = [0];
        recv(&self.fd, &mut byte, RecvFlags::PEEK).map(|_| ()) == Err(Errno::AGAIN)
    }
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "stopped")
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.retry(PollFlags::IN, |fd| recv(fd, &mut *buffer, RecvFlags::empty()).map(|r| r.1))
    }
}

impl Write for Socket {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.retry(PollFlags::OUT, |fd| send(fd, data, SendFlags::NOSIGNAL))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream>),
}

impl Stream {
    fn socket(&mut self) -> &mut Socket {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => &mut stream.sock,
        }
    }

    /// Gives every operation that follows this much time in all.
    fn limit(&mut self, timeout: NextTimeout) {
        let after = timeout.after;
        let deadline = (!after.is_not_happening()).then(|| Instant::now().checked_add(*after));
        self.socket().deadline = deadline.flatten();
    }
}

/// A connection to a server, with ureq's buffers.
pub(crate) struct Wire {
    stream: Stream,
    buffers: LazyBuffers,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl Transport for Wire {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.limit(timeout);
        let output = &self.buffers.output()[..amount];
        let written = match &mut self.stream {
            Stream::Plain(socket) => socket.write_all(output),
            Stream::Tls(stream) => stream.write_all(output),
        };
        written.map_err(|error| ureq_error(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.limit(timeout);
        let input = self.buffers.input_append_buf();
        let count = match &mut self.stream {
            Stream::Plain(socket) => socket.read(input),
            Stream::Tls(stream) => stream.read(input),
        };
        let count = count.map_err(|error| ureq_error(error, timeout))?;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.socket().is_idle()
    }

    fn is_tls(&self) -> bool {
        matches!(self.stream, Stream::Tls(_))
    }
}

fn ureq_error(error: io::Error, timeout: NextTimeout) -> ureq::Error {
    match error.kind() {
        io::ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
        _ => ureq::Error::Io(error),
    }
}
