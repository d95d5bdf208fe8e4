//! Sockets that a [`Stop`] aborts, as the transport of ureq.
//!
//! All descriptors are non-blocking; every wait polls the [`Stop`] beside the socket.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    addr::SocketAddrArg, bind, connect, recv, send, socket_with, sockopt,
};
use rustls::ClientConnection;
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

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// A new connection would be needed, which [`Dial::may_connect`] forbids.
    #[error("the connection was closed")]
    NotAllowed,
    /// Longer than `consul_connect_timeout`.
    #[error("no connection within {0:?} (consul_connect_timeout)")]
    Timeout(Duration),
    /// The server's host name has no address.
    #[error("cannot resolve \"{0}\" ({1})")]
    Resolve(String, io::Error),
    /// Any other error of the system.
    #[error("cannot connect ({0})")]
    Io(#[from] io::Error),
    /// The handshake failed, or the settings are unusable.
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
    /// Whether the request under way may open a new connection.
    pub(crate) may_connect: AtomicBool,
    pub(crate) last: Mutex<LastDial>,
}

/// The last connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LastDial {
    /// When TCP was connected.
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

/// ureq resolves before every request; [`Dial`] does so before every connection.
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
        if !self.may_connect.load(Ordering::Relaxed) {
            return Err(ConnectError::NotAllowed);
        }
        let deadline = Instant::now() + self.timeout;
        let (mut socket, tls_host) = match self.server.address() {
            Address::Unix(path) => {
                let address = SocketAddrUnix::new(path).map_err(io::Error::from);
                let from = (AddressFamily::UNIX, None);
                // A full backlog is an error here, not something to wait for.
                let socket = address.and_then(|address| self.open(from, &address, deadline));
                (socket.map_err(|error| self.failure(error, ConnectError::Io))?, None)
            }
            Address::Tcp { host, port, tls } => {
                (self.connect(host, *port, deadline)?, tls.then_some(host))
            }
        };
        let tls = tls_host.map(|host| self.handshake(&mut socket, host)).transpose()?;
        Ok(Wire { socket, tls, buffers: LazyBuffers::new(INPUT_BUFFER, OUTPUT_BUFFER) })
    }

    fn connect(&self, host: &str, port: u16, until: Instant) -> Result<Socket, ConnectError> {
        let addresses = match host.parse::<IpAddr>() {
            Ok(ip) => vec![ip],
            Err(_) => SystemResolver::new(Arc::clone(&self.stop))
                .resolve(host, until)
                .map_err(|error| ConnectError::Resolve(host.to_owned(), error))?,
        };
        let mut result = Err(io::Error::other("no address"));
        for (tried, ip) in addresses.iter().enumerate() {
            // The remaining addresses share the remaining time: one that drops packets must not use it
            // all.
            let share = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let now = Instant::now();
            let deadline = now + until.saturating_duration_since(now) / share;
            let from = match ip {
                IpAddr::V4(ip) => (AddressFamily::INET, self.source.filter(|_| ip.is_loopback())),
                IpAddr::V6(_) => (AddressFamily::INET6, None),
            };
            result = self.open(from, &SocketAddr::new(*ip, port), deadline).and_then(|socket| {
                // One small request at a time: waiting for more output gains nothing.
                sockopt::set_tcp_nodelay(&socket.fd, true)?;
                Ok(socket)
            });
            if result.is_ok() {
                break;
            }
        }
        result.map_err(|error| self.failure(error, ConnectError::Io))
    }

    fn open(
        &self,
        (family, source): (AddressFamily, Option<Ipv4Addr>),
        address: &impl SocketAddrArg,
        deadline: Instant,
    ) -> io::Result<Socket> {
        // CLOEXEC: nginx executes its new binary on upgrade.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(family, SocketType::STREAM, flags, None)?;
        let socket = Socket { fd, stop: Arc::clone(&self.stop), deadline: Some(deadline) };
        if let Some(source) = source {
            // If the address doesn't exist, the system chooses one.
            let _ = bind(&socket.fd, &SocketAddr::from((source, 0)));
        }
        match connect(&socket.fd, address) {
            Err(Errno::INPROGRESS | Errno::INTR) => {
                socket.wait(PollFlags::OUT)?;
                sockopt::socket_error(&socket.fd)??;
            }
            connected => connected?,
        }
        *self.last.lock() = LastDial { at: Some(Instant::now()), was_cut: false };
        Ok(socket)
    }

    fn handshake(
        &self,
        socket: &mut Socket,
        host: &str,
    ) -> Result<Box<ClientConnection>, ConnectError> {
        let tls = |error: &dyn fmt::Display| ConnectError::Tls(error.to_string());
        let config = self.tls.config().map_err(|error| tls(&error))?;
        let name = self.tls.name_for(host).map_err(|error| tls(&error))?;
        let mut session = ClientConnection::new(config, name).map_err(|error| tls(&error))?;
        while session.is_handshaking() {
            session.complete_io(socket).map_err(|error| {
                let is_end = error.kind() == io::ErrorKind::UnexpectedEof || is_reset(&error);
                self.last.lock().was_cut = is_end;
                self.failure(error, |error| tls(&error))
            })?;
        }
        Ok(Box::new(session))
    }

    fn failure(
        &self,
        error: io::Error,
        other: impl FnOnce(io::Error) -> ConnectError,
    ) -> ConnectError {
        match error.kind() {
            io::ErrorKind::TimedOut => ConnectError::Timeout(self.timeout),
            _ => other(error),
        }
    }
}

