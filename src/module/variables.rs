//! Variables of the instance that served a request.

use std::borrow::Cow;
use std::fmt::Write;

use nginx_consul_core::labels::Labels;
use nginx_consul_core::model::MetaKeys;
use nginx_consul_core::text::printable;
use nginx_sys::{
    NGX_HTTP_VAR_NOCACHEABLE, NGX_HTTP_VAR_PREFIX, ngx_conf_t, ngx_http_add_variable,
    ngx_http_core_main_conf_t, ngx_http_core_module, ngx_http_get_variable_pt, ngx_http_request_t,
    ngx_http_variable_t, ngx_http_variable_value_t, ngx_int_t, ngx_pnalloc, ngx_str_t,
};

use crate::conf::directives;
use crate::ffi::{self, ERROR, OK, bytes, fence, str_over};
use crate::peer::Served;

/// A variable's name goes on with a key of `Service.Meta`.
const META: &[u8] = b"consul_meta_";

/// What a variable tells; its number is the variable's `data`.
#[derive(Clone, Copy)]
enum Of {
    Service,
    ServiceId,
    Node,
    Datacenter,
    Tags,
    Generation,
    Age,
}

const ALL: [(&[u8], Of); 7] = [
    (b"consul_service", Of::Service),
    (b"consul_service_id", Of::ServiceId),
    (b"consul_node", Of::Node),
    (b"consul_datacenter", Of::Datacenter),
    (b"consul_tags", Of::Tags),
    (b"consul_generation", Of::Generation),
    (b"consul_age", Of::Age),
];

/// Adds the variables, and begins to observe the directives of other modules.
pub(crate) extern "C" fn ngx_http_consul_preconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes the configuration of `http`, before it is read.
        if !unsafe { directives::begin(cf) } {
            return ERROR;
        }
        // SAFETY: nginx passes the configuration of `http`, before it is read.
        let added = ALL.iter().all(|&(name, of)| unsafe {
            add(cf, name, 0, (Some(ngx_http_consul_variable), of as usize))
        });
        // SAFETY: as above.
        let prefix = unsafe { add(cf, META, NGX_HTTP_VAR_PREFIX, (Some(ngx_http_consul_meta), 0)) };
        if added && prefix { OK } else { ERROR }
    })
}

/// # Safety
///
/// `cf` is that of a preconfiguration.
unsafe fn add(
    cf: *mut ngx_conf_t,
    name: &'static [u8],
    flags: u32,
    (get, data): (ngx_http_get_variable_pt, usize),
) -> bool {
    // A request has another peer with every attempt.
    let flags = flags | NGX_HTTP_VAR_NOCACHEABLE;
    // SAFETY: the caller's promise; nginx copies the name, or keeps it as it is.
    let variable = unsafe { ngx_http_add_variable(cf, &mut str_over(name), flags as _).as_mut() };
    let Some(variable) = variable else { return false };
    variable.get_handler = get;
    variable.data = data;
    true
}

/// What the variables that a configuration has need to know of instances.
#[derive(Default)]
pub(crate) struct Used {
    /// There are some that tell of the instance itself.
    pub(crate) labels: bool,
    /// Keys of `Service.Meta`.
    pub(crate) meta: MetaKeys,
}

impl Used {
    /// Of all that the directives have named.
    ///
    /// # Safety
    ///
    /// `cf` is that of `http`, whose directives have been read.
    pub(crate) unsafe fn of(cf: *mut ngx_conf_t) -> Used {
        // SAFETY: the caller's promise; the names live in the configuration's pool.
        let names = unsafe {
            let core: *mut ngx_http_core_main_conf_t =
                ffi::conf_of(ffi::http_context(cf).main_conf, &raw const ngx_http_core_module);
            let variables = &raw mut (*core).variables;
            // Not made before the first one.
            let none = (*variables).elts.is_null();
            let all: &[ngx_http_variable_t] = if none { &[] } else { ffi::elements(variables) };
            all.iter().map(|variable| bytes(&variable.name)).collect::<Vec<_>>()
        };
        let keys = names.iter().filter_map(|name| name.strip_prefix(META));
        let keys: Vec<String> = keys.map(|key| String::from_utf8_lossy(key).into_owned()).collect();
        let is_label = |name: &&[u8]| {
            let known = ALL.iter().find(|(own, _)| own == name);
            known.is_some_and(|(_, of)| !matches!(of, Of::Service | Of::Generation | Of::Age))
        };
        let labels = !keys.is_empty() || names.iter().any(is_label);
        Used { labels, meta: MetaKeys::new(keys) }
    }
}

