//! From the workers to the threads that ask Consul.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use super::MAX_NAME;
use crate::table::Named;

/// Template and time before the name.
const HEAD: usize = 16 + 8;

/// A name that a request waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What it names.
    pub service: Named,
    /// When the request gives up, milliseconds since the epoch.
    pub until_ms: u64,
}

/// A queue in the kernel: made in the master, inherited by every worker of every configuration, so
/// that it outlives them all. It holds a few hundred names; then it is full.
#[derive(Debug)]
pub struct Channel {
    workers: OwnedFd,
    threads: OwnedFd,
}

impl Channel {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn new() -> io::Result<Channel> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (workers, threads) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok(Channel { workers, threads })
    }

    /// Asks, without waiting; `false` if the queue is full.
    pub fn ask(&self, asked: &Asked) -> bool {
        let mut message = Vec::with_capacity(HEAD + asked.service.name.len());
        message.extend(asked.service.template.to_ne_bytes());
        message.extend(asked.until_ms.to_ne_bytes());
        message.extend(asked.service.name.as_bytes());
        send(&self.workers, &message, SendFlags::NOSIGNAL) == Ok(message.len())
    }

    /// The next name, if there is one. Any thread of any process may take it.
    pub(super) fn take(&self) -> Option<Asked> {
        let mut message = [0; HEAD + MAX_NAME + 1];
        loop {
            let len = match recv(&self.threads, &mut message, RecvFlags::empty()) {
                Ok((len, _)) => len,
                Err(Errno::INTR) => continue,
                Err(_) => return None,
            };
            if let Some(asked) = decode(&message[..len]) {
                return Some(asked);
            }
        }
    }

    /// Readable while there is a name.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.threads.as_fd()
    }
}

fn decode(message: &[u8]) -> Option<Asked> {
    let (template, rest) = message.split_first_chunk()?;
    let (until, name) = rest.split_first_chunk()?;
    let name = std::str::from_utf8(name).ok().filter(|name| name.len() <= MAX_NAME)?;
    Some(Asked {
        service: Named { template: u128::from_ne_bytes(*template), name: name.to_owned() },
        until_ms: u64::from_ne_bytes(*until),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &str) -> Asked {
        Asked { service: Named { template: 7 << 100, name: name.to_owned() }, until_ms: 5 }
    }

    #[test]
    fn names_arrive_whole_and_in_order() {
        let channel = Channel::new().unwrap();
        let names = ["a".repeat(MAX_NAME), "web".to_owned()];
        for name in &names {
            assert!(channel.ask(&asked(name)));
        }
        assert!(channel.ask(&asked(&"x".repeat(MAX_NAME + 1))), "which nobody takes");
        for name in &names {
            assert_eq!(channel.take(), Some(asked(name)));
        }
        assert_eq!(channel.take(), None);
    }

    #[test]
    fn a_full_queue_says_so_and_has_room_again() {
        let channel = Channel::new().unwrap();
        let held = (0..100_000).take_while(|n| channel.ask(&asked(&format!("s{n}")))).count();
        assert!((100..10_000).contains(&held), "{held}");
        while channel.take().is_some() {}
        assert!(channel.ask(&asked("web")));
    }
}
