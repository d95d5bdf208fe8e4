//! Where a Consul agent listens.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use http::Uri;
use http::uri::InvalidUri;

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
    base: String,
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
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No URL at all.
    #[error(transparent)]
    Syntax(#[from] InvalidUri),
    /// Something else than http, https and unix.
    #[error("unknown scheme \"{0}\", expected http, https or unix")]
    Scheme(String),
    /// No host, a character that no host name has, or a port that is not from 1 to 65535.
    #[error("invalid host or port \"{0}\"")]
    Authority(String),
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

    /// What stands before `/v1/…` in the URL of a request; for a unix socket the host is
    /// `localhost`.
    pub fn base(&self) -> &str {
        &self.base
    }
}

/// A URL that may have to be refused, for a message: without what stands before an `@`, and without
/// a query.
pub fn without_credentials(url: &str) -> String {
    let scheme = url.find("://").map_or(0, |at| at + "://".len());
    let (scheme, rest) = url.split_at(scheme);
    let (user, rest) = rest.rsplit_once('@').map_or(("", rest), |(_, host)| ("…@", host));
    let (rest, query) = rest.split_once(['?', '#']).map_or((rest, ""), |(rest, _)| (rest, "?…"));
    format!("{scheme}{user}{rest}{query}")
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Server {
    type Err = ServerError;

    fn from_str(text: &str) -> Result<Self, ServerError> {
        // What can't be parsed may be a part of a password.
        let is_secret = text.contains('@') && !text.starts_with("unix:");
        parse(text).map_err(|error| if is_secret { ServerError::Credentials } else { error })
    }
}

fn parse(text: &str) -> Result<Server, ServerError> {
    if let Some(path) = text.strip_prefix("unix:") {
        let address = Address::Unix(socket_path(path)?);
        return Ok(Server { text: text.into(), address, base: "http://localhost".into() });
    }
    let has_scheme = text.is_empty() || text.contains("://");
    let text = if has_scheme { text.to_owned() } else { format!("http://{text}") };
    let uri: Uri = text.parse()?;
    let (scheme, default_port) = match uri.scheme_str() {
        Some("https") => ("https", HTTPS_PORT),
        Some("http") => ("http", HTTP_PORT),
        other => return Err(ServerError::Scheme(other.unwrap_or_default().to_owned())),
    };
    if uri.query().is_some() || text.contains('#') {
        return Err(ServerError::Query);
    }
    let (host, port) = host_and_port(&uri)?;
    let port = port.unwrap_or(default_port);
    let prefix = uri.path().trim_end_matches('/');
    if !prefix.bytes().all(|b| b.is_ascii_graphic() && b != b'"') {
        return Err(ServerError::Prefix(prefix.to_owned()));
    }
    let base = format!("{scheme}://{host}:{port}{prefix}");
    let host = host.trim_matches(['[', ']']).to_owned();
    Ok(Server { text, address: Address::Tcp { host, port, tls: scheme == "https" }, base })
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

/// The host, an IPv6 address in brackets, and the port, if there is one.
fn host_and_port(uri: &Uri) -> Result<(&str, Option<u16>), ServerError> {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Err(ServerError::Credentials);
    }
    let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16().filter(|port| *port > 0));
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(is_of_name),
    };
    // `Uri` passes over what it can't take for a port.
    let whole = port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    if is_host && authority == whole {
        Ok((host, port))
    } else {
        Err(ServerError::Authority(authority.to_owned()))
    }
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Server {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn accepts_every_form() {
        for (text, base) in [
            ("http://127.0.0.1:8500", "http://127.0.0.1:8500"),
            ("http://consul", "http://consul:8500"),
            ("HTTPS://consul.example", "https://consul.example:8501"),
            ("https://c:443/", "https://c:443"),
            ("http://c:80/consul/api/", "http://c:80/consul/api"),
            ("http://[::1]:8500", "http://[::1]:8500"),
            ("[::1]", "http://[::1]:8500"),
            ("127.0.0.1:8500", "http://127.0.0.1:8500"),
            ("consul_1.local:1", "http://consul_1.local:1"),
            ("unix:/run/consul.sock", "http://localhost"),
            ("unix:///run/consul.sock", "http://localhost"),
        ] {
            assert_eq!(parse(text).base(), base, "{text}");
        }
        let tcp = |host: &str, port, tls| Address::Tcp { host: host.to_owned(), port, tls };
        assert_eq!(parse("https://[::1]/").address(), &tcp("::1", 8501, true));
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
    fn a_url_that_is_refused_is_shown_without_credentials() {
        for (url, shown) in [
            ("http://a:8500/p", "http://a:8500/p"),
            ("a:8500", "a:8500"),
            ("http://u:p@a:8500", "http://…@a:8500"),
            ("u:p@a", "…@a"),
            ("http://u:p/?#w@a/p?token=x", "http://…@a/p?…"),
            ("http://a/?token=x", "http://a/?…"),
            ("http://a/#x", "http://a/?…"),
            ("ftp://u@v@a", "ftp://…@a"),
        ] {
            assert_eq!(without_credentials(url), shown, "{url}");
        }
    }

    #[test]
    fn refuses_with_a_clear_text() {
        for (text, error) in [
            ("", "empty string"),
            ("ftp://x", "unknown scheme \"ftp\", expected http, https or unix"),
            ("http://", "empty string"),
            ("http://:8500", "invalid host or port \":8500\""),
            ("http://a:0", "invalid host or port \"a:0\""),
            ("http://a:65536", "invalid host or port \"a:65536\""),
            ("http://a:+1", "invalid host or port \"a:+1\""),
            ("http://a:", "invalid host or port \"a:\""),
            ("::1", "invalid authority"),
            ("http://[::1", "invalid authority"),
            ("http://[::1]x", "invalid host or port \"[::1]x\""),
            ("http://[10.0.0.1]", "invalid host or port \"[10.0.0.1]\""),
            ("http://a b", "invalid uri character"),
            ("http://a\n", "invalid uri character"),
            ("http://a,b", "invalid host or port \"a,b\""),
            ("http://u:p@a", "credentials are not allowed in the server URL, use consul_token"),
            ("http://u:p/w@a", "credentials are not allowed in the server URL, use consul_token"),
            ("http://u:p w@a", "credentials are not allowed in the server URL, use consul_token"),
            ("unix:a@b", "a unix socket needs an absolute path of at most 107 bytes"),
            ("http://a/?token=x", "query and fragment are not allowed in the server URL"),
            ("http://a?x", "query and fragment are not allowed in the server URL"),
            ("http://a/#x", "query and fragment are not allowed in the server URL"),
            ("http://a/ä", "invalid path prefix \"/ä\""),
            ("unix:relative", "a unix socket needs an absolute path of at most 107 bytes"),
            ("unix:", "a unix socket needs an absolute path of at most 107 bytes"),
        ] {
            assert_eq!(text.parse::<Server>().unwrap_err().to_string(), error, "{text}");
        }
    }
}
