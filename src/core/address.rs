//! Addresses of instances, which whoever registers an instance chooses: what is one, and which are
//! used.

mod family;
mod flaw;
mod host;
mod listeners;
mod text;

use std::net::IpAddr;
use std::str::FromStr;

pub(crate) use family::is_supported;
use flaw::flaw;
pub(crate) use host::host;
pub use listeners::Listeners;
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
    /// Why an address is not used: what it is, or which directive excludes it. `None` if it is.
    pub fn refusal(&self, address: IpAddr) -> Option<&'static str> {
        let address = address.to_canonical();
        let is_in = |list: &[IpNet]| list.iter().any(|net| net.contains(&address));
        if let Some(flaw) = flaw(address) {
            Some(flaw)
        } else if is_in(&self.deny) {
            Some("excluded by consul_deny")
        } else if !self.allow.is_empty() && !is_in(&self.allow) {
            Some("excluded by consul_allow")
        } else {
            None
        }
    }

    /// Whether nothing is excluded.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
}

/// An address, or a network in CIDR notation, in which bits beyond the prefix have no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Those bits are cleared.
    pub net: IpNet,
    /// Some of them were set.
    pub has_host_bits: bool,
}

impl FromStr for Network {
    type Err = ipnet::AddrParseError;

    fn from_str(text: &str) -> Result<Network, ipnet::AddrParseError> {
        let written = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => text.parse::<IpNet>()?,
        };
        let net = written.trunc();
        Ok(Network { net: canonical(net), has_host_bits: net != written })
    }
}

fn canonical(net: IpNet) -> IpNet {
    match net {
        // Addresses are compared in their shortest form.
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(v4) => Ipv4Net::new(v4, v6.prefix_len() - 96).map_or(net, IpNet::V4),
            None => net,
        },
        _ => net,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    fn filter(allow: &[&str], deny: &[&str]) -> AddressFilter {
        let nets = |list: &[&str]| list.iter().map(|net| network(net).net).collect();
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
        assert_eq!(both.refusal([10, 1, 0, 1].into()), Some("excluded by consul_deny"));
        assert_eq!(both.refusal([11, 1, 0, 1].into()), Some("excluded by consul_allow"));
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
        assert_eq!(network("10.1.2.3/8").net, network("10.0.0.0/8").net);
        assert_eq!(network("10.1.2.3"), network("10.1.2.3/32"));
        for (text, has_host_bits) in [
            ("10.1.2.3/8", true),
            ("10.0.0.0/8", false),
            ("10.1.2.3", false),
            ("fd00::1/8", true),
            ("::ffff:10.0.0.1/104", true),
        ] {
            assert_eq!(network(text).has_host_bits, has_host_bits, "{text}");
        }
        for bad in
            ["", "all", "10.0.0.0/33", "10.0.0", "localhost", "::/129", "10.0.0.0/", "010.0.0.1"]
        {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_that_no_single_host_has_is_refused() {
        let all = AddressFilter::default();
        for (address, flaw) in [
            ("0.0.0.0", Some("unspecified")),
            ("::", Some("unspecified")),
            ("::ffff:0.0.0.0", Some("unspecified")),
            ("224.0.0.1", Some("a multicast address")),
            ("::ffff:239.1.2.3", Some("a multicast address")),
            ("ff02::1", Some("a multicast address")),
            ("255.255.255.255", Some("the broadcast address")),
            ("::ffff:255.255.255.255", Some("the broadcast address")),
            ("0.0.0.1", None),
            ("127.0.0.1", None),
            ("::1", None),
        ] {
            assert_eq!(all.refusal(address.parse().unwrap()), flaw, "{address}");
        }
    }
}
