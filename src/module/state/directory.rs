//! The state file's directory: workers, which have dropped root, must be able to write it.

use std::ffi::{CStr, CString};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

use nginx_sys::{
    NGX_LOG_ERR, NGX_LOG_WARN, ngx_core_conf_t, ngx_core_module, ngx_cycle_t, ngx_log_t,
};

use super::{StateFile, parent};
use crate::watcher::SignalsBlocked;

/// What is certain to be wrong while the configuration is read.
pub(super) fn check_path(path: &Path) -> Result<(), String> {
    if path.is_dir() {
        return Err("it is a directory".to_owned());
    }
    let directory = parent(path);
    match fs::metadata(directory) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(format!("\"{}\" is no directory", directory.display())),
        // The last one is made, as nginx does for its cache paths.
        Err(e) if e.kind() == io::ErrorKind::NotFound && parent(directory).is_dir() => Ok(()),
        Err(e) => Err(format!("directory \"{}\": {e}", directory.display())),
    }
}

/// In the master, with all configuration read: makes the directory if it is missing, owned by the
/// workers' user as nginx does for its cache paths; never changes one that is there. Warns if the
/// workers can't write it. Under `nginx -t` it only looks.
///
/// # Safety
///
/// `cycle` is the one that nginx has just made, its configuration complete; called from the
/// process's only thread.
pub(crate) unsafe fn prepare(cycle: *mut ngx_cycle_t, state: &StateFile, is_test: bool) {
    // SAFETY: the caller's promise; the core module always has a configuration.
    let (core, log) = unsafe {
        let core = *(*cycle).conf_ctx.add(ngx_core_module.index);
        (&*core.cast::<ngx_core_conf_t>(), (*cycle).log)
    };
    // SAFETY: a plain libc call.
    let is_root = unsafe { libc::geteuid() } == 0;
    // Without a master nobody drops root.
    let user = (is_root && core.master != 0).then(|| User::of(core));
    let directory = parent(&state.path);
    if !directory.exists() {
        if is_test {
            return;
        }
        if let Err(error) = make(directory, user.as_ref()) {
            say(log, NGX_LOG_ERR, directory, &format!("can't be made ({error})"));
            return;
        }
    }
    if let Err(error) = can_write(directory, user.as_ref()) {
        let who = user.as_ref().map_or("nginx".into(), |user| user.name.to_string_lossy());
        let why = format!("can't be written by {who} ({error}): nothing will be saved");
        say(log, NGX_LOG_WARN, directory, &why);
    }
}

fn say(log: *mut ngx_log_t, level: u32, directory: &Path, what: &str) {
    let directory = directory.display();
    ngx::ngx_log_error!(level, log, "consul: directory \"{directory}\" of consul_state {what}");
}

/// As whom the workers run.
struct User {
    name: CString,
    id: libc::uid_t,
    group: libc::gid_t,
    groups: Vec<libc::gid_t>,
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
}

fn make(directory: &Path, user: Option<&User>) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(directory)?;
    user.map_or(Ok(()), |user| chown(directory, Some(user.id), None))
}

/// Whether the user may make files in a directory. Only a process of that user knows for sure:
/// there are groups, access lists and read-only mounts.
fn can_write(directory: &Path, user: Option<&User>) -> io::Result<()> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    let path = path.as_ptr();
    let Some(user) = user else {
        // SAFETY: a NUL-terminated string.
        return match unsafe { libc::access(path, libc::W_OK | libc::X_OK) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
    };
    // nginx's own handler is not to see this child.
    let _blocked = SignalsBlocked::new();
    // SAFETY: the child calls nothing but what is safe after fork() in any thread, and ends
    // without running anything of the parent's.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above; what the pointers are to was made before the fork.
        unsafe {
            let dropped = libc::setgroups(user.groups.len(), user.groups.as_ptr()) == 0
                && libc::setgid(user.group) == 0
                && libc::setuid(user.id) == 0;
            let may = dropped && libc::access(path, libc::W_OK | libc::X_OK) == 0;
            libc::_exit(if may { 0 } else { *libc::__errno_location() & 0xff });
        }
    }
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut status = 0;
    loop {
        // SAFETY: waits for the child made above.
        let ended = unsafe { libc::waitpid(child, &mut status, 0) };
        if ended >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break;
        }
    }
    match libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::other("the check was killed")),
    }
}
