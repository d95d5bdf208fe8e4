//! The address of an instance as Consul has it.

use std::net::IpAddr;

use crate::text::quote;

/// The host of an instance: an IP address without brackets, or a host name.
///
/// # Errors
///
/// It is neither; the text says so.
pub(crate) fn host(address: &str) -> Result<String, String> {
    if address.is_empty() {
        return Err("no address".to_owned());
    }
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(ip.to_string());
    }
    let label = |label: &str| !label.is_empty() && label.len() <= 63 && !label.starts_with('-');
    let name = address.strip_suffix('.').unwrap_or(address);
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if letters && name.len() <= 253 && name.split('.').all(label) {
        Ok(address.to_owned())
    } else {
        Err(format!("invalid address \"{}\"", quote(address)))
    }
}
