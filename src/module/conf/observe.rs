//! Observes directives of other modules inside `upstream`, to know the load balancing method.
//!
//! nginx keeps only a function of the method, not its name. So while it reads `http`, the other
//! modules have copies of their tables of directives with [`observe`] as handler: it runs the
//! module's own handler and notes whether that has set `init_upstream`. The `commands` of an
//! `ngx_module_t` can be replaced, because nginx itself writes to that struct; the tables may be
//! read-only.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::ptr::{self, NonNull};

use nginx_consul_core::directives::methods::Seen;
use nginx_sys::{
    NGX_HTTP_MODULE, NGX_HTTP_UPS_CONF, ngx_command_t, ngx_conf_t, ngx_module_t,
    ngx_pool_cleanup_add,
};

use super::srv::SrvConf;
use crate::ffi::{self, CONF_ERROR, CONF_OK, Cf, catch_panic};

/// A module whose table is replaced.
struct Replaced {
    module: *mut ngx_module_t,
    table: *mut ngx_command_t,
    /// From `Box::leak()`: nginx reads it meanwhile.
    copy: NonNull<[ngx_command_t]>,
}

thread_local! {
    /// nginx reads configurations in its main thread.
    static REPLACED: RefCell<Vec<Replaced>> = const { RefCell::new(Vec::new()) };
}

/// Observes directives from here on until [`end`], or until nginx has done with the configuration,
/// be it with an error. `false` if memory is short.
pub(super) fn begin(cf: Cf<'_>) -> bool {
    end();
    // SAFETY: nginx destroys the temporary pool once it has read the configuration, or has failed to,
    // and before it unloads any module.
    unsafe {
        let cleanup = ngx_pool_cleanup_add((*cf.as_ptr()).temp_pool, 0);
        let Some(cleanup) = cleanup.as_mut() else { return false };
        cleanup.handler = Some(end_with_pool);
    }
    for at in 0.. {
        // SAFETY: a cycle's list of modules ends with null. nginx reads it in this thread alone.
        let Some(module) = (unsafe { (*(*cf.cycle()).modules.add(at)).as_mut() }) else { break };
        if let Some(replaced) = replace(module) {
            REPLACED.with_borrow_mut(|all| all.push(replaced));
        }
    }
    true
}

/// # Safety
///
/// Called by a pool only.
unsafe extern "C" fn end_with_pool(_: *mut c_void) {
    catch_panic((), end);
}

/// Restores the modules' own tables.
pub(super) fn end() {
    for replaced in REPLACED.take() {
        // SAFETY: a module that was loaded when the configuration was begun, and still is; after
        // this nginx reads its own table.
        unsafe {
            (*replaced.module).commands = replaced.table;
            drop(Box::from_raw(replaced.copy.as_ptr()));
        }
    }
}

/// Replaces the table of a module that has directives for `upstream`.
fn replace(module: &mut ngx_module_t) -> Option<Replaced> {
    let table = module.commands;
    let is_own = ptr::eq(module, ffi::module());
    if is_own || module.type_ != NGX_HTTP_MODULE as usize || table.is_null() {
        return None;
    }
    // SAFETY: a table of commands ends with one without a name.
    let own = unsafe {
        let count = (0..).take_while(|&n| (*table.add(n)).name.len != 0).count();
        std::slice::from_raw_parts(table, count + 1)
    };
    if !own.iter().any(|command| command.type_ & NGX_HTTP_UPS_CONF as usize != 0) {
        return None;
    }
    let mut copy: Box<[ngx_command_t]> = own.into();
    copy.iter_mut().filter(|command| command.set.is_some()).for_each(|command| {
        command.set = Some(observe);
    });
    let copy = NonNull::from(Box::leak(copy));
    module.commands = copy.cast().as_ptr();
    Some(Replaced { module, table, copy })
}

/// The module of a copied command, and the original command.
fn own_command(command: *mut ngx_command_t) -> Option<(*mut ngx_module_t, *mut ngx_command_t)> {
    REPLACED.with_borrow(|replaced| {
        replaced.iter().find_map(|replaced| {
            let copy: *mut ngx_command_t = replaced.copy.cast().as_ptr();
            let mut numbers = 0..replaced.copy.len();
            let number = numbers.find(|&number| ptr::eq(copy.wrapping_add(number), command))?;
            // SAFETY: the copy has as many commands as the table.
            Some((replaced.module, unsafe { replaced.table.add(number) }))
        })
    })
}

/// The handler of all directives of other modules with some for `upstream`.
///
/// # Safety
///
/// nginx calls it as it calls any directive handler.
unsafe extern "C" fn observe(
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    catch_panic(CONF_ERROR, || {
        let Some((module, own)) = own_command(command) else { return CONF_ERROR };
        // SAFETY: a command of a module that is loaded.
        let Some(set) = (unsafe { (*own).set }) else { return CONF_ERROR };
        // SAFETY: what nginx passes to a handler, for the handler of this very command.
        let set_it = || unsafe { set(cf, own, conf) };
        // SAFETY: nginx passes the configuration to a handler, within `http`.
        let (of, block) = unsafe { (Cf::new(cf), (*cf).cmd_type) };
        let upstream = (block == NGX_HTTP_UPS_CONF as usize).then(|| of.upstream()).flatten();
        let Some(upstream) = upstream else { return set_it() };
        // The handler may read further words.
        let (words, place) = (of.words().into_iter().map(text).collect(), of.place());
        // SAFETY: the block that is being read.
        let init = || unsafe { upstream.as_ref() }.peer.init_upstream.map(|init| init as usize);
        let before = init();
        let done = set_it();
        if done == CONF_OK {
            let name = module_name(module);
            let module = (&*name, &*file_of(set as *const c_void));
            let has_set_method = before != init();
            // SAFETY: a block that is being read has a SrvConf, which nobody else uses now.
            let conf =
                unsafe { &mut *ffi::conf_of::<SrvConf>(upstream.as_ref().srv_conf, ffi::module()) };
            conf.directives.note(Seen { words, place, module, has_set_method });
        }
        done
    })
}

fn module_name(module: *mut ngx_module_t) -> String {
    // SAFETY: a module that is loaded; its name is null, or ends with NUL.
    let name = unsafe {
        match (*module).name {
            name if name.is_null() => c"",
            name => CStr::from_ptr(name),
        }
    };
    name.to_string_lossy().into_owned()
}

fn text(word: &[u8]) -> String {
    String::from_utf8_lossy(word).into_owned()
}

/// The program or library that a function is in.
pub(super) fn file_of(function: *const c_void) -> String {
    ffi::object_of(function).map_or_else(|| "?".to_owned(), |object| object.file)
}
