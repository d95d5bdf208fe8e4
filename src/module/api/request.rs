//! The parts of an API request.

use std::{ptr, slice};

use nginx_consul_core::control::{Body, MAX_BODY, Refusal};
use nginx_sys::{ngx_buf_t, ngx_http_auth_basic_user};

use crate::ffi::{OK, Request, bits, bytes};

/// The path after the location's name.
pub(super) fn path_of(r: Request<'_>) -> Result<&[u8], Refusal> {
    // SAFETY: the name lies in the configuration's pool, which outlives the request.
    let name = unsafe { bytes(&r.location().name) };
    // A rewrite may have led here with another path.
    r.uri().strip_prefix(name).ok_or_else(|| {
        Refusal::new(404, "PathNotFound", "the path does not begin with the location's name")
    })
}

/// The sender: `$remote_user`, if there is one, and the address.
pub(super) fn who(r: Request<'_>) -> String {
    // SAFETY: the address lies in the connection's pool, which outlives the request.
    let address = unsafe { bytes(&(*r.connection()).addr_text) };
    let address = String::from_utf8_lossy(address);
    match user(r) {
        b"" => address.into_owned(),
        user => {
            // The address must fit.
            let user = String::from_utf8_lossy(user);
            format!("{}@{address}", nginx_consul_core::text::beginning(&user, 40))
        }
    }
}

fn user(r: Request<'_>) -> &[u8] {
    // SAFETY: the request is there. What nginx finds lies in its pool.
    unsafe {
        match ngx_http_auth_basic_user(r.as_ptr()) {
            OK => bytes(&(*r.as_ptr()).headers_in.user),
            _ => b"",
        }
    }
}

/// The request's body, once nginx has read it.
pub(super) fn body_of(r: Request<'_>) -> Result<Vec<u8>, Refusal> {
    let mut body = Vec::new();
    for buf in buffers(r) {
        // SAFETY: the buffer is nginx's.
        let in_file = unsafe { bits::buf::IN_FILE.get(buf) };
        let len = match in_file {
            true => usize::try_from(buf.file_last - buf.file_pos).unwrap_or(usize::MAX),
            false => buf.last.addr() - buf.pos.addr(),
        };
        if len > MAX_BODY - body.len() {
            return Err(Body::too_large());
        }
        if in_file {
            let mut part = vec![0; len];
            // SAFETY: the file is open as long as the request lives; there are `len` bytes of room.
            let read =
                unsafe { libc::pread((*buf.file).fd, part.as_mut_ptr().cast(), len, buf.file_pos) };
            if usize::try_from(read) != Ok(len) {
                return Err(Refusal::new(500, "BodyReadError", "the body can't be read"));
            }
            body.append(&mut part);
        } else if len != 0 {
            // SAFETY: a buffer in memory has its bytes from `pos` to `last`.
            body.extend_from_slice(unsafe { slice::from_raw_parts(buf.pos, len) });
        }
    }
    Ok(body)
}

/// The buffers that hold the request's body.
fn buffers<'r>(r: Request<'r>) -> impl Iterator<Item = &'r ngx_buf_t> {
    // SAFETY: the request has a body if one was read, in a chain that lives as long as it.
    let first = unsafe { (*r.as_ptr()).request_body.as_ref().map_or(ptr::null_mut(), |b| b.bufs) };
    // SAFETY: the chain ends with null, and each of its links has a buffer.
    let link = |chain| unsafe { (chain as *const nginx_sys::ngx_chain_t).as_ref::<'r>() };
    let links = std::iter::successors(link(first), move |l| link(l.next));
    // SAFETY: a link's buffer lives as long as the link.
    links.map(|link| unsafe { &*link.buf })
}
