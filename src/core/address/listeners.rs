//! Where this nginx listens: an instance there sends requests round in a circle.

use std::net::{IpAddr, SocketAddr, UdpSocket};

/// The addresses that this nginx accepts connections at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners(Vec<SocketAddr>);

impl FromIterator<SocketAddr> for Listeners {
    fn from_iter<I: IntoIterator<Item = SocketAddr>>(addresses: I) -> Listeners {
        Listeners(addresses.into_iter().collect())
    }
}

impl Listeners {
    /// Whether a connection to an address ends at one of them.
    pub fn accept(&self, address: SocketAddr) -> bool {
        let (ip, mut own) =
            (address.ip(), self.0.iter().filter(|own| own.port() == address.port()));
        own.any(|own| own.ip() == ip || (own.ip().is_unspecified() && is_local(ip)))
    }
}

/// Whether an interface of this host has the address.
fn is_local(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_accepts_at_every_address_of_the_host() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let own: Listeners = [at("0.0.0.0:80"), at("127.0.0.1:81")].into_iter().collect();
        for (address, accepts) in [
            ("127.0.0.1:80", true),
            ("127.9.9.9:80", true),
            ("192.0.2.1:80", false),
            ("127.0.0.1:81", true),
            ("127.0.0.2:81", false),
            ("127.0.0.1:82", false),
        ] {
            assert_eq!(own.accept(at(address)), accepts, "{address}");
        }
    }
}
