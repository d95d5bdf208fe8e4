//! What became of an attempt.

use nginx_consul_core::balance::{Latency, Method, PeerInfo};
use nginx_consul_core::table::PeerCounters;
use nginx_sys::{NGX_LOG_WARN, NGX_PEER_FAILED, ngx_current_msec, ngx_log_t, ngx_uint_t};

use super::super::clock::now;
use super::super::counters::Account;
use super::super::outcome::Attempted;
use super::{Attempt, Picker};

impl Attempt {
    #[inline(always)]
    pub(super) fn judge(&mut self, state: ngx_uint_t, single: bool, log: *mut ngx_log_t) {
        // SAFETY: the configuration outlives the request, or the attempt keeps the block.
        let block = unsafe { &*self.block };
        if block.method() == Method::LeastTime {
            self.note_time(state & NGX_PEER_FAILED as ngx_uint_t != 0);
        }
        // SAFETY: the request that peer.init got.
        let attempted = unsafe { Attempted::new(self.request, state) };
        if self.counted.judge(attempted, Account { block, view: &self.view, single })
            && matches!(self.picker, Picker::Own)
        {
            warn_of_failures(log);
        }
    }

    /// nginx has accepted the response header.
    #[inline(always)]
    pub(in crate::peer) fn note_header(&mut self) {
        if self.counted.note_header() {
            self.judge_header();
        }
    }

    #[cold]
    #[inline(never)]
    fn judge_header(&mut self) {
        // SAFETY: the configuration outlives the request, or the attempt keeps the block.
        let block = unsafe { &*self.block };
        // SAFETY: the request that peer.init got.
        let attempted = unsafe { Attempted::new(self.request, 0) };
        let single = self.is_single();
        self.counted.judge_header(attempted, Account { block, view: &self.view, single });
    }

    /// Notes how long the peer took.
    #[inline(always)]
    fn note_time(&self, failed: bool) {
        let Some((counters, known)) = self.counted.known(&self.view) else { return };
        // SAFETY: the request's upstream, whose state nginx makes before it connects.
        let upstream = unsafe { &*(*self.request).upstream };
        // SAFETY: as above.
        let Some(state) = (unsafe { upstream.state.as_ref() }) else { return };
        let now = now().millis;
        // nginx's value of a time that never came.
        if failed || state.header_time == usize::MAX {
            // SAFETY: the event loop's clock, read in the event loop.
            let elapsed = unsafe { ngx_current_msec }.wrapping_sub(upstream.start_time) as u64;
            note_unanswered(counters, known, failed, elapsed, now);
            return;
        }
        counters.update_latency(known.identity, |raw| {
            Latency::from_raw(raw).after(state.header_time as u64, now).raw()
        });
    }
}

/// Notes an attempt that failed, or that the client gave up.
#[cold]
fn note_unanswered(
    counters: PeerCounters<'_>,
    known: &PeerInfo,
    failed: bool,
    elapsed: u64,
    now: u64,
) {
    counters.update_latency(known.identity, |raw| {
        let latency = Latency::from_raw(raw);
        if failed {
            latency.after_failure(elapsed, now).raw()
        } else if elapsed as f32 > latency.at(now) {
            // The answer would have taken longer still.
            latency.after(elapsed, now).raw()
        } else {
            raw
        }
    });
}

#[cold]
fn warn_of_failures(log: *mut ngx_log_t) {
    ngx::ngx_log_error!(NGX_LOG_WARN, log, "upstream server temporarily disabled");
}
