//! Programs and libraries that are loaded.

use std::ffi::{CStr, c_void};
use std::mem::MaybeUninit;
use std::ptr;

/// A program or library that is loaded.
pub(crate) struct Object {
    base: *mut c_void,
    pub(crate) file: String,
}

impl PartialEq for Object {
    fn eq(&self, other: &Object) -> bool {
        ptr::eq(self.base, other.base)
    }
}

/// The program or library that a function is in.
pub(crate) fn object_of(function: *const c_void) -> Option<Object> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr() only looks the address up, whatever it is.
    let is_found = unsafe { libc::dladdr(function, info.as_mut_ptr()) } != 0;
    // SAFETY: all zeros are a valid Dl_info, and so is what dladdr() writes.
    let info = unsafe { info.assume_init() };
    if !is_found {
        return None;
    }
    let name = match info.dli_fname.is_null() {
        true => c"",
        // SAFETY: a name of the loader's, ended by NUL, lives as long as the object is loaded.
        false => unsafe { CStr::from_ptr(info.dli_fname) },
    };
    Some(Object { base: info.dli_fbase, file: name.to_string_lossy().into_owned() })
}
