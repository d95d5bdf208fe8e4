//! A signal that stops every thread of a watcher at once, whatever it waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// A flag with an eventfd: threads poll it beside their socket, so that a stop is seen at once.
#[derive(Debug)]
pub struct Stop {
    raised: AtomicBool,
    event: OwnedFd,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The deadline has passed.
    Timeout,
    /// The descriptor is ready, or has failed, which the next operation on it reports.
    Ready,
    /// [`Stop::raise`] was called.
    Stopped,
}

impl Stop {
    /// A signal that is not raised yet.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Stop { raised: AtomicBool::new(false), event })
    }

    /// Ends every present and future wait.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::SeqCst);
        // Nobody reads the event, so it stays readable. The write fails only when the counter is
        // full, and then it is readable already.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Whether [`raise`](Self::raise) was called.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// Sleeps; `false` if stopped.
    pub fn sleep(&self, time: Duration) -> bool {
        let deadline = Instant::now().checked_add(time);
        match self.poll(None, deadline) {
            Ok(woken) => woken != Woken::Stopped,
            Err(_) => {
                // poll() is short of memory. A watch must go on, but not in a busy loop.
                std::thread::sleep(time.min(Duration::from_millis(100)));
                !self.is_raised()
            }
        }
    }

    /// Waits until `fd` is ready for `events`.
    ///
    /// # Errors
    ///
    /// The error of `poll`, except an interruption.
    pub fn wait(
        &self,
        fd: BorrowedFd<'_>,
        events: PollFlags,
        deadline: Option<Instant>,
    ) -> io::Result<Woken> {
        self.poll(Some((fd, events)), deadline)
    }

    /// The descriptor that becomes readable when the signal is raised.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn poll(
        &self,
        watched: Option<(BorrowedFd<'_>, PollFlags)>,
        deadline: Option<Instant>,
    ) -> io::Result<Woken> {
        loop {
            if self.is_raised() {
                return Ok(Woken::Stopped);
            }
            let left = deadline.map(|at| timespec(at.saturating_duration_since(Instant::now())));
            let stop = PollFd::from_borrowed_fd(self.event.as_fd(), PollFlags::IN);
            let ready = match &watched {
                Some((fd, events)) => {
                    let fd = PollFd::from_borrowed_fd(*fd, *events);
                    poll(&mut [stop, fd], left.as_ref())
                }
                None => poll(&mut [stop], left.as_ref()),
            };
            match ready {
                Ok(0) => return Ok(Woken::Timeout),
                Ok(_) if self.is_raised() => return Ok(Woken::Stopped),
                Ok(_) => return Ok(Woken::Ready),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_stop_ends_a_long_sleep_at_once() {
        let stop = Arc::new(Stop::new().unwrap());
        let sleeper = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || stop.sleep(Duration::from_secs(3600)))
        };
        stop.raise();
        assert!(!sleeper.join().unwrap());
        assert!(!stop.sleep(Duration::MAX), "a raised stop stays raised");
    }

    #[test]
    fn a_sleep_ends_by_itself() {
        assert!(Stop::new().unwrap().sleep(Duration::from_millis(1)));
    }
}
