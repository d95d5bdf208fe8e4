//! Variables of the instance that served a request.

use std::borrow::Cow;

use nginx_consul_core::model::MetaKeys;
use nginx_consul_core::text::printable;
use nginx_sys::{
    NGX_HTTP_VAR_NOCACHEABLE, NGX_HTTP_VAR_PREFIX, ngx_http_add_variable,
    ngx_http_core_main_conf_t, ngx_http_core_module, ngx_http_get_variable_pt, ngx_http_request_t,
    ngx_http_variable_t, ngx_http_variable_value_t, ngx_int_t, ngx_str_t,
};

use crate::ffi::{self, Cf, ERROR, OK, Request, bits, bytes, catch_panic, conf_of, str_over};
use crate::peer::RequestPeer;

/// A variable's name goes on with a key of `Service.Meta`.
const META: &[u8] = b"consul_meta_";

/// The value of a variable for a request.
type Text = for<'a> fn(&RequestPeer<'a>) -> Option<Cow<'a, str>>;

/// A variable: its name, whether it needs the labels of the instance, and its value. Its index here
/// is its `data`.
const ALL: [(&[u8], bool, Text); 7] = [
    (b"consul_service", false, |served| Some(printable(served.service()))),
    (b"consul_service_id", true, |served| Some(printable(&served.labels()?.id))),
    (b"consul_node", true, |served| Some(printable(&served.labels()?.node))),
    (b"consul_datacenter", true, |served| {
        let own = served.labels().map(|labels| &*labels.datacenter);
        Some(printable(own.filter(|own| !own.is_empty()).or_else(|| served.datacenter())?))
    }),
    (b"consul_tags", true, |served| match &*served.labels()?.tags {
        [tag] => Some(printable(tag)),
        tags => Some(printable(&tags.join(",")).into_owned().into()),
    }),
    (b"consul_generation", false, |served| Some(served.generation()?.to_string().into())),
    (b"consul_age", false, |served| Some(served.age()?.to_string().into())),
];

/// Adds the variables, in preconfiguration; `false` if nginx refuses one or memory is short.
pub(crate) fn add_all(cf: Cf<'_>) -> bool {
    let mut variables = ALL.iter().enumerate();
    variables
        .all(|(number, &(name, ..))| add(cf, name, 0, (Some(ngx_http_consul_variable), number)))
        && add(cf, META, NGX_HTTP_VAR_PREFIX, (Some(ngx_http_consul_meta), 0))
}

fn add(
    cf: Cf<'_>,
    name: &'static [u8],
    flags: u32,
    (get, data): (ngx_http_get_variable_pt, usize),
) -> bool {
    // Each attempt of a request may have another peer.
    let flags = (flags | NGX_HTTP_VAR_NOCACHEABLE) as _;
    // SAFETY: nginx reads the configuration; it copies the name, or keeps it as it is.
    let variable =
        unsafe { ngx_http_add_variable(cf.as_ptr(), &mut str_over(name), flags).as_mut() };
    let Some(variable) = variable else { return false };
    variable.get_handler = get;
    variable.data = data;
    true
}

/// What the variables of a configuration need of instances.
#[derive(Default)]
pub(crate) struct Used {
    /// A variable needs the labels of instances.
    pub(crate) labels: bool,
    /// Keys of `Service.Meta`.
    pub(crate) meta: MetaKeys,
}

impl Used {
    /// Of all variables that directives contain; all of `http` have been read.
    pub(crate) fn of(cf: Cf<'_>) -> Used {
        // SAFETY: the core module has a main configuration, and in it the variables that have been
        // named. Nothing is added to them meanwhile.
        let variables: &[ngx_http_variable_t] = unsafe {
            let list = cf.context().main_conf;
            let core = conf_of::<ngx_http_core_main_conf_t>(list, &raw const ngx_http_core_module);
            ffi::elements(&(*core).variables)
        };
        // SAFETY: the names live in the configuration's pool.
        let name = |variable: &ngx_http_variable_t| unsafe { bytes(&variable.name) };
        let names: Vec<&[u8]> = variables.iter().map(name).collect();
        let keys = names.iter().filter_map(|name| name.strip_prefix(META));
        let keys: Vec<String> = keys.map(|key| String::from_utf8_lossy(key).into_owned()).collect();
        let is_label = |name: &&[u8]| {
            ALL.iter().any(|(own, tells_of_instance, _)| own == name && *tells_of_instance)
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
    catch_panic(ERROR, || {
        // SAFETY: nginx passes a request, and room for a value.
        let (r, value) = unsafe { (Request::new(r), &mut *value) };
        set(r, value, |served| ALL.get(data)?.2(served))
    })
}

extern "C" fn ngx_http_consul_meta(
    r: *mut ngx_http_request_t,
    value: *mut ngx_http_variable_value_t,
    data: usize,
) -> ngx_int_t {
    catch_panic(ERROR, || {
        // SAFETY: nginx passes a request, room for a value, and the name of the variable.
        let (r, value, name) =
            unsafe { (Request::new(r), &mut *value, bytes(&*(data as *const ngx_str_t))) };
        set(r, value, |served| {
            let key = std::str::from_utf8(name.get(META.len()..)?).ok()?;
            Some(printable(served.labels()?.meta.get(key)?))
        })
    })
}

/// Sets the value of a variable, in the request's pool. An empty text is "not found", `-` in a log.
fn set<'r>(
    r: Request<'r>,
    value: &mut ngx_http_variable_value_t,
    text: impl FnOnce(&RequestPeer<'r>) -> Option<Cow<'r, str>>,
) -> ngx_int_t {
    // SAFETY: what is found lives as long as the request's pool.
    let peer: Option<RequestPeer<'r>> = unsafe { RequestPeer::of(r.as_ptr()) };
    let text = match peer.as_ref().and_then(text).unwrap_or_default() {
        Cow::Borrowed(text) => text,
        Cow::Owned(text) => match r.keep(text) {
            Some(text) => text,
            None => return ERROR,
        },
    };
    // SAFETY: nginx has made the value, for this request.
    unsafe {
        bits::variable_value::LEN.set(value, text.len() as u32);
        bits::variable_value::VALID.set(value, !text.is_empty());
        bits::variable_value::NOT_FOUND.set(value, text.is_empty());
        bits::variable_value::NO_CACHEABLE.set(value, false);
    }
    value.data = text.as_ptr().cast_mut();
    OK
}
