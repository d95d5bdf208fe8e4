//! Where a Consul agent listens.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Port of Consul's HTTP API, used by plain `http://host` (as `consul` itself does).
const HTTP_PORT: u16 = 8500;
/// Port of Consul's HTTPS API.
const HTTPS_PORT: u16 = 8501;

/// A parsed `consul_server` URL: `http://host[:port][/prefix]`, `https://…`, `unix:/path`,
/// `unix:///path`, or a bare `host[:port]` as `CONSUL_HTTP_ADDR` allows it.
///
/// The default port is 8500 for http and 8501 for https. IPv6 addresses stand in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    text: String,
    address: Address,
    prefix: String,
}

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP, with TLS if `tls`.
    Tcp {
        /// Host name or IP address, without brackets.
        host: String,
        /// 1–65535.
        port: u16,
        /// The URL said `https`.
        tls: bool,
    },
    /// A unix socket, plain HTTP.
    Unix(PathBuf),
}

/// Why a server URL was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// Nothing there.
    #[error("empty server URL")]
    Empty,
    /// Something else than http, https and unix.
    #[error("unknown scheme \"{0}\", expected http, https or unix")]
    Scheme(String),
    /// No host.
    #[error("no host in the server URL")]
    NoHost,
    /// A character that no host name has, or half a bracket.
    #[error("invalid host \"{0}\"")]
    Host(String),
    /// Not a number from 1 to 65535.
    #[error("invalid port \"{0}\", expected 1-65535")]
    Port(String),
    /// `user:password@`.
    #[error("credentials are not allowed in the server URL, use consul_token")]
    Credentials,
    /// `?…` or `#…`.
    #[error("query and fragment are not allowed in the server URL")]
    Query,
    /// A character that needs escaping in a path prefix.
    #[error("invalid path prefix \"{0}\"")]
    Prefix(String),
    /// `unix:` without an absolute path, or a path longer than a socket address holds.
    #[error("a unix socket needs an absolute path of at most 107 bytes")]
    Socket,
}

impl Server {
    /// How the server is reached.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What stands before `/v1/…`: empty, or a path that starts with `/` and does not end with it.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether requests to it are encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self.address, Address::Tcp { tls: true, .. })
    }

    /// `scheme://host:port` of a request; for a unix socket the host is `localhost`.
    pub fn origin(&self) -> String {
        match &self.address {
            Address::Unix(_) => "http://localhost".to_owned(),
            Address::Tcp { host, port, tls } => {
                let scheme = if *tls { "https" } else { "http" };
                match host.parse::<IpAddr>() {
                    Ok(IpAddr::V6(ip)) => format!("{scheme}://[{ip}]:{port}"),
                    _ => format!("{scheme}://{host}:{port}"),
                }
            }
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Server {
    type Err = ServerError;

    fn from_str(text: &str) -> Result<Self, ServerError> {
        if text.is_empty() {
            return Err(ServerError::Empty);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Server {
                text: text.to_owned(),
                address: Address::Unix(socket_path(path)?),
                prefix: String::new(),
            });
        }
        let (tls, rest) = match text.split_once("://") {
            None => (false, text),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, _)) => {
                return Err(ServerError::Scheme(scheme.escape_debug().to_string()));
            }
        };
        let (authority, path) = match rest.find(['/', '?', '#']) {
            None => (rest, ""),
            Some(end) => rest.split_at(end),
        };
        if path.contains(['?', '#']) {
            return Err(ServerError::Query);
        }
        if authority.contains('@') {
            return Err(ServerError::Credentials);
        }
        let (host, port) = host_and_port(authority)?;
        let port = port.unwrap_or(if tls { HTTPS_PORT } else { HTTP_PORT });
        let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        Ok(Server { text, address: Address::Tcp { host, port, tls }, prefix: prefix(path)? })
    }
}

fn socket_path(path: &str) -> Result<PathBuf, ServerError> {
    let path = path.strip_prefix("//").unwrap_or(path);
    // 107: `sun_path` of Linux without its closing zero.
    let fits = path.len() <= 107 && !path.contains('\0');
    if fits && Path::new(path).is_absolute() && path != "/" {
        Ok(PathBuf::from(path))
    } else {
        Err(ServerError::Socket)
    }
}

