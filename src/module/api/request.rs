//! What a request says.

use std::{ptr, slice};

use nginx_consul_core::control::{Body, MAX_BODY, Refusal};
use nginx_sys::{
    ngx_http_auth_basic_user, ngx_http_core_loc_conf_t, ngx_http_core_module, ngx_http_request_t,
};

use crate::ffi::{OK, bits, bytes, conf_of};

/// What follows the location's name.
///
/// # Safety
///
/// `r` is a valid request; the path lives as long as it.
pub(super) unsafe fn path_of<'a>(r: *mut ngx_http_request_t) -> Result<&'a [u8], Refusal> {
    // SAFETY: the caller's promise; the location outlives the request.
    let (uri, name) = unsafe {
        let core: *mut ngx_http_core_loc_conf_t =
            conf_of((*r).loc_conf, &raw const ngx_http_core_module);
        (bytes(&(*r).uri), bytes(&(*core).name))
    };
    // A rewrite may have led here under another name.
    uri.strip_prefix(name).ok_or_else(|| {
        Refusal::new(404, "PathNotFound", "the path does not begin with the location's name")
    })
}

/// Who asks: `$remote_user`, if there is one, and the address.
///
/// # Safety
///
/// `r` is a valid request.
pub(super) unsafe fn who(r: *mut ngx_http_request_t) -> String {
    // SAFETY: the caller's promise.
    let (user, address) = unsafe {
        let is_known = ngx_http_auth_basic_user(r) == OK;
        let user = if is_known { bytes(&(*r).headers_in.user) } else { b"" };
        (user, bytes(&(*(*r).connection).addr_text))
    };
    let address = String::from_utf8_lossy(address);
    match user {
        b"" => address.into_owned(),
        user => {
            // The address has to have room.
            let user = String::from_utf8_lossy(user);
            format!("{}@{address}", nginx_consul_core::text::beginning(&user, 40))
        }
    }
}

/// The request's body, once nginx has read it.
///
/// # Safety
///
/// `r` is a valid request whose body was read.
pub(super) unsafe fn body_of(r: *mut ngx_http_request_t) -> Result<Vec<u8>, Refusal> {
    let mut body = Vec::new();
    // SAFETY: the caller's promise; the chain ends, and its buffers live as long as the request.
    let mut next = unsafe { (*r).request_body.as_ref().map_or(ptr::null_mut(), |read| read.bufs) };
    // SAFETY: as above.
    while let Some((buf, after)) = unsafe { next.as_ref().map(|link| (&*link.buf, link.next)) } {
        // SAFETY: as above.
        let in_file = unsafe { bits::buf::IN_FILE.get(buf) };
        let len = match in_file {
            true => usize::try_from(buf.file_last - buf.file_pos).unwrap_or(usize::MAX),
            false => buf.last.addr() - buf.pos.addr(),
        };
        let start = body.len();
        if len > MAX_BODY - start {
            return Err(Body::too_large());
        }
        body.resize(start + len, 0);
        let room = &mut body[start..];
        if in_file {
            // SAFETY: the file is open as long as the request lives; there are `len` bytes of room.
            let read =
                unsafe { libc::pread((*buf.file).fd, room.as_mut_ptr().cast(), len, buf.file_pos) };
            if usize::try_from(read) != Ok(len) {
                return Err(Refusal::new(500, "BodyReadError", "the body can't be read"));
            }
        } else if len != 0 {
            // SAFETY: a buffer in memory has its bytes from `pos` to `last`.
            room.copy_from_slice(unsafe { slice::from_raw_parts(buf.pos, len) });
        }
        next = after;
    }
    Ok(body)
}
