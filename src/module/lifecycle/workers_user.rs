//! The user that the workers run as, and its access to files: the workers have dropped root
//! privileges, the master, which reads the configuration, has not.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nginx_sys::{ngx_core_conf_t, ngx_core_module, ngx_cycle_t};

use super::fork::{self, End, SingleThread};

/// The user that the workers of a configuration run as.
pub(crate) struct Workers {
    /// `None`: the user of this process.
    user: Option<User>,
}

/// The user of the `user` directive, or the one nginx was built with.
struct User {
    name: CString,
    id: libc::uid_t,
    group: libc::gid_t,
    groups: Vec<libc::gid_t>,
}

/// An access to a file; its value is the mode of `access(2)`.
#[derive(Clone, Copy)]
pub(crate) enum Access {
    /// Read a file.
    Read = libc::R_OK as isize,
    /// Connect to a socket.
    Connect = libc::W_OK as isize,
    /// Create and rename files in a directory.
    MakeFiles = (libc::W_OK | libc::X_OK) as isize,
}

impl Workers {
    /// The workers of a cycle.
    ///
    /// # Safety
    ///
    /// `cycle` is one whose configuration was read.
    pub(crate) unsafe fn of(cycle: *mut ngx_cycle_t) -> Workers {
        // SAFETY: the core module has a configuration in each cycle (the caller's promise).
        let core = unsafe {
            let core = *(*cycle).conf_ctx.add(ngx_core_module.index);
            &*core.cast::<ngx_core_conf_t>()
        };
        // SAFETY: asks who this process is, and reads no memory.
        let is_root = unsafe { libc::geteuid() } == 0;
        // Without a master process no worker drops root privileges.
        Workers { user: (is_root && core.master != 0).then(|| User::of(core)) }
    }

    /// For a message: the user's name, or `nginx` if the workers run as this process does.
    pub(crate) fn name(&self) -> Cow<'_, str> {
        self.user.as_ref().map_or("nginx".into(), |user| user.name.to_string_lossy())
    }

    /// The owner of files that the master creates for them, if it is not the user of this process.
    pub(crate) fn owner(&self) -> Option<libc::uid_t> {
        self.user.as_ref().map(|user| user.id)
    }

    /// Whether they have this access. A process of that user checks it: groups, access lists and
    /// read-only mounts count too.
    ///
    /// # Errors
    ///
    /// The error that the workers would get, or that of the check itself.
    pub(crate) fn may(&self, single: SingleThread, path: &Path, access: Access) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: reads the path, which ends with NUL.
        let try_it = || unsafe { libc::access(path.as_ptr(), access as libc::c_int) } == 0;
        let Some(user) = &self.user else {
            return if try_it() { Ok(()) } else { Err(io::Error::last_os_error()) };
        };
        in_child(single, || user.become_it() && try_it())
    }
}

impl User {
    fn of(core: &ngx_core_conf_t) -> User {
        let (id, group) = (core.user, core.group);
        // SAFETY: it ends with NUL, in the configuration's pool.
        let name = (!core.username.is_null()).then(|| unsafe { CStr::from_ptr(core.username) });
        let name = name.unwrap_or(c"nginx").to_owned();
        let mut count: libc::c_int = 64;
        let mut groups = vec![group; 64];
        // SAFETY: the list has room for `count` groups, and `count` says how many there are.
        // Groups that don't fit can only cause a wrong warning.
        unsafe { libc::getgrouplist(name.as_ptr(), group, groups.as_mut_ptr(), &mut count) };
        groups.truncate(usize::try_from(count).unwrap_or(0));
        User { name, id, group, groups }
    }

    /// Drops root privileges, as a worker does.
    fn become_it(&self) -> bool {
        // SAFETY: setgroups() reads the list, and the others no memory.
        unsafe {
            libc::setgroups(self.groups.len(), self.groups.as_ptr()) == 0
                && libc::setgid(self.group) == 0
                && libc::setuid(self.id) == 0
        }
    }
}

/// Runs `work` in a short-lived fork. If it fails, the error is the fork's `errno`.
fn in_child(single: SingleThread, work: impl FnOnce() -> bool) -> io::Result<()> {
    let work = |_: &mut UnixStream| match work() {
        true => 0,
        false => io::Error::last_os_error().raw_os_error().unwrap_or_default() as u8,
    };
    match fork::run(single, None, work)?.end {
        End::Status(0) => Ok(()),
        End::Status(errno) => Err(io::Error::from_raw_os_error(errno)),
        End::Signal(_) | End::Late | End::Dropped => Err(io::Error::other("the check was killed")),
        // That is no reason to warn.
        End::Unknown => Ok(()),
    }
}
