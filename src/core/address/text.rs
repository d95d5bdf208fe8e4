//! How nginx prints an address.

use std::io::Write;
use std::net::SocketAddr;
use std::ops::Deref;

/// The longest: `[`, 39 digits and colons, `%` and 10 digits, `]:65535`.
const MOST: usize = 58;

/// An address with its port, as nginx prints it: `192.0.2.1:80`, `[2001:db8::1]:80`.
#[derive(Clone, Copy, Debug)]
pub struct AddressText {
    bytes: [u8; MOST],
    len: u8,
}

impl AddressText {
    /// The text of that address.
    pub fn new(address: SocketAddr) -> AddressText {
        let mut text = AddressText { bytes: [0; MOST], len: 0 };
        match address {
            // Most addresses are IPv4, and formatting them would take most of the time of some updates.
            SocketAddr::V4(v4) => {
                for (octet, after) in v4.ip().octets().into_iter().zip(*b"...:") {
                    text.push(itoa::Buffer::new().format(octet).as_bytes());
                    text.push(&[after]);
                }
                text.push(itoa::Buffer::new().format(v4.port()).as_bytes());
            }
            SocketAddr::V6(v6) => {
                let mut rest = &mut text.bytes[..];
                // No address is longer.
                let _ = write!(rest, "{v6}");
                text.len = (MOST - rest.len()) as u8;
            }
        }
        text
    }

    fn push(&mut self, part: &[u8]) {
        let at = usize::from(self.len);
        self.bytes[at..at + part.len()].copy_from_slice(part);
        self.len += part.len() as u8;
    }
}

impl Deref for AddressText {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl AsRef<[u8]> for AddressText {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddrV6};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_what_the_standard_library_prints(
            v4: ([u8; 4], u16), ip: u128, flow: u32, scope: u32, port: u16
        ) {
            let full = SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, scope);
            let plain = SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, 0);
            for address in [v4.into(), full.into(), plain.into()] {
                let address: SocketAddr = address;
                let text = AddressText::new(address);
                prop_assert_eq!(text.to_vec(), address.to_string().into_bytes());
            }
        }
    }

    #[test]
    fn the_longest_fits() {
        let address = SocketAddrV6::new(Ipv6Addr::from(u128::MAX), u16::MAX, 0, u32::MAX);
        assert_eq!(AddressText::new(address.into()).len(), MOST);
        assert_eq!(&*AddressText::new(([255; 4], u16::MAX).into()), b"255.255.255.255:65535");
        assert_eq!(&*AddressText::new(([0; 4], 0).into()), b"0.0.0.0:0");
    }
}