fn host_and_port(authority: &str) -> Result<(String, Option<u16>), ServerError> {
    let bad_host = |host: &str| ServerError::Host(host.escape_debug().to_string());
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or_else(|| bad_host(authority))?;
        if !matches!(host.parse(), Ok(IpAddr::V6(_))) {
            return Err(bad_host(host));
        }
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err(bad_host(authority)),
        }
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return Err(ServerError::NoHost);
    }
    let literal = host.parse::<IpAddr>().is_ok();
    if !literal && !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
        return Err(bad_host(host));
    }
    let port = port.map(parse_port).transpose()?;
    Ok((host.to_owned(), port))
}

fn parse_port(text: &str) -> Result<u16, ServerError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ => Err(ServerError::Port(text.escape_debug().to_string())),
    }
}

fn prefix(path: &str) -> Result<String, ServerError> {
    let path = path.trim_end_matches('/');
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:@".contains(&b);
    if path.bytes().all(plain) {
        Ok(path.to_owned())
    } else {
        Err(ServerError::Prefix(path.escape_debug().to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Server {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn accepts_every_form() {
        for (text, origin, prefix) in [
            ("http://127.0.0.1:8500", "http://127.0.0.1:8500", ""),
            ("http://consul", "http://consul:8500", ""),
            ("HTTPS://consul.example", "https://consul.example:8501", ""),
            ("https://c:443/", "https://c:443", ""),
            ("http://c:80/consul/api/", "http://c:80", "/consul/api"),
            ("http://[::1]:8500", "http://[::1]:8500", ""),
            ("[::1]", "http://[::1]:8500", ""),
            ("127.0.0.1:8500", "http://127.0.0.1:8500", ""),
            ("consul_1.local:1", "http://consul_1.local:1", ""),
            ("unix:/run/consul.sock", "http://localhost", ""),
            ("unix:///run/consul.sock", "http://localhost", ""),
        ] {
            let server = parse(text);
            assert_eq!((server.origin().as_str(), server.prefix()), (origin, prefix), "{text}");
        }
    }

    #[test]
    fn gives_the_url_back() {
        for text in ["http://a:1/p", "https://b", "unix:/x", "unix:///x"] {
            assert_eq!(parse(text).to_string(), text);
        }
        assert_eq!(parse("10.0.0.1:8500").to_string(), "http://10.0.0.1:8500");
        assert_eq!(parse("unix:///x").address(), parse("unix:/x").address());
    }

    #[test]
    fn refuses_with_a_clear_text() {
        for (text, error) in [
            ("", "empty server URL"),
            ("ftp://x", "unknown scheme \"ftp\", expected http, https or unix"),
            ("http://", "no host in the server URL"),
            ("http://:8500", "no host in the server URL"),
            ("http://a:0", "invalid port \"0\", expected 1-65535"),
            ("http://a:65536", "invalid port \"65536\", expected 1-65535"),
            ("http://a:+1", "invalid port \"+1\", expected 1-65535"),
            ("http://a:", "invalid port \"\", expected 1-65535"),
            ("::1", "no host in the server URL"),
            ("http://[::1", "invalid host \"[::1\""),
            ("http://[::1]x", "invalid host \"[::1]x\""),
            ("http://[10.0.0.1]", "invalid host \"10.0.0.1\""),
            ("http://a b", "invalid host \"a b\""),
            ("http://a\n", "invalid host \"a\\n\""),
            ("http://u:p@a", "credentials are not allowed in the server URL, use consul_token"),
            ("http://a/?token=x", "query and fragment are not allowed in the server URL"),
            ("http://a?x", "query and fragment are not allowed in the server URL"),
            ("http://a/ä", "invalid path prefix \"/ä\""),
            ("unix:relative", "a unix socket needs an absolute path of at most 107 bytes"),
            ("unix:", "a unix socket needs an absolute path of at most 107 bytes"),
        ] {
            assert_eq!(text.parse::<Server>().unwrap_err().to_string(), error, "{text}");
        }
    }
}
