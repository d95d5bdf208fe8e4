//! A set of peers in nginx's types.

use std::collections::HashMap;

use nginx_consul_core::balance::{Method, Rules, View};
use nginx_consul_core::table::{Image, Place, Record};
use nginx_sys::{ngx_peer_connection_t, ngx_str_t, sockaddr};

use super::contacts::{Contact, Contacts};
use crate::session::Sessions;

/// A worker's copy of a set. Requests hold it until their pool is destroyed: before nginx 1.27.3
/// `$upstream_addr` points at a peer's name until the access log is written.
pub(crate) struct PeerView {
    view: View,
    contacts: Contacts,
    sessions: Sessions,
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
        let contacts = Contacts::new(view.records().len());
        let sessions = Sessions::new(view.records().len());
        if let Some(before) = before.filter(|b| b.sessions.any()) {
            // Two datacenters may have an instance of the same name, but not in the same slot.
            let name = |record: &Record| (record.place, record.identity);
            let old: HashMap<(Place, u64), usize> =
                before.view.records().iter().enumerate().map(|(i, r)| (name(r), i)).collect();
            for (new, record) in view.records().iter().enumerate() {
                if let Some(&old) = old.get(&name(record)) {
                    sessions.take_over(new, &before.sessions, old);
                }
            }
        }
        PeerView { view, contacts, sessions }
    }

    pub(crate) fn peers(&self) -> &View {
        &self.view
    }

    pub(crate) fn len(&self) -> usize {
        self.view.records().len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.view.records().is_empty()
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    #[inline]
    fn contact(&self, peer: usize) -> &Contact {
        self.contacts.get(peer, || self.view.records()[peer].addr())
    }

    /// Address of a peer, for nginx's own lists; lives as long as the view.
    pub(crate) fn address(&self, peer: usize) -> (*mut sockaddr, libc::socklen_t) {
        let contact = self.contact(peer);
        (contact.address().cast(), contact.len)
    }

    /// Name of a peer, likewise.
    pub(crate) fn name(&self, peer: usize) -> ngx_str_t {
        self.contact(peer).name
    }

    /// The peer that has this very address of [`PeerView::address`].
    pub(crate) fn number_at(&self, address: *const sockaddr) -> Option<usize> {
        self.contacts.number_at(address.addr())
    }

    /// Points the connection at a peer. The request holds this view, so what it points at stays.
    pub(crate) fn point(&self, pc: &mut ngx_peer_connection_t, peer: usize) {
        let contact = self.contact(peer);
        (pc.sockaddr, pc.socklen) = (contact.address().cast(), contact.len);
        pc.name = (&raw const contact.name).cast_mut();
    }
}

impl Default for PeerView {
    fn default() -> PeerView {
        PeerView::new(Vec::new(), &Rules::default(), Method::default(), None)
    }
}
