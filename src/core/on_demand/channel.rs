//! The queue of names from the workers to the resolver.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use crate::model::{MAX_NAME, ServiceName};

/// Bytes of the template's key, which stands before the name.
const HEAD: usize = 16;

/// A queue in the kernel, made in the master and inherited by the workers of every configuration, so
/// that it outlives them. It holds a few hundred names.
#[derive(Debug)]
pub struct Channel {
    workers: OwnedFd,
    resolver: OwnedFd,
}

/// One for all configurations of a master, so that the names from an ending worker still arrive.
static CHANNEL: OnceLock<Channel> = OnceLock::new();

impl Channel {
    /// Opens the queue of this process and of those that it forks from now on.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn open() -> io::Result<()> {
        if CHANNEL.get().is_none() {
            // Only the master opens it, which has one thread.
            let _ = CHANNEL.set(Channel::new()?);
        }
        Ok(())
    }

    /// The open queue.
    pub fn get() -> Option<&'static Channel> {
        CHANNEL.get()
    }

    fn new() -> io::Result<Channel> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (workers, resolver) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok(Channel { workers, resolver })
    }

    /// Asks for a service, without waiting; `false` if the queue is full.
    pub fn ask(&self, service: &ServiceName) -> bool {
        let message = [&service.template.to_ne_bytes(), service.name.as_bytes()].concat();
        send(&self.workers, &message, SendFlags::NOSIGNAL) == Ok(message.len())
    }

    /// The next service, if there is one. Any process may take it.
    pub(super) fn take(&self) -> Option<ServiceName> {
        let mut message = [0; HEAD + MAX_NAME + 1];
        loop {
            let len = match recv(&self.resolver, &mut message, RecvFlags::empty()) {
                Ok((len, _)) => len,
                Err(Errno::INTR) => continue,
                Err(_) => return None,
            };
            if let Some(service) = decode(&message[..len]) {
                return Some(service);
            }
        }
    }

    /// Readable while there is a name.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.resolver.as_fd()
    }
}

fn decode(message: &[u8]) -> Option<ServiceName> {
    let (template, name) = message.split_first_chunk()?;
    let name = std::str::from_utf8(name).ok().filter(|name| name.len() <= MAX_NAME)?;
    Some(ServiceName { template: u128::from_ne_bytes(*template), name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> ServiceName {
        ServiceName { template: 7 << 100, name: name.to_owned() }
    }

    #[test]
    fn names_arrive_whole_and_in_order() {
        let channel = Channel::new().unwrap();
        let names = ["a".repeat(MAX_NAME), "web".to_owned()];
        for name in &names {
            assert!(channel.ask(&service(name)));
        }
        assert!(
            channel.ask(&service(&"x".repeat(MAX_NAME + 1))),
            "a name too long is dropped by the reader"
        );
        for name in &names {
            assert_eq!(channel.take(), Some(service(name)));
        }
        assert_eq!(channel.take(), None);
    }

    #[test]
    fn a_full_queue_says_so_and_has_room_again() {
        let channel = Channel::new().unwrap();
        let held = (0..100_000).take_while(|n| channel.ask(&service(&format!("s{n}")))).count();
        assert!((100..10_000).contains(&held), "{held}");
        while channel.take().is_some() {}
        assert!(channel.ask(&service("web")));
    }
}
