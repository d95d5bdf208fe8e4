//! Responses.

use nginx_consul_core::control::Refusal;
use nginx_sys::{ngx_http_request_t, ngx_int_t};

use crate::ffi::ERROR;
use crate::response;

/// What a request that is granted is answered.
pub(super) struct Answer {
    pub(super) status: u16,
    /// JSON.
    pub(super) body: Vec<u8>,
}

/// Sends the response.
///
/// # Safety
///
/// `r` is a valid request whose header was not sent.
pub(super) unsafe fn send(
    r: *mut ngx_http_request_t,
    answer: Result<Answer, Refusal>,
) -> ngx_int_t {
    let (answer, allow) = match answer {
        Ok(answer) => (answer, None),
        Err(refusal) => {
            let answer = Answer { status: refusal.status, body: refusal.to_json() };
            (answer, refusal.allow)
        }
    };
    // SAFETY: the caller's promise.
    unsafe {
        if allow.is_some_and(|allow| !response::add_header(r, "Allow", allow)) {
            return ERROR;
        }
        response::send(r, answer.status.into(), "application/json", vec![answer.body])
    }
}
