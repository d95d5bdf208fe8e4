//! Whether a request may try the peer that its method would pick.

use nginx_consul_core::balance::{Admission, Picked, Tried};
use nginx_sys::{ngx_int_t, ngx_peer_connection_t};

use super::{DONE, StockAttempt};
use crate::ffi::{DECLINED, ERROR, OK};
use crate::peer::view::PeerView;

impl StockAttempt {
    /// Asks the method for a peer.
    #[inline]
    pub(super) fn ask(&mut self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        let Some(delegate) = &self.delegate else { return ERROR };
        let permit = match self.admit() {
            Admission::Free => None,
            Admission::With(permit) => Some(permit),
            Admission::Refused => return self.refuse(pc),
        };
        let picked = delegate.get(pc);
        if picked == OK || picked == DONE {
            self.begin(pc, permit);
        } else if let Some(permit) = permit {
            permit.end();
        }
        picked
    }

    /// Whether the request may try the block's only instance; nginx's method decides on others.
    #[inline]
    fn admit(&self) -> Admission<'static> {
        match &self.snapshot {
            Some(snapshot) if snapshot.view().len() == 1 && !self.block().has_fallback => {
                self.admit_to_single(snapshot.view())
            }
            _ => Admission::Free,
        }
    }

    fn admit_to_single(&self, view: &PeerView) -> Admission<'static> {
        let block = self.block();
        let Some(worker) = block.worker() else { return Admission::Free };
        let (known, tried) = (view.peers().known(0), Tried::default());
        let counters = worker.table.slot(known.place);
        if !counters.has_fails() {
            return Admission::Free;
        }
        let candidates = block.candidates(&worker.share().table, view.peers(), &tried);
        candidates.admit(Picked { known, counters }, &block.shared(worker))
    }

    /// There is nobody to ask.
    #[cold]
    pub(super) fn refuse(&self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        // SAFETY: nginx passes the request's connection.
        let pc = unsafe { &mut *pc };
        let block = self.block();
        block.complain(pc.log);
        // Not NGX_BUSY: nginx would log a line for each request.
        pc.name = block.name_ptr();
        pc.tries = 0;
        DECLINED
    }
}
