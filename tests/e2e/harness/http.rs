//! The client of the tests: one connection, kept alive, and nothing done behind their back.

use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::wire::{self, Head};

/// Longest any answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(20);

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Status line and headers.
    pub head: Head,
    /// The body, as text.
    pub body: String,
}

impl Response {
    /// Value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// The body without its last line feed if the status is 200, else the status in digits.
    pub fn outcome(&self) -> String {
        if self.status == 200 { self.body.trim().to_owned() } else { self.status.to_string() }
    }
}

/// A connection that sends one request after the other.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
    /// The last request was a HEAD: its answer has no body.
    is_head: bool,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// As `TcpStream::connect_timeout`.
    pub fn open(address: SocketAddr) -> io::Result<Connection> {
        Connection::over(TcpStream::connect_timeout(&address, TIMEOUT)?)
    }

    /// Takes a connection.
    ///
    /// # Errors
    /// Whatever the socket reports.
    pub fn over(stream: TcpStream) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Connection { reader: BufReader::new(stream), is_head: false })
    }

    /// Sends a GET and reads the answer.
    ///
    /// # Errors
    /// As [`Connection::request`].
    pub fn get(&mut self, path: &str) -> io::Result<Response> {
        self.request("GET", path, &[], b"")
    }

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// Whatever the socket reports; `UnexpectedEof` if the peer closed instead of answering.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        self.send(method, path, headers, body)?;
        self.receive()
    }

    /// Sends a request only.
    ///
    /// # Errors
    /// Whatever the socket reports.
    pub fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<()> {
        self.is_head = method == "HEAD";
        let mut message = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
        for (name, value) in headers {
            write!(message, "{name}: {value}\r\n")?;
        }
        if !body.is_empty() || method == "POST" || method == "PUT" {
            write!(message, "Content-Length: {}\r\n", body.len())?;
        }
        message.extend_from_slice(b"\r\n");
        message.extend_from_slice(body);
        self.stream().write_all(&message)
    }

    /// Reads the answer to a request sent before.
    ///
    /// # Errors
    /// Whatever the socket reports; `UnexpectedEof` if the peer closed instead of answering.
    pub fn receive(&mut self) -> io::Result<Response> {
        let head = wire::read_head(&mut self.reader)?
            .ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let status = head.word(1).parse().unwrap_or(0);
        let has_body = status >= 200 && status != 204 && status != 304 && !self.is_head;
        let body =
            if has_body { wire::read_body(&mut self.reader, &head, true)? } else { Vec::new() };
        Ok(Response { status, head, body: String::from_utf8_lossy(&body).into_owned() })
    }

    /// The socket, for what comes after an upgrade.
    pub fn stream(&mut self) -> &mut TcpStream {
        self.reader.get_mut()
    }

    /// Reader of what comes after an upgrade.
    pub fn reader(&mut self) -> &mut BufReader<TcpStream> {
        &mut self.reader
    }
}

/// One GET over a connection of its own.
///
/// # Errors
/// As [`Connection::request`].
pub fn get(address: SocketAddr, path: &str) -> io::Result<Response> {
    request(address, "GET", path, &[], b"")
}

/// One request over a connection of its own.
///
/// # Errors
/// As [`Connection::request`].
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Response> {
    let mut all = vec![("Connection", "close")];
    all.extend_from_slice(headers);
    Connection::open(address)?.request(method, path, &all, body)
}
