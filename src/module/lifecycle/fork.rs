//! Short-lived child processes of nginx's master that nginx does not know.

use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::time::{Duration, Instant};

use libc::c_int;

use super::signals::SignalsBlocked;

/// What became of a child.
pub(crate) struct Outcome {
    /// What it wrote.
    pub(crate) output: Vec<u8>,
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
    /// Unknown: nginx was started with SIGCHLD ignored, so the system reaps its children.
    Unknown,
}

/// Proof that the process has no other thread, so that no lock is held in a child.
#[derive(Clone, Copy)]
pub(crate) struct SingleThread(());

impl SingleThread {
    /// # Safety
    ///
    /// The process has no other thread as long as this is used, or none that holds a lock which a
    /// child needs.
    pub(crate) unsafe fn new() -> SingleThread {
        SingleThread(())
    }
}

/// Runs `work` in a child process and waits until it exits, or kills it after `timeout`. Returns
/// what `work` has written and the status that it has returned. `work` must not call functions of
/// nginx that use files or sockets: the parent shares them.
///
/// # Errors
///
/// The socket pair or the process can't be made.
pub(crate) fn run(
    _: SingleThread,
    timeout: Option<Duration>,
    work: impl FnOnce(&mut UnixStream) -> u8,
) -> io::Result<Outcome> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let (mut reader, mut writer) = UnixStream::pair()?;
    // nginx's own handlers must not see this child, nor signals in the child.
    let blocked = SignalsBlocked::new();
    let parent = std::process::id();
    // SAFETY: the child finds no lock held that it needs, as there is no other thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let status = match ends_with(parent) {
            true => catch_unwind(AssertUnwindSafe(|| work(&mut writer))).unwrap_or(1),
            false => 1,
        };
        // SAFETY: nothing else of the parent's is run in its child.
        unsafe { libc::_exit(status.into()) };
    }
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    // A start can be ended while it waits.
    blocked.let_ends_through();
    // From here on the stream ends with the child.
    drop(writer);
    let mut output = Vec::new();
    let is_over = read_all(&mut reader, &mut output, deadline);
    if !is_over {
        // SAFETY: our child, which nobody has waited for.
        unsafe { libc::kill(child, libc::SIGKILL) };
    }
    let end = reap(child);
    forget_signal();
    Ok(Outcome { output, end: if is_over { end } else { End::Late } })
}

/// The kernel kills this process when its parent exits; `false` if the parent has exited already.
fn ends_with(parent: u32) -> bool {
    // SAFETY: says what signal this process is to get, and reads no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    std::os::unix::process::parent_id() == parent
}

/// Reads to the end; `false` on a timeout.
fn read_all(reader: &mut UnixStream, output: &mut Vec<u8>, deadline: Option<Instant>) -> bool {
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        // A timeout of 0 would mean no timeout.
        if left.is_some_and(|left| left.is_zero()) || reader.set_read_timeout(left).is_err() {
            return false;
        }
        match reader.read(&mut buffer) {
            Ok(0) => return true,
            Ok(n) => output.extend(buffer.iter().take(n)),
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

/// Consumes the pending SIGCHLD of this child, which nginx would log. If a worker has exited
/// meanwhile, the signal may stand for both.
fn forget_signal() {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: a set of our own, which sigemptyset() fills.
    let set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        set.assume_init()
    };
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: reads the set and the time; null: the information about the signal is not wanted.
    if unsafe { libc::sigtimedwait(&set, ptr::null_mut(), &at_once) } != libc::SIGCHLD {
        return;
    }
    // WNOWAIT leaves the worker for nginx to reap.
    let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    let mut ended = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: writes what has ended; zeros, which are a valid siginfo_t too, if nothing has.
    let (rc, ended) =
        unsafe { (libc::waitid(libc::P_ALL, 0, ended.as_mut_ptr(), how), ended.assume_init()) };
    // SAFETY: the system has filled what it says of a child.
    if rc == 0 && unsafe { ended.si_pid() } != 0 {
        // SAFETY: a signal to ourselves, whose handler is nginx's.
        unsafe { libc::kill(libc::getpid(), libc::SIGCHLD) };
    }
}
