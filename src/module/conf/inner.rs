//! A balancing method that stands before `consul_dynamic` in its block.

use std::fs;

use nginx_sys::{ngx_http_upstream_init_round_robin, ngx_http_upstream_srv_conf_t};

use super::args::Parsed;
use crate::ffi::bytes;
use crate::peer::{InitUpstream, is_nginxs_own};

/// What picks in place of `consul_balance`.
#[derive(Clone)]
pub(crate) struct Inner {
    pub(crate) init: InitUpstream,
    /// Its peers are those of nginx's round robin.
    pub(crate) is_nginxs_own: bool,
    /// It is within nginx's `sticky`.
    pub(crate) is_sticky: bool,
    /// Its lines in the configuration, for people.
    pub(crate) name: String,
    /// File and line of `consul_dynamic`.
    pub(crate) place: String,
}

impl Inner {
    pub(crate) fn round_robin() -> Inner {
        let init = ngx_http_upstream_init_round_robin;
        let (name, place) = (String::new(), String::new());
        Inner { init, is_nginxs_own: true, is_sticky: false, name, place }
    }

    /// The one that has taken the block so far; `file` and `line` are where `consul_dynamic` is.
    pub(super) fn of(
        upstream: &ngx_http_upstream_srv_conf_t,
        file: &str,
        line: usize,
    ) -> Parsed<Option<Inner>> {
        let Some(init) = upstream.peer.init_upstream else { return Ok(None) };
        if cfg!(not(nginx_keepalive_anywhere)) && has_keepalive(upstream) {
            return Err("must stand before \"keepalive\"".into());
        }
        let is_nginxs_own = is_nginxs_own(init);
        let name = lines(upstream, file, line).unwrap_or_else(|| {
            if is_nginxs_own { "nginx's own" } else { "another module's" }.to_owned()
        });
        let is_sticky = has_sticky(upstream);
        let place = format!("{file}:{line}");
        Ok(Some(Inner { init, is_nginxs_own, is_sticky, name, place }))
    }
}

/// The first word of a module's configuration of the block; 0 if nginx lacks the module. Modules
/// are found by their names.
fn first_word(upstream: &ngx_http_upstream_srv_conf_t, module: &std::ffi::CStr) -> usize {
    // SAFETY: the symbol, if there is one, is an ngx_module_t, and its element of `srv_conf` is
    // the configuration that its create_srv_conf() made: more than a word.
    unsafe {
        let module = libc::dlsym(libc::RTLD_DEFAULT, module.as_ptr());
        let module = module.cast::<nginx_sys::ngx_module_t>();
        if module.is_null() {
            return 0;
        }
        crate::ffi::conf_of::<usize>(upstream.srv_conf, module).as_ref().copied().unwrap_or(0)
    }
}

/// Whether `keepalive` stands in the block: its configuration begins with the number of
/// connections (`max_cached`). Asked in time, see [`UNSET`].
pub(crate) fn has_keepalive(upstream: &ngx_http_upstream_srv_conf_t) -> bool {
    !matches!(first_word(upstream, c"ngx_http_upstream_keepalive_module"), 0 | UNSET)
}

/// `NGX_CONF_UNSET_UINT`: since nginx 1.29.7 `max_cached` of a block without `keepalive`, until the
/// `init_main_conf` of its module; 0 is `keepalive 0`, which is off.
const UNSET: usize = usize::MAX;

/// Whether `sticky` stands in the block: its configuration begins with the method it wraps
/// (`original_init_upstream`, since nginx 1.29.6).
pub(super) fn has_sticky(upstream: &ngx_http_upstream_srv_conf_t) -> bool {
    first_word(upstream, c"ngx_http_upstream_sticky_module") != 0
}

/// The block's directives before `consul_dynamic`, but for those that don't pick, as they are
/// written. `None` if they are not to be found, since a part of the block is included.
fn lines(upstream: &ngx_http_upstream_srv_conf_t, file: &str, line: usize) -> Option<String> {
    // SAFETY: the block's name and that of its file live in the pool of the configuration.
    let (host, block_file) = unsafe {
        let name = std::ffi::CStr::from_ptr(upstream.file_name.cast());
        (String::from_utf8_lossy(bytes(&upstream.host)), name.to_string_lossy())
    };
    let first = upstream.line.checked_sub(1)?;
    if file != block_file || line <= first {
        return None;
    }
    let text = fs::read_to_string(file).ok()?;
    let lines = text.lines().skip(first).take(line - first);
    let text: Vec<&str> = lines.map(|line| line.split('#').next().unwrap_or(line)).collect();
    let text = text.join(" ");
    let block = text.split_once(&*host)?.1.split_once('{')?.1;
    let before = block.split("consul_dynamic").next()?;
    let statements = before.split(';').map(|s| s.split_whitespace().collect::<Vec<_>>().join(" "));
    let picks = |statement: &String| {
        let word = statement.split(' ').next().unwrap_or("");
        let others = ["", "server", "zone", "include", "state", "queue", "ntlm"];
        let families = ["keepalive", "resolver", "consul_"];
        !others.contains(&word) && !families.iter().any(|family| word.starts_with(family))
    };
    let found: Vec<String> = statements.filter(picks).collect();
    (!found.is_empty()).then(|| found.join("; ").chars().take(200).collect())
}
