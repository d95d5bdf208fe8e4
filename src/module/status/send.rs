//! Sends the status. All that a worker does for it is done in short turns, between which it serves
//! other requests.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nginx_consul_core::status::Format;
use nginx_sys::{NGX_HTTP_OK, NGX_HTTP_SERVICE_UNAVAILABLE, NGX_LOG_WARN, ngx_int_t, ngx_msec_t};

use super::options::TEXT;
use super::rendering::{Rendering, Wanted};
use crate::ffi::response::{add_header, send};
use crate::ffi::suspended::{self, Next, Work};
use crate::ffi::{DONE, ERROR, INTERNAL_SERVER_ERROR, Request, process};
use crate::peer::Interval;
use crate::upstreams::Upstreams;

/// How long a worker may write and send statuses, for all readers, before it pauses.
const TURN: Duration = Duration::from_millis(2);
/// Milliseconds until it may go on: the event loop then turns often, and accepts a connection each
/// time.
const PAUSE: ngx_msec_t = 1;

thread_local! {
    /// When the last turn began, and how much of it was used.
    static USED: Cell<(ngx_msec_t, Duration)> = const { Cell::new((0, Duration::ZERO)) };
    /// Limits log lines.
    static LOGGED: Interval = Interval::default();
}

/// A request for the status that waits for its text.
struct Reader {
    format: Format,
    rendering: RefCell<Rc<Rendering>>,
}

/// Sends the status now or over the next turns. The request's body was discarded.
pub(super) fn answer(r: Request<'_>, wanted: Wanted, format: Format) -> ngx_int_t {
    let rendering = RefCell::new(Rendering::of(wanted, r.main_conf::<Upstreams>()));
    let reader = Reader { format, rendering };
    if let Some(rc) = reader.go_on_for_turn(r) {
        return rc;
    }
    suspended::in_content(r, reader, PAUSE).map_or_else(|rc| rc, |()| DONE)
}

impl Work for Reader {
    fn go_on(&self, r: Request<'_>) -> Next {
        self.go_on_for_turn(r).map_or(Next::Wait(PAUSE), Next::Finalize)
    }
}

impl Reader {
    /// Goes on with what is left of this turn. `None` unless that ends the request.
    fn go_on_for_turn(&self, r: Request<'_>) -> Option<ngx_int_t> {
        let (now, (mut began, mut used)) = (process::current_msec(), USED.get());
        if now.wrapping_sub(began) >= used.as_millis() as ngx_msec_t + PAUSE {
            (began, used) = (now, Duration::ZERO);
        }
        let left = TURN.checked_sub(used).filter(|left| !left.is_zero())?;
        let start = Instant::now();
        let rc = self.go_on_for(r, left);
        USED.set((began, used + start.elapsed()));
        rc
    }

    fn go_on_for(&self, r: Request<'_>, time: Duration) -> Option<ngx_int_t> {
        let upstreams: &Upstreams = r.main_conf();
        let own = Rc::clone(&self.rendering.borrow());
        let Some(rendering) = own.begin(upstreams) else { return Some(refuse(r, self.format)) };
        self.rendering.replace(Rc::clone(&rendering));
        match rendering.go_on(upstreams, time) {
            Ok(text) => text.map(|text| send(r, NGX_HTTP_OK, self.format.content_type(), text)),
            Err(()) => Some(INTERNAL_SERVER_ERROR),
        }
    }
}

/// The worker has as many statuses as it may that are not sent yet.
#[cold]
fn refuse(r: Request<'_>, format: Format) -> ngx_int_t {
    if LOGGED.with(Interval::is_due) {
        ngx::ngx_log_error!(
            NGX_LOG_WARN,
            r.log().as_ptr(),
            "consul: status refused, its readers have not received the last ones yet"
        );
    }
    if !add_header(r, "Retry-After", "1") {
        return ERROR;
    }
    send_error(r, NGX_HTTP_SERVICE_UNAVAILABLE, format, "too many slow readers")
}

/// Sends what is wrong in place of the status.
pub(super) fn send_error(r: Request<'_>, status: u32, format: Format, error: &str) -> ngx_int_t {
    let (kind, text) = match format {
        Format::Json => (format.content_type(), format!("{{\"error\":\"{error}\"}}\n")),
        _ => (TEXT, format!("{error}\n")),
    };
    send(r, status, kind, vec![text])
}
