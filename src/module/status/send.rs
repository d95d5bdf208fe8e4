//! Sends the status; a long one is written in several turns of the event loop.

use std::cell::Cell;
use std::time::Duration;

use nginx_consul_core::status::Format;
use nginx_sys::{NGX_HTTP_OK, ngx_int_t, ngx_msec_t};

use super::collect::Walk;
use crate::ffi::response::send;
use crate::ffi::suspended::{self, Next, Work};
use crate::ffi::{DONE, Request};

/// How long one turn of the event loop may write a status.
const TURN: Duration = Duration::from_millis(2);
/// Milliseconds until the next turn, so that other events come first.
const PAUSE: ngx_msec_t = 1;

/// A status that is written over several turns.
struct Writing<'r> {
    /// `None` once it is finished.
    walk: Cell<Option<Walk<'r>>>,
    format: Format,
}

/// Sends the status now or over the next turns. The request's body was discarded.
pub(super) fn answer<'r>(r: Request<'r>, mut walk: Walk<'r>, format: Format) -> ngx_int_t {
    if walk.go_on(TURN) {
        return send(r, NGX_HTTP_OK, format.content_type(), walk.finish());
    }
    let writing = Writing { walk: Cell::new(Some(walk)), format };
    suspended::in_content(r, writing, PAUSE).map_or_else(|rc| rc, |()| DONE)
}

impl Work for Writing<'_> {
    fn go_on(&self, r: Request<'_>) -> Next {
        let Some(mut walk) = self.walk.take() else { return Next::Finalize(DONE) };
        if walk.go_on(TURN) {
            let rc = send(r, NGX_HTTP_OK, self.format.content_type(), walk.finish());
            return Next::Finalize(rc);
        }
        self.walk.set(Some(walk));
        Next::Wait(PAUSE)
    }
}
