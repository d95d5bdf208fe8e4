//! The address of an instance as Consul has it.

use std::net::{IpAddr, Ipv6Addr};

use super::flaw::flaw;
use crate::text::quote;

/// The host of an instance: an IP address as the kernel sees it, without brackets, or a host name
/// that the system's resolver looks up.
///
/// # Errors
///
/// It is neither, or no single host has the address; the text says so.
pub(crate) fn host(address: &str) -> Result<String, String> {
    if address.is_empty() {
        return Err("no address".to_owned());
    }
    if let Some(ip) = ip(address) {
        let ip = ip.to_canonical();
        return match flaw(ip) {
            Some(flaw) => Err(format!("address {ip} is {flaw}")),
            None => Ok(ip.to_string()),
        };
    }
    if is_name(address) {
        Ok(address.to_owned())
    } else {
        Err(format!("invalid address \"{}\"", quote(address)))
    }
}

/// What `inet_pton()` takes, IPv6 also in brackets.
fn ip(address: &str) -> Option<IpAddr> {
    match address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(bare) => bare.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => address.parse().ok(),
    }
}

/// Whether it is a host name. One whose last label is a number is none: the resolver takes it for an
/// IPv4 address (`1`, `010.0.0.1`, `0x7f000001`), as browsers do
/// (<https://url.spec.whatwg.org/#ends-in-a-number-checker>).
fn is_name(address: &str) -> bool {
    let label = |label: &str| !label.is_empty() && label.len() <= 63 && !label.starts_with('-');
    let name = address.strip_suffix('.').unwrap_or(address);
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let last = name.rsplit('.').next().unwrap_or_default();
    letters && name.len() <= 253 && name.split('.').all(label) && !is_number(last)
}

fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    hex.map_or_else(
        || label.bytes().all(|b| b.is_ascii_digit()),
        |digits| digits.bytes().all(|b| b.is_ascii_hexdigit()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_inet_pton_takes_is_an_address_and_a_number_is_no_name() {
        for (address, expected) in [
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("[::1]", "::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("[::ffff:a00:1]", "10.0.0.1"),
            ("0x7f.example", "0x7f.example"),
            ("1.example.", "1.example."),
            ("0xfg", "0xfg"),
        ] {
            assert_eq!(host(address).as_deref(), Ok(expected), "{address}");
        }
        for (address, flaw) in [
            ("0.0.0.0", "address 0.0.0.0 is unspecified"),
            ("::", "address :: is unspecified"),
            ("[::0]", "address :: is unspecified"),
            ("::ffff:0:0", "address 0.0.0.0 is unspecified"),
            ("239.0.0.1", "address 239.0.0.1 is a multicast address"),
            ("ff05::2", "address ff05::2 is a multicast address"),
            ("255.255.255.255", "address 255.255.255.255 is the broadcast address"),
        ] {
            assert_eq!(host(address), Err(flaw.to_owned()), "{address}");
        }
        for number in [
            "0",
            "1",
            "0.0",
            "127.1",
            "0x0",
            "0X7F.1",
            "00.0.0.0",
            "010.0.0.1",
            "0x7f000001",
            "2130706433",
            "017700000001",
            "127.0.0.1.",
            "web.1",
            "0x",
            "256.0.0.1",
            "1.2.3.4.5",
        ] {
            assert_eq!(host(number), Err(format!("invalid address \"{number}\"")), "{number}");
        }
        assert_eq!(host("[10.0.0.1]"), Err("invalid address \"[10.0.0.1]\"".to_owned()));
    }
}
