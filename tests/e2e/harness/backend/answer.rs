//! A backend's answers.

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::{Manner, Shared, lock};
use crate::wire::{self, Head};

/// Between two looks at whether the client is still there.
const LOOK: Duration = Duration::from_millis(25);

pub(super) fn serve<S: Read + Write>(
    shared: &Shared,
    socket: &TcpStream,
    stream: S,
) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut answered = false;
    while let Some(head) = wire::read_request(&mut reader)? {
        if answered && *lock(&shared.manner) == Manner::Stale {
            return Ok(());
        }
        answered = true;
        wire::read_body(&mut reader, &head, false)?;
        let releases = shared.releases.load(Ordering::SeqCst);
        let busy = shared.busy.fetch_add(1, Ordering::SeqCst) + 1;
        shared.most_busy.fetch_max(busy, Ordering::SeqCst);
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let answer = Answer { shared, client: Client(socket), head: &head, releases };
        let goes_on = answer.send(reader.get_mut());
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

/// Who sent the request.
struct Client<'a>(&'a TcpStream);

impl Client<'_> {
    /// Waits while `condition` holds; an error if the client goes meanwhile.
    fn wait_while(&self, mut condition: impl FnMut() -> bool) -> io::Result<()> {
        self.0.set_read_timeout(Some(LOOK))?;
        while condition() {
            match self.0.peek(&mut [0]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                // More that it has to say, for later.
                Ok(_) => thread::sleep(LOOK),
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.0.set_read_timeout(None)
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// An answer to be sent.
struct Answer<'a> {
    shared: &'a Shared,
    client: Client<'a>,
    head: &'a Head,
    /// How often the backend had been released when the request came.
    releases: usize,
}

impl Answer<'_> {
    /// Sends it as the manner in force says; tells whether the connection goes on.
    fn send(&self, stream: &mut impl Write) -> io::Result<bool> {
        let manner = behave(self.shared);
        match manner {
            Manner::Reset | Manner::ResetAfter(_) => {
                if let Manner::ResetAfter(delay) = manner {
                    thread::sleep(delay);
                }
                SockRef::from(self.client.0).set_linger(Some(Duration::ZERO))?;
                Ok(false)
            }
            Manner::Silent => {
                self.client.wait_while(|| self.manner() == Manner::Silent)?;
                self.send(stream)
            }
            Manner::SlowHeader => self.trickle(stream, b"HTTP/1.1 200 OK\r\nX-Slow: "),
            Manner::SlowBody => {
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")?;
                self.trickle(stream, b"")
            }
            Manner::Slow(delay) => {
                thread::sleep(delay);
                self.say(stream, 200)
            }
            Manner::Status(status) => self.say(stream, status),
            Manner::Well | Manner::Hold | Manner::Stale => self.say(stream, 200),
        }
    }

    fn manner(&self) -> Manner {
        *lock(&self.shared.manner)
    }

    /// Sends this and then `x`, a byte a second, until the manner changes.
    fn trickle(&self, stream: &mut impl Write, first: &[u8]) -> io::Result<bool> {
        let manner = self.manner();
        for &byte in first.iter().chain(std::iter::repeat(&b'x')) {
            stream.write_all(&[byte])?;
            stream.flush()?;
            let sent = Instant::now();
            self.client.wait_while(|| {
                self.manner() == manner && sent.elapsed() < Duration::from_secs(1)
            })?;
            if self.manner() != manner {
                break;
            }
        }
        Ok(false)
    }

    /// Answers with what the path asks for.
    fn say(&self, stream: &mut impl Write, status: u16) -> io::Result<bool> {
        let (name, path) = (&self.shared.name, self.head.word(1).split('?').next().unwrap_or(""));
        if let Some(protocol) = self.head.header("upgrade") {
            write!(stream, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: {protocol}\r\n")?;
            write!(stream, "Connection: Upgrade\r\nX-Backend: {name}\r\n\r\n")?;
            stream.flush()?;
            return Ok(true);
        }
        let is_held = || self.shared.releases.load(Ordering::SeqCst) == self.releases;
        match path {
            "/silent" => self.client.wait_while(is_held)?,
            "/stalled" | "/endless" => {
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nX-Backend: {name}\r\nConnection: close\r\n\r\n"
                )?;
                stream.flush()?;
                self.client.wait_while(|| {
                    is_held() && (path == "/stalled" || stream.write_all(b"more\n").is_ok())
                })?;
                return Ok(false);
            }
            _ => {}
        }
        let status = number(path, "/status/").unwrap_or(usize::from(status));
        let body = body(name, path);
        let connection = if self.head.closes() { "close" } else { "keep-alive" };
        let redirect = path
            .strip_prefix("/accel")
            .map_or_else(String::new, |to| format!("X-Accel-Redirect: {to}\r\n"));
        let has_body = status != 304 && status != 204;
        let length =
            if has_body { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
        let body = if has_body && self.head.word(0) != "HEAD" { &body } else { "" };
        let message = format!(
            "HTTP/1.1 {status} Said\r\n{length}{redirect}Connection: {connection}\r\n\
             X-Backend: {name}\r\n\r\n{body}"
        );
        stream.write_all(message.as_bytes())?;
        stream.flush()?;
        Ok(!self.head.closes())
    }
}

/// The manner in force, once nothing is held.
fn behave(shared: &Shared) -> Manner {
    let mut manner = lock(&shared.manner);
    while *manner == Manner::Hold {
        manner = shared.released.wait(manner).unwrap_or_else(PoisonError::into_inner);
    }
    *manner
}

/// The number after a path's prefix.
fn number(path: &str, prefix: &str) -> Option<usize> {
    path.strip_prefix(prefix).and_then(|n| n.parse().ok())
}

fn body(name: &str, path: &str) -> String {
    if let Some(milliseconds) = number(path, "/wait/") {
        thread::sleep(Duration::from_millis(milliseconds as u64));
    }
    number(path, "/size/").map_or_else(|| format!("{name}\n"), |size| "x".repeat(size))
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
