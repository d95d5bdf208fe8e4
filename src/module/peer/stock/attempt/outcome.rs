//! How an attempt ended.

use nginx_sys::{NGX_PEER_FAILED, NGX_PEER_NEXT, ngx_log_t, ngx_uint_t};

use super::StockAttempt;
use crate::peer::counted::Account;
use crate::peer::outcome::Attempted;
use crate::peer::trace;
use crate::peer::view::PeerView;

impl StockAttempt {
    /// The method has been told that the attempt is over; the rest is ours to do.
    #[inline]
    pub(super) fn note_outcome(&mut self, state: ngx_uint_t, log: *mut ngx_log_t) {
        let is_plain = state & (NGX_PEER_FAILED | NGX_PEER_NEXT) as ngx_uint_t == 0
            && !self.counted.has_fails()
            && self.is_current()
            && !trace::is_on(log);
        if !is_plain {
            self.note_trouble(state, log);
        }
        self.counted.end();
    }

    /// nginx has accepted the response header.
    pub(in crate::peer) fn note_header(&mut self) {
        let Some(snapshot) = self.snapshot.as_ref().filter(|_| self.counted.note_header()) else {
            return;
        };
        let account = self.account(snapshot.view());
        // SAFETY: the request that peer.init got.
        let attempted = unsafe { Attempted::new(self.request, 0) };
        self.counted.judge_header(attempted, account);
    }

    fn account<'a>(&self, view: &'a PeerView) -> Account<'a> {
        let block = self.block();
        Account { block, view, single: view.len() == 1 && !block.has_fallback }
    }

    /// Whether it holds the newest peers.
    #[inline]
    fn is_current(&self) -> bool {
        match (&self.snapshot, self.stock()) {
            (Some(snapshot), Some(stock)) => stock.is_current(snapshot),
            _ => false,
        }
    }

    #[cold]
    #[inline(never)]
    fn note_trouble(&mut self, state: ngx_uint_t, log: *mut ngx_log_t) {
        let (Some(snapshot), Some(peer)) = (&self.snapshot, self.counted.peer()) else { return };
        if trace::is_on(log) {
            let failed = state & NGX_PEER_FAILED as ngx_uint_t != 0;
            trace::ended(log, self.block(), snapshot.view(), peer, failed);
        }
        // SAFETY: the request that peer.init got.
        let attempted = unsafe { Attempted::new(self.request, state) };
        self.counted.judge(attempted, self.account(snapshot.view()));
        if let Some(stock) = self.stock().filter(|stock| !stock.is_current(snapshot)) {
            if snapshot.peer(peer).is_some() {
                stock.note_end(snapshot.key(peer));
            }
        }
        if state & (NGX_PEER_FAILED | NGX_PEER_NEXT) as ngx_uint_t != 0 {
            let key = snapshot.key(peer);
            self.past.get_or_insert_default().tried.push(key);
        }
    }
}
