//! HTTP/1.1 messages, as little of it as client, backend and fake Consul need.

use std::io::{self, BufRead, Read};

/// Start line and headers of a message.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// First line, without its end.
    pub start: String,
    /// Names as sent, values trimmed.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// Value of a header, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The `n`-th word of the start line.
    pub fn word(&self, n: usize) -> &str {
        self.start.split(' ').nth(n).unwrap_or_default()
    }

    fn has(&self, name: &str, token: &str) -> bool {
        self.header(name).is_some_and(|v| v.to_ascii_lowercase().contains(token))
    }

    /// Whether the sender ends the connection after this message.
    pub fn closes(&self) -> bool {
        self.has("connection", "close")
    }
}

/// Reads a head; `None` if the peer closed instead.
///
/// # Errors
/// Whatever the reader reports, and `UnexpectedEof` within a head.
pub fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut head = Head::default();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            let empty = head.start.is_empty();
            return if empty { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        let line = line.trim_end();
        if head.start.is_empty() {
            head.start = line.to_owned();
        } else if line.is_empty() {
            return Ok(Some(head));
        } else if let Some((name, value)) = line.split_once(':') {
            head.headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }
}

/// Reads the head of a request in HTTP or uwsgi; `None` if the peer closed instead. One in uwsgi is
/// told as HTTP with `Connection: close`, since the answer's end is that of the connection.
///
/// # Errors
/// As [`read_head`].
pub fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
    // The first byte of a uwsgi packet is its kind: 0 for a request.
    if reader.fill_buf()?.first() != Some(&0) {
        return read_head(reader);
    }
    let mut lead = [0; 4];
    reader.read_exact(&mut lead)?;
    let mut packet = vec![0; usize::from(u16::from_le_bytes([lead[1], lead[2]]))];
    reader.read_exact(&mut packet)?;
    let mut rest = &packet[..];
    let mut next = || -> io::Result<String> {
        let (mut length, mut text) = ([0; 2], Vec::new());
        rest.read_exact(&mut length)?;
        text.resize(u16::from_le_bytes(length).into(), 0);
        rest.read_exact(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let mut head = Head::default();
    let (mut method, mut uri) = ("GET".to_owned(), "/".to_owned());
    head.headers.push(("Connection".to_owned(), "close".to_owned()));
    while let Ok(name) = next() {
        let value = next()?;
        match name.as_str() {
            "REQUEST_METHOD" => method = value,
            "REQUEST_URI" => uri = value,
            "CONTENT_LENGTH" if !value.is_empty() => {
                head.headers.push(("Content-Length".to_owned(), value));
            }
            _ => {}
        }
    }
    head.start = format!("{method} {uri} HTTP/1.1");
    Ok(Some(head))
}

/// Reads the body that `head` announces; `to_end` if one without length lasts until the close.
///
/// # Errors
/// Whatever the reader reports, and a body that ends early.
pub fn read_body(reader: &mut impl BufRead, head: &Head, to_end: bool) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if head.has("transfer-encoding", "chunked") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim().split(';').next().unwrap_or_default(), 16)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "bad chunk"))?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                return Ok(body);
            }
        }
    }
    match head.header("content-length").map(str::parse) {
        Some(Ok(length)) => {
            body.resize(length, 0);
            reader.read_exact(&mut body)?;
        }
        Some(Err(_)) => return Err(io::ErrorKind::InvalidData.into()),
        None if to_end => {
            reader.read_to_end(&mut body)?;
        }
        None => {}
    }
    Ok(body)
}