extern "C" fn ngx_http_consul_variable(
    r: *mut ngx_http_request_t,
    value: *mut ngx_http_variable_value_t,
    data: usize,
) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes a request, and room for a value.
        let (served, value) = unsafe { (Served::of(r), &mut *value) };
        let Some(served) = served else { return set(value, b"") };
        let of = ALL.iter().map(|(_, of)| *of).find(|of| *of as usize == data);
        let label = |text: fn(&Labels) -> &str| served.labels().map_or("", text);
        let text = match of {
            None => "",
            Some(Of::Service) => match printable(served.service()) {
                Cow::Borrowed(text) => text,
                // SAFETY: as above.
                Cow::Owned(text) => return unsafe { set_copy(r, value, &text) },
            },
            Some(Of::ServiceId) => label(|labels| &labels.service_id),
            Some(Of::Node) => label(|labels| &labels.node),
            Some(Of::Tags) => label(|labels| &labels.tags),
            Some(Of::Datacenter) => match label(|labels| &labels.datacenter) {
                "" => served.datacenter().unwrap_or_default(),
                text => text,
            },
            Some(Of::Generation) => {
                let Some(generation) = served.generation() else { return set(value, b"") };
                // SAFETY: as above.
                return unsafe { set_copy(r, value, &generation) };
            }
            Some(Of::Age) => {
                let Some(age) = served.age() else { return set(value, b"") };
                // SAFETY: as above.
                return unsafe { set_copy(r, value, &age) };
            }
        };
        set(value, text.as_bytes())
    })
}

extern "C" fn ngx_http_consul_meta(
    r: *mut ngx_http_request_t,
    value: *mut ngx_http_variable_value_t,
    data: usize,
) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes a request, room for a value, and the name of the variable.
        let (served, value, name) =
            unsafe { (Served::of(r), &mut *value, bytes(&*(data as *const ngx_str_t))) };
        let key = name.get(META.len()..).unwrap_or_default();
        let text = served.and_then(|served| served.labels()?.meta(key)).unwrap_or_default();
        set(value, text.as_bytes())
    })
}

/// Sets a value that lives as long as the request's pool; an empty one is none, `-` in a log.
fn set(value: &mut ngx_http_variable_value_t, text: &[u8]) -> ngx_int_t {
    value.set_len(text.len() as u32);
    value.set_valid(u32::from(!text.is_empty()));
    value.set_not_found(u32::from(text.is_empty()));
    value.set_no_cacheable(0);
    value.data = text.as_ptr().cast_mut();
    OK
}

/// Sets a value that is put into the request's pool.
///
/// # Safety
///
/// `r` is a valid request.
unsafe fn set_copy(
    r: *mut ngx_http_request_t,
    value: &mut ngx_http_variable_value_t,
    text: &dyn std::fmt::Display,
) -> ngx_int_t {
    let mut written = String::new();
    let _ = write!(written, "{text}");
    // SAFETY: the caller's promise; so much room is asked for as is used.
    unsafe {
        let place = ngx_pnalloc((*r).pool, written.len()).cast::<u8>();
        if place.is_null() {
            return ERROR;
        }
        std::ptr::copy_nonoverlapping(written.as_ptr(), place, written.len());
        set(value, std::slice::from_raw_parts(place, written.len()))
    }
}
