//! Where the points of a server are.

use crc32fast::Hasher;

/// Points for each unit of weight.
pub(super) const POINTS: usize = 160;

/// A point of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) hash: u32,
    /// Id of its member in the ring; never `u32::MAX`.
    pub(super) id: u32,
}

impl Point {
    /// Both in one word, so that keys are ordered by hash first.
    #[inline]
    pub(super) fn key(self) -> u64 {
        u64::from(self.hash) << 32 | u64::from(self.id)
    }

    #[inline]
    pub(super) fn from_key(key: u64) -> Point {
        Point { hash: (key >> 32) as u32, id: key as u32 }
    }
}

/// The hashes of a server's points, those of a lower weight first: `crc32(HOST \0 PORT PREVIOUS)`
/// as in `ngx_http_upstream_update_chash()`, where the previous hash is 0 at first.
pub(super) fn hashes(name: &[u8], weight: u32) -> impl Iterator<Item = u32> {
    let (host, port) = split(name);
    let mut base = Hasher::new();
    base.update(host);
    base.update(&[0]);
    base.update(port);
    let mut hash = 0u32;
    (0..POINTS * weight as usize).map(move |_| {
        let mut next = base.clone();
        next.update(&hash.to_le_bytes());
        hash = next.finalize();
        hash
    })
}

/// Host and port as nginx splits a server's name: the port is the digits after the last colon, the
/// brackets of an IPv6 address belong to the host, and what follows `unix:` is a host.
fn split(name: &[u8]) -> (&[u8], &[u8]) {
    if let Some((prefix, path)) = name.split_at_checked(5) {
        if prefix.eq_ignore_ascii_case(b"unix:") {
            return (path, &[]);
        }
    }
    match name.iter().rposition(|c| !c.is_ascii_digit()) {
        Some(colon) if name[colon] == b':' => (&name[..colon], &name[colon + 1..]),
        _ => (name, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_split_as_nginx_does() {
        for (name, host, port) in [
            ("10.0.0.1:8080", "10.0.0.1", "8080"),
            ("[::1]:80", "[::1]", "80"),
            ("[::1]", "[::1]", ""),
            ("web.example", "web.example", ""),
            ("web.example:", "web.example", ""),
            ("unix:/run/a:80", "/run/a:80", ""),
            ("UNIX:/run/a", "/run/a", ""),
            ("12345", "12345", ""),
            (":80", "", "80"),
            ("", "", ""),
        ] {
            let (h, p) = split(name.as_bytes());
            assert_eq!((h, p), (host.as_bytes(), port.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_higher_weight_has_all_points_of_a_lower_one() {
        let low: Vec<u32> = hashes(b"10.0.0.1:80", 1).collect();
        let high: Vec<u32> = hashes(b"10.0.0.1:80", 2).collect();
        assert_eq!((low.len(), high.len()), (160, 320));
        assert_eq!(low, high[..160]);
        assert_eq!(low[0], crc32fast::hash(b"10.0.0.1\080\0\0\0\0"));
    }
}
