//! A set of peers in nginx's types.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::net::SocketAddr;

use nginx_consul_core::balance::{Method, Rules, View};
use nginx_consul_core::table::{Image, Record};
use nginx_sys::{ngx_peer_connection_t, ngx_str_t, sockaddr};

use crate::ffi::str_over;
use crate::session::Sessions;

/// A worker's copy of a set. Requests hold it until their pool is destroyed: before nginx 1.27.3
/// `$upstream_addr` points at a peer's name until the access log is written.
pub(crate) struct PeerView {
    view: View,
    addresses: Vec<Address>,
    sessions: Sessions,
}

/// A socket address and its name.
#[repr(C)]
struct Address {
    storage: MaybeUninit<libc::sockaddr_in6>,
    len: libc::socklen_t,
    /// Points into the record of the view, which never moves.
    name: ngx_str_t,
}

impl PeerView {
    /// Takes TLS sessions over from the set before, instance by instance.
    pub(crate) fn new(
        images: Vec<Image>,
        rules: &Rules,
        method: Method,
        before: Option<&PeerView>,
    ) -> PeerView {
        let view = View::new(images, rules, method, before.map(|before| &before.view));
        let addresses = view.records().iter().map(Address::new).collect();
        let sessions = Sessions::new(view.records().len());
        if let Some(before) = before.filter(|b| b.sessions.any()) {
            // Two datacenters may have an instance of the same name, but not in the same slot.
            let name = |record: &Record| (record.slot, record.identity);
            let old: HashMap<(u32, u64), usize> =
                before.view.records().iter().enumerate().map(|(i, r)| (name(r), i)).collect();
            for (new, record) in view.records().iter().enumerate() {
                if let Some(&old) = old.get(&name(record)) {
                    sessions.take_over(new, &before.sessions, old);
                }
            }
        }
        PeerView { view, addresses, sessions }
    }

    pub(crate) fn peers(&self) -> &View {
        &self.view
    }

    pub(crate) fn len(&self) -> usize {
        self.addresses.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Address of a peer, for nginx's own lists; lives as long as the view.
    pub(crate) fn address(&self, peer: usize) -> (*mut sockaddr, libc::socklen_t) {
        let address = &self.addresses[peer];
        (address.storage.as_ptr().cast::<sockaddr>().cast_mut(), address.len)
    }

    /// Name of a peer, likewise.
    pub(crate) fn name(&self, peer: usize) -> ngx_str_t {
        self.addresses[peer].name
    }

    /// The peer that has this very address of [`PeerView::address`].
    pub(crate) fn number_at(&self, address: *const sockaddr) -> Option<usize> {
        let first = self.addresses.as_ptr().addr();
        let offset = address.addr().checked_sub(first)?;
        let number = offset / size_of::<Address>();
        (offset % size_of::<Address>() == 0 && number < self.len()).then_some(number)
    }

    /// Points the connection at a peer. The request holds this view, so what it points at stays.
    pub(crate) fn point(&self, pc: &mut ngx_peer_connection_t, peer: usize) {
        let address = &self.addresses[peer];
        pc.sockaddr = address.storage.as_ptr().cast::<sockaddr>().cast_mut();
        pc.socklen = address.len;
        pc.name = (&raw const address.name).cast_mut();
    }
}

impl Default for PeerView {
    fn default() -> PeerView {
        PeerView::new(Vec::new(), &Rules::default(), Method::default(), None)
    }
}

impl Address {
    fn new(record: &Record) -> Address {
        let mut storage = MaybeUninit::<libc::sockaddr_in6>::zeroed();
        let len = match record.addr {
            SocketAddr::V4(v4) => {
                let sin = libc::sockaddr_in {
                    sin_family: libc::AF_INET as _,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                const {
                    assert!(size_of::<libc::sockaddr_in>() <= size_of::<libc::sockaddr_in6>());
                    assert!(align_of::<libc::sockaddr_in>() <= align_of::<libc::sockaddr_in6>());
                }
                // SAFETY: a sockaddr_in fits into a sockaddr_in6, as asserted.
                unsafe { storage.as_mut_ptr().cast::<libc::sockaddr_in>().write(sin) };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                storage.write(libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as _,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                });
                size_of::<libc::sockaddr_in6>()
            }
        };
        Address { storage, len: len as libc::socklen_t, name: str_over(record.text()) }
    }
}
