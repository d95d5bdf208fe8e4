//! The state file's directory: the workers, which have dropped root privileges, must be able to
//! write to it.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

use nginx_sys::{NGX_LOG_ERR, NGX_LOG_WARN};

use super::fork::SingleThread;
use super::workers_user::{Access, Workers};
use crate::ffi::{Log, process};
use nginx_consul_core::table_writer::StateFile;

/// In the master, once the configuration is read: creates a missing directory, owned by the
/// workers' user as nginx does for its cache paths; never changes an existing one. Warns if the
/// workers can't write to it. Under `nginx -t` it only checks.
pub(crate) fn prepare(
    state: &StateFile,
    workers: &Workers,
    (single, log): (SingleThread, Log<'_>),
) {
    if state.path.is_dir() {
        let name = state.path.display();
        ngx::ngx_log_error!(
            NGX_LOG_WARN,
            log.as_ptr(),
            "consul: \"{name}\" of consul_state is a directory: nothing will be saved"
        );
        return;
    }
    let directory = state.directory();
    if !directory.exists() {
        if process::is_test() {
            return;
        }
        if let Err(error) = make(directory, workers) {
            let name = directory.display();
            ngx::ngx_log_error!(
                NGX_LOG_ERR,
                log.as_ptr(),
                "consul: directory \"{name}\" of consul_state can't be made ({error})"
            );
            return;
        }
    }
    if let Err(error) = workers.may(single, directory, Access::MakeFiles) {
        let (name, who) = (directory.display(), workers.name());
        ngx::ngx_log_error!(
            NGX_LOG_WARN,
            log.as_ptr(),
            "consul: directory \"{name}\" of consul_state can't be written by {who} ({error}): \
             nothing will be saved"
        );
    }
}

fn make(directory: &Path, workers: &Workers) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(directory)?;
    workers.owner().map_or(Ok(()), |user| chown(directory, Some(user), None))
}
