//! Short-lived children of nginx's master, which nginx doesn't get to know of.

use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::time::{Duration, Instant};

use libc::c_int;

use crate::lifecycle::signals::SignalsBlocked;

/// What became of a child.
pub(crate) struct Outcome {
    /// What it wrote.
    pub(crate) told: Vec<u8>,
    pub(crate) end: End,
}

/// How it ended.
pub(crate) enum End {
    /// With this status.
    Status(c_int),
    /// By this signal.
    Signal(c_int),
    /// It took too long and was killed.
    Late,
    /// Nobody knows: who started nginx has its children reaped by the system.
    Unknown,
}

/// Runs `work` in a child and waits for its end: for ever, or kills it after `patience`. What
/// `work` writes is handed back; what it returns is the status.
///
/// # Errors
///
/// There is no pair of sockets or no process to be had.
///
/// # Safety
///
/// Called from the main thread of a process that has no other threads, or none that hold a lock
/// which `work` needs. `work` calls nothing of nginx that touches files or sockets.
pub(crate) unsafe fn run(
    patience: Option<Duration>,
    work: impl FnOnce(&mut UnixStream) -> u8,
) -> io::Result<Outcome> {
    let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
    let (mut reader, mut writer) = UnixStream::pair()?;
    // nginx's own handlers are to see neither this child nor, in the child, a signal.
    let _blocked = SignalsBlocked::new();
    // SAFETY: plain libc calls; the child runs `work` and ends without running anything else of
    // the parent's.
    let child = unsafe {
        let parent = libc::getpid();
        let child = libc::fork();
        if child == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() != parent {
                libc::_exit(1);
            }
            libc::_exit(catch_unwind(AssertUnwindSafe(|| work(&mut writer))).unwrap_or(1).into());
        }
        child
    };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    // From here on the stream ends with the child.
    drop(writer);
    let mut told = Vec::new();
    let is_over = read_all(&mut reader, &mut told, deadline);
    if !is_over {
        // SAFETY: our child, which nobody has waited for.
        unsafe { libc::kill(child, libc::SIGKILL) };
    }
    let end = reap(child);
    forget_signal();
    Ok(Outcome { told, end: if is_over { end } else { End::Late } })
}

/// Reads to the end; `false` if that doesn't come in time.
fn read_all(reader: &mut UnixStream, told: &mut Vec<u8>, deadline: Option<Instant>) -> bool {
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        // A time of 0 would be none.
        if left.is_some_and(|left| left.is_zero()) || reader.set_read_timeout(left).is_err() {
            return false;
        }
        match reader.read(&mut buffer) {
            Ok(0) => return true,
            Ok(n) => told.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

fn reap(child: libc::pid_t) -> End {
    let mut status = 0;
    loop {
        // SAFETY: waits for the child made above.
        if unsafe { libc::waitpid(child, &mut status, 0) } == child {
            break;
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return End::Unknown;
        }
    }
    if libc::WIFEXITED(status) {
        End::Status(libc::WEXITSTATUS(status))
    } else {
        End::Signal(libc::WTERMSIG(status))
    }
}

/// Takes back the signal of the child's end, which waits for being unblocked: nginx would log it.
/// If a worker has ended meanwhile, the signal may be for both.
fn forget_signal() {
    // SAFETY: plain libc calls on values of our own. WNOWAIT leaves the worker for nginx to reap.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        if libc::sigtimedwait(set.as_ptr(), ptr::null_mut(), &at_once) != libc::SIGCHLD {
            return;
        }
        let mut ended: libc::siginfo_t = MaybeUninit::zeroed().assume_init();
        let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        if libc::waitid(libc::P_ALL, 0, &mut ended, how) == 0 && ended.si_pid() != 0 {
            libc::kill(libc::getpid(), libc::SIGCHLD);
        }
    }
}
