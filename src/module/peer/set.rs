//! A set of peers in nginx's types.

use std::cell::OnceCell;
use std::rc::Rc;

use nginx_consul_core::balance::{Method, Pair, ServerParams, View, pairs};
use nginx_consul_core::labels::LabelSet;
use nginx_consul_core::table::{PeerRecord, PeerSnapshot};
use nginx_sys::{ngx_peer_connection_t, ngx_str_t, sockaddr};

use super::sockaddrs::{SockAddr, SockAddrs};
use crate::ffi::session::Sessions;

/// A worker's copy of a set. Requests hold it until their pool is destroyed: before nginx 1.27.3
/// `$upstream_addr` points at a peer's name until the access log is written.
pub(crate) struct PeerView {
    view: View,
    contacts: SockAddrs,
    sessions: Sessions,
    /// Of each set, if a variable wants them.
    labels: Box<[OnceCell<Rc<LabelSet>>]>,
}

/// One of the sets that a view is made of.
pub(super) struct Part {
    pub(super) image: PeerSnapshot,
    /// It is that of the view before.
    pub(super) is_kept: bool,
}

impl PeerView {
    /// Takes TLS sessions over from the set before, instance by instance.
    pub(crate) fn new(
        parts: Vec<Part>,
        rules: &ServerParams,
        method: Method,
        before: Option<&PeerView>,
    ) -> PeerView {
        let (images, labels): (Vec<PeerSnapshot>, _) =
            parts.into_iter().enumerate().map(|(set, part)| part.split(set, before)).unzip();
        let view = View::new(images, rules, method, before.map(|before| &before.view));
        let contacts = SockAddrs::new(view.records().len());
        let sessions = Sessions::new(view.records().len());
        if let Some(before) = before.filter(|b| b.sessions.any()) {
            // Two datacenters may have an instance of the same name, but not in the same slot.
            let name = |record: &PeerRecord| (record.place, record.identity);
            pairs(before.view.records(), view.records(), name, |pair| {
                if let Pair::Both { old, new } = pair {
                    sessions.take_over(new, &before.sessions, old);
                }
            });
        }
        PeerView { view, contacts, sessions, labels: Vec::into_boxed_slice(labels) }
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

    /// What variables tell of the peers of a set; `load` gets it if nobody asked before.
    pub(super) fn labels(
        &self,
        set: usize,
        load: impl FnOnce() -> Option<LabelSet>,
    ) -> Option<&LabelSet> {
        let cell = self.labels.get(set)?;
        if cell.get().is_none() {
            let _ = cell.set(Rc::new(load()?));
        }
        cell.get().map(Rc::as_ref)
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    #[inline]
    fn contact(&self, peer: usize) -> &SockAddr {
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

impl Part {
    fn split(
        mut self,
        set: usize,
        before: Option<&PeerView>,
    ) -> (PeerSnapshot, OnceCell<Rc<LabelSet>>) {
        let labels = match before.filter(|_| self.is_kept) {
            Some(before) => before.labels.get(set).cloned().unwrap_or_default(),
            None => {
                LabelSet::take(&mut self.image).map(Rc::new).map(OnceCell::from).unwrap_or_default()
            }
        };
        (self.image, labels)
    }
}

impl Default for PeerView {
    fn default() -> PeerView {
        PeerView::new(Vec::new(), &ServerParams::default(), Method::default(), None)
    }
}
