//! Which kinds of addresses this process can connect to.

use std::net::IpAddr;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, socket};

/// Whether this process can make a socket for the address. A kernel without IPv6 makes none for it,
/// and neither does systemd's `RestrictAddressFamilies`: nginx answers a request to such a peer with
/// 500, without asking another one.
pub(crate) fn is_supported(address: IpAddr) -> bool {
    static IPV6: OnceLock<bool> = OnceLock::new();
    let has_ipv6 = || socket(AddressFamily::INET6, SocketType::DGRAM, None);
    address.is_ipv4() || *IPV6.get_or_init(|| has_ipv6().err() != Some(Errno::AFNOSUPPORT))
}
