//! What a directive's handler, and the hooks around the reading of the configuration, get of nginx.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use nginx_sys::{
    ngx_addr_t, ngx_conf_full_name, ngx_conf_t, ngx_cycle_t, ngx_http_compile_complex_value,
    ngx_http_compile_complex_value_t, ngx_http_complex_value_t, ngx_http_conf_ctx_t,
    ngx_http_core_loc_conf_t, ngx_http_core_module, ngx_http_upstream_module,
    ngx_http_upstream_srv_conf_t, ngx_pcalloc, ngx_pool_t, sockaddr_in,
};

use super::codes::OK;
use super::log::Log;
use super::module::conf_of;
use super::text::{bytes, elements, str_over};

/// The configuration that nginx reads, within `http`, as it passes it to a handler or a hook. What
/// is found in it lives as long as its cycle.
#[derive(Clone, Copy)]
pub(crate) struct Cf<'c> {
    cf: NonNull<ngx_conf_t>,
    life: PhantomData<&'c ngx_conf_t>,
}

/// A struct that is valid with all zeros, as nginx makes its own.
///
/// # Safety
///
/// It is.
pub(crate) unsafe trait Zeroed {}

// SAFETY: nginx makes it by ngx_pcalloc().
unsafe impl Zeroed for ngx_addr_t {}
// SAFETY: numbers.
unsafe impl Zeroed for sockaddr_in {}
// SAFETY: nginx makes it by ngx_pcalloc() or ngx_memzero().
unsafe impl Zeroed for ngx_http_complex_value_t {}

/// What a relative path of a directive starts at.
#[derive(Clone, Copy)]
pub(crate) enum Base {
    /// `--prefix`, or `-p`.
    Prefix = 0,
    /// The directory of `nginx.conf`.
    Configuration = 1,
}

/// Memory is short.
#[derive(Debug, thiserror::Error)]
#[error("ran out of memory")]
pub(crate) struct NoMemory;

impl<'c> Cf<'c> {
    /// # Safety
    ///
    /// nginx has passed it to a directive's handler or a hook, within `http`, that runs as long as
    /// `'c`.
    pub(crate) unsafe fn new(cf: *mut ngx_conf_t) -> Cf<'c> {
        // SAFETY: nginx passes no null (the caller's promise).
        Cf { cf: unsafe { NonNull::new_unchecked(cf) }, life: PhantomData }
    }

    pub(crate) fn as_ptr(self) -> *mut ngx_conf_t {
        self.cf.as_ptr()
    }

    pub(crate) fn log(self) -> Log<'c> {
        // SAFETY: nginx sets a log while it reads a configuration (the promise of new()).
        unsafe { Log::new((*self.as_ptr()).log) }
    }

    /// The cycle that is being made.
    pub(crate) fn cycle(self) -> *mut ngx_cycle_t {
        // SAFETY: the configuration is there as long as 'c (the promise of new()).
        unsafe { (*self.as_ptr()).cycle }
    }

    /// The configuration's.
    pub(crate) fn pool(self) -> *mut ngx_pool_t {
        // SAFETY: the configuration is there as long as 'c (the promise of new()).
        unsafe { (*self.as_ptr()).pool }
    }

    /// A struct of nginx's in the configuration's pool, all zeros; `None` if memory is short.
    pub(crate) fn zeroed<T: Zeroed>(self) -> Option<&'c mut T> {
        const { assert!(align_of::<T>() <= nginx_sys::NGX_ALIGNMENT) };
        // SAFETY: the pool is there, and gives zeroed memory, which is a T, or null.
        unsafe { ngx_pcalloc(self.pool(), size_of::<T>()).cast::<T>().as_mut() }
    }

    /// The words of the directive, its name first; none in a hook.
    pub(crate) fn words(self) -> Vec<&'c [u8]> {
        // SAFETY: null, or the words of the directive that is being read.
        let words = unsafe { elements((*self.as_ptr()).args) };
        // SAFETY: the words live in the configuration's pool.
        words.iter().map(|word| unsafe { bytes(word) }).collect()
    }

    /// Where the directive stands that is being read, as `file:line`; empty for `-g`.
    pub(crate) fn place(self) -> String {
        // SAFETY: null, or the file that is being read, with its name.
        let (name, line) = unsafe {
            let Some(file) = (*self.as_ptr()).conf_file.as_ref() else { return String::new() };
            (bytes(&file.file.name), file.line)
        };
        format!("{}:{line}", String::from_utf8_lossy(name))
    }

    /// The http context that this is in: of `http` itself, of an `upstream` or of a `location`.
    pub(crate) fn context(self) -> &'c ngx_http_conf_ctx_t {
        // SAFETY: within `http`, `ctx` is an ngx_http_conf_ctx_t.
        unsafe { &*(*self.as_ptr()).ctx.cast::<ngx_http_conf_ctx_t>() }
    }

    /// nginx's own configuration of the `location` that this is in.
    pub(crate) fn location(self) -> *mut ngx_http_core_loc_conf_t {
        // SAFETY: each http context has a location's configuration of the core module.
        unsafe { conf_of(self.context().loc_conf, &raw const ngx_http_core_module) }
    }

    /// The `upstream` that this is in.
    pub(crate) fn upstream(self) -> Option<NonNull<ngx_http_upstream_srv_conf_t>> {
        // SAFETY: the upstream module has a configuration of a server in an `upstream`, and null
        // elsewhere.
        NonNull::new(unsafe {
            conf_of(self.context().srv_conf, &raw const ngx_http_upstream_module)
        })
    }

    /// A path made absolute.
    pub(crate) fn full_path(self, path: &[u8], base: Base) -> Result<&'c [u8], NoMemory> {
        let mut name = str_over(path);
        // SAFETY: nginx makes a name in the pool of the configuration, or leaves that of a word, which
        // lies there too.
        unsafe {
            match ngx_conf_full_name(self.cycle(), &mut name, base as usize) {
                OK => Ok(bytes(&name)),
                _ => Err(NoMemory),
            }
        }
    }

    /// A word with variables, compiled; `None` if it is none, which nginx has logged.
    pub(crate) fn complex_value(
        self,
        word: &'c [u8],
    ) -> Result<Option<NonNull<ngx_http_complex_value_t>>, NoMemory> {
        let value = NonNull::from(self.zeroed::<ngx_http_complex_value_t>().ok_or(NoMemory)?);
        let mut word = str_over(word);
        // SAFETY: all zeros are an empty ngx_http_compile_complex_value_t, as in nginx's own modules.
        let mut compile: ngx_http_compile_complex_value_t =
            unsafe { MaybeUninit::zeroed().assume_init() };
        compile.cf = self.as_ptr();
        compile.value = &mut word;
        compile.complex_value = value.as_ptr();
        // SAFETY: the word lies in the pool of the configuration, as what is made of it.
        let rc = unsafe { ngx_http_compile_complex_value(&mut compile) };
        Ok((rc == OK).then_some(value))
    }
}
