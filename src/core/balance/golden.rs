//! Which server stock nginx 1.22.1 (Debian 12) chose for the keys `key0` to `key23`.
//!
//! How they were measured: for each set an upstream with `hash $arg_k;` or `hash $arg_k consistent;`
//! and the servers with `max_fails=0`, nobody listening there, `proxy_next_upstream off`, and the server
//! read from `add_header X-Up $upstream_addr always`. "Down" is with `down` at the servers that
//! [`is_up`] denies.

/// How many keys were asked for.
pub(super) const KEYS: usize = 24;

/// A set of servers, and the index of the server for each key.
pub(super) struct Set {
    pub(super) name: &'static str,
    /// Names and weights.
    pub(super) servers: fn() -> Vec<(String, u32)>,
    pub(super) plain: [usize; KEYS],
    pub(super) plain_down: [usize; KEYS],
    pub(super) consistent: [usize; KEYS],
    pub(super) consistent_down: [usize; KEYS],
}

/// Whether the server is up in the measurements with servers that were down.
pub(super) fn is_up(server: usize, servers: usize) -> bool {
    server % if servers > 10 { 10 } else { 3 } == 1
}

fn named(servers: &[(&str, u32)]) -> Vec<(String, u32)> {
    servers.iter().map(|&(name, weight)| (name.to_owned(), weight)).collect()
}

pub(super) const SETS: [Set; 4] = [
    Set {
        name: "even",
        servers: || (1..6).map(|i| (format!("127.0.0.{i}:8080"), 1)).collect(),
        plain: [2, 1, 3, 3, 1, 2, 1, 2, 3, 4, 2, 4, 4, 0, 0, 2, 3, 4, 3, 1, 4, 4, 1, 4],
        plain_down: [1, 1, 4, 1, 1, 4, 1, 4, 1, 4, 1, 4, 4, 4, 4, 1, 1, 4, 1, 1, 4, 4, 1, 4],
        consistent: [3, 0, 3, 3, 3, 1, 3, 1, 0, 3, 1, 2, 2, 0, 4, 3, 1, 4, 2, 0, 0, 3, 1, 2],
        consistent_down: [4, 1, 4, 4, 4, 1, 4, 1, 4, 1, 1, 1, 4, 1, 4, 4, 1, 4, 1, 4, 4, 1, 1, 4],
    },
    Set {
        name: "weighted",
        servers: || {
            named(&[
                ("127.0.0.1:9001", 5),
                ("127.0.0.1:9002", 1),
                ("[::1]:9003", 2),
                ("127.0.0.77:65535", 3),
            ])
        },
        plain: [0, 0, 0, 1, 0, 0, 3, 2, 3, 2, 2, 1, 0, 0, 1, 2, 0, 3, 0, 2, 0, 3, 3, 0],
        plain_down: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        consistent: [0, 2, 0, 3, 2, 0, 0, 1, 2, 3, 2, 0, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 3],
        consistent_down: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    },
    Set {
        name: "threes",
        servers: || named(&[("127.0.0.9:80", 3), ("127.0.0.2:81", 3), ("[::1]:82", 3)]),
        plain: [1, 2, 0, 1, 2, 1, 1, 2, 0, 0, 0, 1, 1, 0, 1, 2, 2, 0, 1, 1, 2, 0, 0, 1],
        plain_down: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        consistent: [1, 0, 2, 0, 0, 2, 0, 2, 2, 0, 0, 0, 2, 0, 0, 1, 2, 1, 2, 1, 1, 1, 0, 1],
        consistent_down: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    },
    Set {
        name: "hundred",
        servers: || (0..100).map(|i| (format!("127.0.1.{i}:8080"), 1 + i % 3)).collect(),
        plain: [
            52, 7, 61, 32, 62, 56, 60, 8, 98, 41, 66, 56, 10, 47, 8, 3, 8, 53, 23, 53, 78, 11, 74,
            81,
        ],
        plain_down: [
            31, 11, 61, 61, 41, 31, 31, 11, 1, 41, 71, 11, 11, 51, 11, 91, 71, 41, 11, 71, 1, 11,
            41, 81,
        ],
        consistent: [
            22, 99, 9, 31, 14, 37, 73, 62, 60, 20, 16, 51, 29, 7, 34, 39, 89, 94, 56, 7, 14, 50,
            19, 56,
        ],
        consistent_down: [
            1, 11, 51, 31, 21, 1, 11, 1, 91, 41, 41, 51, 71, 61, 51, 21, 61, 61, 41, 21, 71, 71,
            51, 1,
        ],
    },
];
