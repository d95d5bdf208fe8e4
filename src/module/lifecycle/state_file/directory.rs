//! The state file's directory: workers, which have dropped root, must be able to write it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

use nginx_sys::{NGX_LOG_ERR, NGX_LOG_WARN, ngx_log_t};

use super::{StateFile, parent};
use crate::lifecycle::workers_user::{Access, Workers};

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
/// As for [`Workers::may`]; `log` is that of the cycle.
pub(crate) unsafe fn prepare(
    state: &StateFile,
    workers: &Workers,
    is_test: bool,
    log: *mut ngx_log_t,
) {
    let directory = parent(&state.path);
    if !directory.exists() {
        if is_test {
            return;
        }
        if let Err(error) = make(directory, workers) {
            let name = directory.display();
            ngx::ngx_log_error!(
                NGX_LOG_ERR,
                log,
                "consul: directory \"{name}\" of consul_state can't be made ({error})"
            );
            return;
        }
    }
    // SAFETY: the caller's promise.
    if let Err(error) = unsafe { workers.may(directory, Access::MakeFiles) } {
        let (name, who) = (directory.display(), workers.name());
        ngx::ngx_log_error!(
            NGX_LOG_WARN,
            log,
            "consul: directory \"{name}\" of consul_state can't be written by {who} ({error}): \
             nothing will be saved"
        );
    }
}

fn make(directory: &Path, workers: &Workers) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(directory)?;
    workers.owner().map_or(Ok(()), |user| chown(directory, Some(user), None))
}