/// Whether the other side has reset the connection.
pub(crate) fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// A connected descriptor.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    stop: Arc<Stop>,
    deadline: Option<Instant>,
}

impl Socket {
    fn wait(&self, events: PollFlags) -> io::Result<()> {
        match self.stop.wait(self.fd.as_fd(), events, self.deadline)? {
            Woken::Ready => Ok(()),
            Woken::Stopped => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "stopped")),
            Woken::Timeout => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Runs `attempt` once it does not have to wait.
    fn when_ready(
        &self,
        events: PollFlags,
        mut attempt: impl FnMut(&OwnedFd) -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            self.wait(events)?;
            match attempt(&self.fd) {
                Err(Errno::INTR | Errno::AGAIN) => {}
                done => return Ok(done?),
            }
        }
    }

    /// Open, with nothing to read: ready for the next request.
    fn is_idle(&self) -> bool {
        let mut byte = [0];
        recv(&self.fd, &mut byte, RecvFlags::PEEK).map(|_| ()) == Err(Errno::AGAIN)
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let receive = |fd: &OwnedFd| recv(fd, &mut *buffer, RecvFlags::empty()).map(|r| r.1);
        self.when_ready(PollFlags::IN, receive)
    }
}

impl Write for Socket {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.when_ready(PollFlags::OUT, |fd| send(fd, data, SendFlags::NOSIGNAL))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection to a server, with ureq's buffers.
pub(crate) struct Wire {
    socket: Socket,
    tls: Option<Box<ClientConnection>>,
    buffers: LazyBuffers,
}

trait ReadWrite: Read + Write {}

impl<T: Read + Write> ReadWrite for T {}

impl Wire {
    /// Reads or writes within ureq's time.
    fn within<T>(
        &mut self,
        timeout: NextTimeout,
        run: impl FnOnce(&mut dyn ReadWrite, &mut LazyBuffers) -> io::Result<T>,
    ) -> Result<T, ureq::Error> {
        let after = timeout.after;
        let has_end = !after.is_not_happening();
        self.socket.deadline = Instant::now().checked_add(*after).filter(|_| has_end);
        let done = match &mut self.tls {
            None => run(&mut self.socket, &mut self.buffers),
            Some(tls) => {
                run(&mut rustls::Stream::new(&mut **tls, &mut self.socket), &mut self.buffers)
            }
        };
        done.map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
            _ => ureq::Error::Io(error),
        })
    }
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
        self.within(timeout, |stream, buffers| stream.write_all(&buffers.output()[..amount]))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let count =
            self.within(timeout, |stream, buffers| stream.read(buffers.input_append_buf()))?;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        self.socket.is_idle()
    }

    fn is_tls(&self) -> bool {
        self.tls.is_some()
    }
}
