//! Filters the addresses of instances: whoever can register an instance chooses its address.

mod host;
mod text;

use std::net::IpAddr;

pub(crate) use host::host;
pub use text::AddressText;

pub use ipnet::IpNet;
use ipnet::Ipv4Net;

/// `consul_allow` and `consul_deny`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AddressFilter {
    /// If not empty, only addresses in one of these are used.
    pub allow: Vec<IpNet>,
    /// Addresses in one of these are never used.
    pub deny: Vec<IpNet>,
}

impl AddressFilter {
    /// Which directive excludes an address; `None` if it may be used.
    ///
    /// An IPv4-mapped IPv6 address (`::ffff:10.0.0.1`) is matched as IPv4.
    pub fn refusal(&self, address: IpAddr) -> Option<&'static str> {
        let address = address.to_canonical();
        let is_in = |list: &[IpNet]| list.iter().any(|net| net.contains(&address));
        if is_in(&self.deny) {
            Some("by consul_deny")
        } else if !self.allow.is_empty() && !is_in(&self.allow) {
            Some("by consul_allow")
        } else {
            None
        }
    }

    /// Whether nothing is excluded.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
}

/// An address, or a network in CIDR notation; bits beyond the prefix are cleared.
pub fn network(text: &str) -> Option<IpNet> {
    let net = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().ok()?.trunc(),
    };
    match net {
        // Addresses are compared in their shortest form.
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(v4) => Ipv4Net::new(v4, v6.prefix_len() - 96).ok().map(IpNet::V4),
            None => Some(net),
        },
        _ => Some(net),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(allow: &[&str], deny: &[&str]) -> AddressFilter {
        let nets = |list: &[&str]| list.iter().map(|net| network(net).unwrap()).collect();
        AddressFilter { allow: nets(allow), deny: nets(deny) }
    }

    fn permits(filter: &AddressFilter, address: &str) -> bool {
        filter.refusal(address.parse().unwrap()).is_none()
    }

    #[test]
    fn deny_wins_over_allow_and_an_allow_excludes_the_rest() {
        let all = AddressFilter::default();
        assert!(all.is_empty() && permits(&all, "169.254.169.254"));
        let deny = filter(&[], &["169.254.0.0/16", "127.0.0.1", "::1"]);
        for (address, good) in
            [("169.254.169.254", false), ("127.0.0.1", false), ("127.0.0.2", true), ("::1", false)]
        {
            assert_eq!(permits(&deny, address), good, "{address}");
        }
        let both = filter(&["10.0.0.0/8", "fd00::/8"], &["10.1.0.0/16"]);
        for (address, good) in
            [("10.2.0.1", true), ("10.1.0.1", false), ("11.0.0.1", false), ("fd01::1", true)]
        {
            assert_eq!(permits(&both, address), good, "{address}");
        }
        assert_eq!(both.refusal([10, 1, 0, 1].into()), Some("by consul_deny"));
        assert_eq!(both.refusal([11, 1, 0, 1].into()), Some("by consul_allow"));
    }

    #[test]
    fn an_ipv4_address_in_ipv6_clothes_is_still_one() {
        let deny = filter(&[], &["10.0.0.0/8"]);
        assert!(!permits(&deny, "::ffff:10.0.0.5"));
        assert!(permits(&deny, "::ffff:11.0.0.5"));
        assert!(!permits(&filter(&[], &["::ffff:10.0.0.0/104"]), "10.0.0.5"));
        assert!(!permits(&filter(&[], &["::ffff:10.0.0.5"]), "10.0.0.5"));
    }

    #[test]
    fn a_network_is_an_address_or_cidr() {
        assert_eq!(network("10.1.2.3/8"), network("10.0.0.0/8"));
        assert_eq!(network("10.1.2.3"), network("10.1.2.3/32"));
        for bad in ["", "all", "10.0.0.0/33", "10.0.0", "localhost", "::/129", "10.0.0.0/"] {
            assert_eq!(network(bad), None, "{bad}");
        }
    }
}
