//! Addresses that can't be connected to.

use std::net::{IpAddr, Ipv4Addr};

use super::family::is_supported;

/// What is wrong with an address that no single host has (`0.0.0.0` and `::`, which the kernel takes
/// for this host, multicast and broadcast addresses) or that this system can't connect to. `None` if
/// it may be connected to.
///
/// An IPv4-mapped IPv6 address (`::ffff:10.0.0.1`) is judged as IPv4, here and in a filter.
pub(super) fn flaw(address: IpAddr) -> Option<&'static str> {
    let address = address.to_canonical();
    if address.is_unspecified() {
        Some("unspecified")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("the broadcast address")
    } else if !is_supported(address) {
        Some("an IPv6 address, and this system has no IPv6")
    } else {
        None
    }
}
