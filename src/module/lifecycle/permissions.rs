//! The files that worker 0 needs to query Consul: it reads the token's file again when that
//! changes, and connects to Consul's unix sockets.

use std::collections::BTreeSet;
use std::path::Path;

use nginx_consul_core::consul::server::Address;
use nginx_consul_core::watch::{Plan, Token};
use nginx_sys::NGX_LOG_WARN;

use super::fork::SingleThread;
use super::workers_user::{Access, Workers};
use crate::ffi::Log;

/// In the master, once the configuration is read: warns about files that the master may use and the
/// workers may not.
pub(crate) fn check(plan: &Plan, workers: &Workers, (single, log): (SingleThread, Log<'_>)) {
    let (mut files, mut sockets) = (BTreeSet::new(), BTreeSet::new());
    for target in &plan.targets {
        if let Some(Token::File { path, .. }) = &target.endpoint.token {
            files.insert(path);
        }
        for server in &target.endpoint.servers {
            if let Address::Unix(path) = server.address() {
                sockets.insert(path);
            }
        }
    }
    let who = workers.name();
    let refusal = |path: &Path, access| workers.may(single, path, access).err();
    for path in files {
        if let Some(error) = refusal(path, Access::Read) {
            let (path, from) = (path.display(), token_source(path));
            ngx::ngx_log_error!(
                NGX_LOG_WARN,
                log.as_ptr(),
                "consul: file \"{path}\" of {from} can't be read by {who} ({error}): a token \
                 that replaces the present one will not be used until nginx is reloaded"
            );
        }
    }
    // A missing socket means that Consul does not run; the watcher logs that when it connects.
    for path in sockets.into_iter().filter(|path| path.exists()) {
        if let Some(error) = refusal(path, Access::Connect) {
            let path = path.display();
            ngx::ngx_log_error!(
                NGX_LOG_WARN,
                log.as_ptr(),
                "consul: socket \"{path}\" of consul_server can't be used by {who} ({error}): \
                 no change will be seen through it"
            );
        }
    }
}

/// The directive or variable that names a token's file.
fn token_source(path: &Path) -> &'static str {
    const VARIABLE: &str = "CONSUL_HTTP_TOKEN_FILE";
    let is_variable = std::env::var_os(VARIABLE).is_some_and(|value| Path::new(&value) == path);
    if is_variable { VARIABLE } else { "consul_token_file" }
}
