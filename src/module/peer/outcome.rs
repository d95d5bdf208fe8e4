//! How an attempt went, as far as nginx tells.

use nginx_sys::{
    NGX_HTTP_UPSTREAM_FT_HTTP_429, NGX_HTTP_UPSTREAM_FT_HTTP_500, NGX_HTTP_UPSTREAM_FT_HTTP_502,
    NGX_HTTP_UPSTREAM_FT_HTTP_503, NGX_HTTP_UPSTREAM_FT_HTTP_504, NGX_PEER_FAILED,
    ngx_http_request_t, ngx_uint_t,
};

/// What an attempt says of its peer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Failed,
    /// nginx has accepted the response header.
    Passed,
    /// The client has gone before that, or the status is one that `proxy_next_upstream` names.
    Unknown,
}

/// An attempt of a request that is over, or has its response header.
#[derive(Clone, Copy)]
pub(super) struct Attempted {
    /// Null once the request has gone elsewhere.
    request: *mut ngx_http_request_t,
    /// What `peer.free` gets.
    state: ngx_uint_t,
}

impl Attempted {
    /// # Safety
    ///
    /// `request` is null, or a request with an upstream that lives as long as the value.
    #[inline]
    pub(super) unsafe fn new(request: *mut ngx_http_request_t, state: ngx_uint_t) -> Attempted {
        Attempted { request, state }
    }

    #[inline]
    pub(super) fn has_failed(self) -> bool {
        self.state & NGX_PEER_FAILED as ngx_uint_t != 0
    }

    pub(super) fn outcome(self) -> Outcome {
        if self.has_failed() { Outcome::Failed } else { self.by_header() }
    }

    /// What the response header says, if it has come. 403 and 404 are never failures, as nginx's
    /// documentation of `proxy_next_upstream` says.
    pub(super) fn by_header(self) -> Outcome {
        // SAFETY: the request and its upstream are valid (the promise of new()); its state and its
        // location's settings live as long as it.
        let (status, next_upstream) = unsafe {
            let Some(upstream) = self.request.as_ref().and_then(|r| r.upstream.as_ref()) else {
                return Outcome::Unknown;
            };
            let (Some(state), Some(conf)) = (upstream.state.as_ref(), upstream.conf.as_ref())
            else {
                return Outcome::Unknown;
            };
            // nginx's value of a time that never came.
            if state.header_time == usize::MAX {
                return Outcome::Unknown;
            }
            (state.status, conf.next_upstream)
        };
        let named = match status {
            429 => NGX_HTTP_UPSTREAM_FT_HTTP_429,
            500 => NGX_HTTP_UPSTREAM_FT_HTTP_500,
            502 => NGX_HTTP_UPSTREAM_FT_HTTP_502,
            503 => NGX_HTTP_UPSTREAM_FT_HTTP_503,
            504 => NGX_HTTP_UPSTREAM_FT_HTTP_504,
            _ => 0,
        };
        if next_upstream & named as ngx_uint_t != 0 { Outcome::Unknown } else { Outcome::Passed }
    }

    /// When it began, milliseconds of the monotonic clock; 0 if nobody knows any more.
    pub(super) fn began(self) -> u64 {
        // SAFETY: as above. nginx notes the time before each attempt.
        let upstream = unsafe { self.request.as_ref().and_then(|r| r.upstream.as_ref()) };
        upstream.map_or(0, |upstream| upstream.start_time as u64)
    }
}
