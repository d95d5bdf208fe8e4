//! A client's connection, and the one to the Consul behind that its requests go over.

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Socket, Type};

use super::rules::{self, Answer, Request, dress};
use super::{Seen, Shared};
use crate::wire;

/// Longest connecting, and reading the rest of an answer that has begun, may take.
const PATIENCE: Duration = Duration::from_secs(20);

type Upstream = BufReader<TcpStream>;

/// Serves a client until either side goes away.
pub(super) fn serve(shared: &Shared, client: TcpStream, woken: UnixStream) -> io::Result<()> {
    let client = BufReader::new(client);
    // It counts among the connections that Consul limits from the start.
    let source = client.get_ref().peer_addr()?.ip();
    let upstream = Some(connect(shared.target, source)?);
    let mut connection = Connection { shared, client, source, woken, upstream, breaks: 0 };
    while let Some(request) = connection.next_request()? {
        let Some(answer) = connection.answer(&request)? else { return Ok(()) };
        connection.client.get_mut().write_all(&answer.to_bytes())?;
        if answer.head.closes() || request.head.closes() {
            return Ok(());
        }
    }
    Ok(())
}

/// The answer to a request as if it did not block, over a connection of its own.
pub(super) fn fetch(target: SocketAddr, source: IpAddr, request: &Request) -> io::Result<Answer> {
    let mut upstream = connect(target, source)?;
    forward(&mut upstream, request, &request.unblocked())?;
    receive(&mut upstream, request)
}

struct Connection<'a> {
    shared: &'a Shared,
    client: BufReader<TcpStream>,
    /// The client's address, which is one of this machine's.
    source: IpAddr,
    woken: UnixStream,
    upstream: Option<Upstream>,
    /// How often all streams had broken when the request came.
    breaks: usize,
}

/// What a wait ended by.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    client: bool,
    upstream: bool,
}

