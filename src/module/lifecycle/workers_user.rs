//! As whom the workers run, and what they may do to a file: they have dropped root, the master,
//! which reads the configuration, has not.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nginx_sys::{ngx_core_conf_t, ngx_core_module, ngx_cycle_t};

use crate::lifecycle::fork::{self, End};

/// Whoever the workers of a configuration run as.
pub(crate) struct Workers {
    /// `None`: as this process does.
    user: Option<User>,
}

/// The user of the `user` directive, or the one nginx was built with.
struct User {
    name: CString,
    id: libc::uid_t,
    group: libc::gid_t,
    groups: Vec<libc::gid_t>,
}

/// What a worker wants to do; the value is that of `access(2)`.
#[derive(Clone, Copy)]
pub(crate) enum Access {
    /// Read a file.
    Read = libc::R_OK as isize,
    /// Connect to a socket.
    Connect = libc::W_OK as isize,
    /// Make and rename files in a directory.
    MakeFiles = (libc::W_OK | libc::X_OK) as isize,
}

impl Workers {
    /// The workers of a cycle.
    ///
    /// # Safety
    ///
    /// `cycle` is one whose configuration was read.
    pub(crate) unsafe fn of(cycle: *mut ngx_cycle_t) -> Workers {
        // SAFETY: the caller's promise; the core module always has a configuration.
        let core = unsafe {
            let core = *(*cycle).conf_ctx.add(ngx_core_module.index);
            &*core.cast::<ngx_core_conf_t>()
        };
        // SAFETY: a plain libc call.
        let is_root = unsafe { libc::geteuid() } == 0;
        // Without a master nobody drops root.
        Workers { user: (is_root && core.master != 0).then(|| User::of(core)) }
    }

    /// For a message: the user's name, or `nginx` if the workers run as this process does.
    pub(crate) fn name(&self) -> Cow<'_, str> {
        self.user.as_ref().map_or("nginx".into(), |user| user.name.to_string_lossy())
    }

    /// Whom a file made for them has to belong to, if not to this process' user.
    pub(crate) fn owner(&self) -> Option<libc::uid_t> {
        self.user.as_ref().map(|user| user.id)
    }

    /// Whether they may do that. Only a process of that user knows for sure: there are groups,
    /// access lists and read-only mounts.
    ///
    /// # Errors
    ///
    /// What the system would tell them; or the check itself can't be made.
    ///
    /// # Safety
    ///
    /// As for [`fork::run`].
    pub(crate) unsafe fn may(&self, path: &Path, access: Access) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: a NUL-terminated string.
        let try_it = || unsafe { libc::access(path.as_ptr(), access as libc::c_int) } == 0;
        let Some(user) = &self.user else {
            return if try_it() { Ok(()) } else { Err(io::Error::last_os_error()) };
        };
        // SAFETY: the caller's promise; access() and what become_it() calls are plain system calls.
        unsafe { in_child(|| user.become_it() && try_it()) }
    }
}

impl User {
    fn of(core: &ngx_core_conf_t) -> User {
        let (id, group) = (core.user, core.group);
        // SAFETY: null or a NUL-terminated string in the configuration's pool.
        let name = (!core.username.is_null()).then(|| unsafe { CStr::from_ptr(core.username) });
        let name = name.unwrap_or(c"nginx").to_owned();
        let mut count: libc::c_int = 64;
        let mut groups = vec![group; 64];
        // SAFETY: the list has room for `count` groups, and `count` says how many there are.
        // What doesn't fit decides nothing but a warning.
        unsafe { libc::getgrouplist(name.as_ptr(), group, groups.as_mut_ptr(), &mut count) };
        groups.truncate(usize::try_from(count).unwrap_or(0));
        User { name, id, group, groups }
    }

    /// Gives root up for good, as a worker does.
    fn become_it(&self) -> bool {
        // SAFETY: plain libc calls; the list of groups lives as long as `self`.
        unsafe {
            libc::setgroups(self.groups.len(), self.groups.as_ptr()) == 0
                && libc::setgid(self.group) == 0
                && libc::setuid(self.id) == 0
        }
    }
}

/// Runs `work` in a short-lived fork. If it fails, the error is the fork's `errno`.
///
/// # Safety
///
/// As for [`fork::run`].
unsafe fn in_child(work: impl FnOnce() -> bool) -> io::Result<()> {
    let work = |_: &mut UnixStream| {
        // SAFETY: the C library's own, of this thread.
        if work() { 0 } else { unsafe { *libc::__errno_location() as u8 } }
    };
    // SAFETY: the caller's promise.
    match unsafe { fork::run(None, work) }?.end {
        End::Status(0) => Ok(()),
        End::Status(errno) => Err(io::Error::from_raw_os_error(errno)),
        End::Signal(_) | End::Late => Err(io::Error::other("the check was killed")),
        // Nothing that would be a reason to warn.
        End::Unknown => Ok(()),
    }
}
