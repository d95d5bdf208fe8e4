//! The Consul under test: which program, and what its version is known to differ in.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// The program: `CONSUL_BINARY`, else `consul` on `PATH`.
pub fn binary() -> OsString {
    std::env::var_os("CONSUL_BINARY").unwrap_or("consul".into())
}

/// Its version, as `(1, 8, 7)`.
///
/// # Panics
/// If it can't be run or says none.
pub fn version() -> (u32, u32, u32) {
    static VERSION: OnceLock<(u32, u32, u32)> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let output = Command::new(binary()).arg("version").output().expect("the consul program");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        parse(&text).unwrap_or_else(|| panic!("a version in {text:?}"))
    })
}

fn parse(text: &str) -> Option<(u32, u32, u32)> {
    let number = text.lines().next()?.strip_prefix("Consul v")?;
    let mut parts = number.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let mut next = || parts.next()?.ok();
    Some((next()?, next()?, next()?))
}

/// Whether it streams health queries that block, unless told otherwise.
pub fn streams() -> bool {
    version() >= (1, 10, 1)
}

/// What is logged of a connection beyond `http_max_conns_per_client`.
pub fn said_of_too_many_connections() -> &'static str {
    if version() >= (1, 9, 0) { "HTTP 429" } else { "closed without an answer" }
}

/// Configuration that has agents not stream.
pub(crate) fn without_streaming() -> &'static str {
    if version() >= (1, 9, 0) { "use_streaming_backend = false" } else { "" }
}

/// Configuration of the token that may do everything, inside of `tokens`.
pub(crate) fn management_token(token: &str) -> String {
    let name = if version() >= (1, 11, 0) { "initial_management" } else { "master" };
    format!("{name} = \"{token}\"")
}

/// Command line that has agents listen for gRPC on no port.
pub(crate) fn without_grpc() -> &'static [&'static str] {
    if version() >= (1, 14, 0) {
        &["-grpc-port=-1", "-grpc-tls-port=-1"]
    } else {
        &["-grpc-port=-1"]
    }
}

/// Configuration of an HTTPS port with this certificate and key; clients have to have a certificate
/// of `authority`, if one is named.
pub fn https(port: u16, certificate: &Path, key: &Path, authority: Option<&Path>) -> String {
    let mut files =
        format!("cert_file = \"{}\" key_file = \"{}\"", certificate.display(), key.display());
    let is_new = version() >= (1, 12, 0);
    if let Some(authority) = authority {
        let verify = if is_new { "verify_incoming" } else { "verify_incoming_https" };
        files += &format!(" ca_file = \"{}\" {verify} = true", authority.display());
    }
    let files = if is_new { format!("tls {{ https {{ {files} }} }}") } else { files };
    format!("ports {{ https = {port} }} {files}")
}