impl Connection<'_> {
    /// The next request; `None` once either side is gone, or the connection has been idle.
    fn next_request(&mut self) -> io::Result<Option<Request>> {
        let begun = Instant::now();
        while self.client.buffer().is_empty() {
            let end = self.shared.state().quirks.idle.map(|idle| begun + idle);
            let ready = self.wait(true, self.upstream.is_some(), end)?;
            if ready.client {
                break;
            }
            if ready.upstream || end.is_some_and(|end| Instant::now() >= end) {
                return Ok(None);
            }
        }
        let Some(head) = wire::read_head(&mut self.client)? else { return Ok(None) };
        let body = wire::read_body(&mut self.client, &head, false)?;
        let mut state = self.shared.state();
        let request = Request::new(head, body, state.quirks.streaming);
        self.breaks = state.breaks;
        state.seen.push(Seen {
            target: request.target().to_owned(),
            index: request.index,
            streamed: request.streamed,
            at: Instant::now(),
        });
        if request.streamed {
            state.views.insert(request.view(), request.clone());
        }
        Ok(Some(request))
    }

    /// The answer to the client; `None` if the connection is to be closed instead.
    fn answer(&mut self, request: &Request) -> io::Result<Option<Answer>> {
        let begun = Instant::now();
        let quirks = self.shared.state().quirks.clone();
        let refused = match (quirks.refuse, quirks.stream_error) {
            (Some(429), _) => Some(Answer::error(429, "Too Many Requests", "")),
            (Some(status), _) => Some(Answer::error(status, "Service Unavailable", "")),
            (None, Some(text)) if request.streamed => {
                let text = format!("rpc error: code = Unknown desc = {text}");
                Some(Answer::error(500, "Internal Server Error", &text))
            }
            _ => None,
        };
        let answer = match refused {
            Some(answer) => Some(answer),
            None => self.blocking(request, begun)?,
        };
        let quirks = self.shared.state().quirks.clone();
        let late = quirks.write_timeout.is_some_and(|timeout| begun.elapsed() > timeout);
        Ok(answer.filter(|_| !late).map(|mut answer| {
            dress(&mut answer, request, &quirks);
            answer
        }))
    }

    /// What Consul answers, or the view; `None` if the client is gone, or to be cut off.
    fn blocking(&mut self, request: &Request, begun: Instant) -> io::Result<Option<Answer>> {
        // A streamed wait ends when it says; the Consul behind would add up to a sixteenth.
        let expiry = (request.streamed && request.index.is_some()).then(|| begun + request.wait);
        let expired = || expiry.is_some_and(|expiry| Instant::now() >= expiry);
        let (mut pending, mut silent) = (false, true);
        loop {
            if request.streamed && self.shared.state().breaks != self.breaks {
                if pending {
                    // What was asked goes on unheard.
                    self.upstream = None;
                }
                return Ok(Some(broken()));
            }
            let frozen = self.frozen(request)?;
            match frozen {
                Some(view)
                    if request.index.is_none() || view.index() > request.index || expired() =>
                {
                    return Ok(Some(view));
                }
                // What was asked goes on unheard.
                Some(_) if pending => (self.upstream, pending) = (None, false),
                Some(_) => {}
                None if expired() => {
                    if let Some(answer) = self.expired(request)? {
                        return Ok(Some(answer));
                    }
                }
                None if !pending => {
                    self.ask(request)?;
                    pending = true;
                }
                None => {}
            }
            let cut = self.shared.state().quirks.cut.map(|cut| begun + cut);
            let end = [expiry, cut].into_iter().flatten().min();
            let ready = self.wait(silent, pending, end)?;
            if ready.client && self.is_gone() {
                return Ok(None);
            }
            // What it has sent ahead is not looked at before this is answered.
            silent &= !ready.client;
            if ready.upstream {
                pending = false;
                if let Some(answer) = self.moving(request)? {
                    return Ok(Some(answer));
                }
            }
            if cut.is_some_and(|cut| Instant::now() >= cut) {
                return Ok(None);
            }
        }
    }

    /// Whether the client has closed its connection.
    fn is_gone(&self) -> bool {
        !matches!(self.client.get_ref().peek(&mut [0]), Ok(1..))
    }

    /// The view when a streamed wait has ended.
    fn expired(&mut self, request: &Request) -> io::Result<Option<Answer>> {
        let upstream = self.upstream.insert(connect(self.shared.target, self.source)?);
        forward(upstream, request, &request.unblocked())?;
        self.moving(request)
    }

    /// The answer of the Consul behind, unless the view was frozen before it was read.
    fn moving(&mut self, request: &Request) -> io::Result<Option<Answer>> {
        let Some(upstream) = &mut self.upstream else { return Ok(None) };
        let answer = receive(upstream, request)?;
        let is_frozen = request.streamed && self.shared.state().frozen.is_some();
        Ok((!is_frozen).then_some(answer))
    }

    /// The frozen view of a streamed query.
    fn frozen(&self, request: &Request) -> io::Result<Option<Answer>> {
        let view = request.view();
        match &self.shared.state().frozen {
            Some(views) if request.streamed => {
                if let Some(answer) = views.get(&view) {
                    return Ok(Some(answer.clone()));
                }
            }
            _ => return Ok(None),
        }
        let answer = fetch(self.shared.target, self.source, request)?;
        let mut state = self.shared.state();
        let first = state.frozen.as_mut().map(|views| views.entry(view).or_insert(answer).clone());
        Ok(first)
    }

    /// Sends a request on.
    fn ask(&mut self, request: &Request) -> io::Result<()> {
        let upstream = match &mut self.upstream {
            Some(upstream) => upstream,
            none => none.insert(connect(self.shared.target, self.source)?),
        };
        forward(upstream, request, &request.forwarded())
    }

    /// Waits for either side, for a change of what is to be done, or until `end`.
    fn wait(&mut self, client: bool, upstream: bool, end: Option<Instant>) -> io::Result<Ready> {
        let mut fds = vec![PollFd::new(&self.woken, PollFlags::IN)];
        if client {
            fds.push(PollFd::from_borrowed_fd(self.client.get_ref().as_fd(), PollFlags::IN));
        }
        if let (true, Some(upstream)) = (upstream, &self.upstream) {
            fds.push(PollFd::from_borrowed_fd(upstream.get_ref().as_fd(), PollFlags::IN));
        }
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, left.as_ref()) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        let is_ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if is_ready[0] && matches!(self.woken.read(&mut [0; 64]), Ok(0)) {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        let at = |n: usize| is_ready.get(n).copied().unwrap_or_default();
        let after = 1 + usize::from(client);
        Ok(Ready { client: client && at(1), upstream: upstream && at(after) })
    }
}

fn broken() -> Answer {
    let text = "rpc error: code = Unavailable desc = all SubConns are in TransientFailure, latest \
                connection error: connection closed";
    Answer::error(500, "Internal Server Error", text)
}

/// Connects from the client's address: Consul limits the connections of each.
fn connect(target: SocketAddr, source: IpAddr) -> io::Result<Upstream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&target.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

fn forward(upstream: &mut Upstream, request: &Request, target: &str) -> io::Result<()> {
    let mut message = format!("{} {target} HTTP/1.1\r\n", request.head.word(0)).into_bytes();
    for (name, value) in &request.head.headers {
        if !rules::is_framing(name) {
            write!(message, "{name}: {value}\r\n")?;
        }
    }
    if !request.body.is_empty() || request.head.word(0) == "PUT" {
        write!(message, "Content-Length: {}\r\n", request.body.len())?;
    }
    message.extend_from_slice(b"\r\n");
    message.extend_from_slice(&request.body);
    upstream.get_mut().write_all(&message)
}

fn receive(upstream: &mut Upstream, request: &Request) -> io::Result<Answer> {
    upstream.get_ref().set_read_timeout(Some(PATIENCE))?;
    let head = wire::read_head(upstream)?.ok_or(io::Error::from(ErrorKind::UnexpectedEof))?;
    let has_body = request.head.word(0) != "HEAD" && !matches!(head.word(1), "204" | "304");
    let body = if has_body { wire::read_body(upstream, &head, true)? } else { Vec::new() };
    Ok(Answer { head, body })
}
