//! `consul_status`: the status page.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_void};
use std::ptr;

use nginx_consul_core::balance::Rules;
use nginx_consul_core::model::Admit;
use nginx_consul_core::named::Template;
use nginx_consul_core::status::{
    Connections, Named, NamedService, Nginx, Peer, Pending, Service, Status, Version, Zone,
};
use nginx_consul_core::sync::{Plan, Target};
use nginx_consul_core::table::{Mode, Table};
use nginx_sys::{
    NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_NOT_ALLOWED, NGX_HTTP_OK,
    ngx_buf_t, ngx_chain_t, ngx_command_t, ngx_conf_t, ngx_http_core_loc_conf_t,
    ngx_http_core_module, ngx_http_discard_request_body, ngx_http_output_filter,
    ngx_http_request_t, ngx_http_send_header, ngx_int_t, ngx_palloc, ngx_pcalloc,
};

use crate::conf::{self, HttpConf};
use crate::ffi::{self, CONF_ERROR, CONF_OK, ERROR, OK, fence};
use crate::peer::{Block, NamedBlock};
use crate::zone;

/// The directive: makes the page the location's content.
pub(crate) extern "C" fn ngx_http_consul_status(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    _: *mut c_void,
) -> *mut c_char {
    fence(CONF_ERROR, || {
        // SAFETY: the directive is only allowed in `location`, whose core configuration this is.
        unsafe {
            let loc_conf = ffi::http_context(cf).loc_conf;
            let core: *mut ngx_http_core_loc_conf_t =
                ffi::conf_of(loc_conf, &raw const ngx_http_core_module);
            let ours: unsafe extern "C" fn(*mut ngx_http_request_t) -> ngx_int_t =
                ngx_http_consul_status_handler;
            if (*core).handler.is_some_and(|h| ptr::fn_addr_eq(h, ours)) {
                return c"is duplicate".as_ptr().cast_mut();
            }
            (*core).handler = Some(ours);
        }
        CONF_OK
    })
}

pub(crate) extern "C" fn ngx_http_consul_status_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    fence(NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t, || {
        // SAFETY: nginx passes a request that is ours until it is finalized.
        unsafe {
            if (*r).method & (NGX_HTTP_GET | NGX_HTTP_HEAD) as usize == 0 {
                return NGX_HTTP_NOT_ALLOWED as ngx_int_t;
            }
            let rc = ngx_http_discard_request_body(r);
            if rc != OK {
                return rc;
            }
            let Some(http) = conf::http_conf(nginx_sys::ngx_cycle) else { return ERROR };
            let status = collect(http);
            if wants_json(ffi::bytes(&(*r).args)) {
                send(r, b"application/json", &status.to_json())
            } else {
                send(r, b"text/html; charset=utf-8", &status.to_html())
            }
        }
    })
}

fn wants_json(args: &[u8]) -> bool {
    args.split(|&b| b == b'&').any(|arg| arg == b"format=json")
}

/// # Safety
///
/// `r` is a valid request whose header was not sent; `kind` is static.
unsafe fn send(r: *mut ngx_http_request_t, kind: &'static [u8], body: &[u8]) -> ngx_int_t {
    // SAFETY: the request's pool lives until the response is sent, and so does what is taken of it.
    unsafe {
        let headers = &mut (*r).headers_out;
        headers.status = NGX_HTTP_OK as _;
        headers.content_length_n = body.len() as _;
        headers.content_type = ffi::str_over(kind);
        headers.content_type_len = kind.split(|&b| b == b';').next().map_or(0, <[u8]>::len);
        let rc = ngx_http_send_header(r);
        // Not `header_only`: nginx 1.30 has a 16-bit field before the request's bit fields, and
        // bindgen misplaces those by it.
        if rc == ERROR || rc > OK || (*r).method & NGX_HTTP_HEAD as usize != 0 {
            return rc;
        }
        let data = ngx_palloc((*r).pool, body.len()).cast::<u8>();
        let buf = ngx_pcalloc((*r).pool, size_of::<ngx_buf_t>()).cast::<ngx_buf_t>();
        if data.is_null() || buf.is_null() {
            return ERROR;
        }
        ptr::copy_nonoverlapping(body.as_ptr(), data, body.len());
        (*buf).pos = data;
        (*buf).last = data.add(body.len());
        (*buf).set_temporary(1);
        (*buf).set_last_buf(u32::from(ptr::eq((*r).main, r)));
        (*buf).set_last_in_chain(1);
        let mut chain = ngx_chain_t { buf, next: ptr::null_mut() };
        ngx_http_output_filter(r, &mut chain)
    }
}

fn collect(http: &HttpConf) -> Status {
    // SAFETY: the zone of the running configuration, or null.
    let shm_zone = unsafe { http.shm_zone.as_ref() };
    let table = shm_zone.and_then(zone::table);
    let used = table.map_or(0, |t| t.usage());
    // SAFETY: blocks of the running configuration.
    let blocks: Vec<&Block> = http
        .blocks
        .iter()
        .filter_map(|&upstream| unsafe { conf::srv_conf(upstream).block.as_deref() })
        .collect();
    let services = match (&http.plan, table) {
        (Some(plan), Some(table)) => planned(plan, table, &blocks),
        _ => Vec::new(),
    };
    Status {
        module: Version { version: env!("CARGO_PKG_VERSION").into() },
        nginx: Nginx {
            version: nginx_version(),
            pid: std::process::id(),
            // SAFETY: set once, before init_process.
            worker: unsafe { nginx_sys::ngx_worker },
        },
        zone: Zone {
            name: shm_zone.map_or_else(String::new, |z| z.shm.name.to_string()),
            size: shm_zone.map_or(0, |z| z.shm.size),
            used,
        },
        state: table.and_then(|t| Some(http.state_file()?.status(t, now_ms()))),
        upstreams: blocks.iter().map(|block| block.status()).collect(),
        services,
        named: table.and_then(|table| named(http, table)),
    }
}

/// `NGINX_VERSION`; the module only loads into that very version.
fn nginx_version() -> String {
    let n = nginx_sys::nginx_version;
    format!("{}.{}.{}", n / 1_000_000, n / 1000 % 1000, n % 1000)
}

/// Who uses a service, and how.
#[derive(Default)]
struct Users {
    upstreams: Vec<String>,
    rules: Rules,
    is_single: bool,
    /// One of them has `consul_keepalive`.
    keeps_alive: bool,
}

/// The services that blocks name.
fn planned(plan: &Plan, table: Table<'_>, blocks: &[&Block]) -> Vec<Service> {
    let entries = table.entries();
    let mut users_of: Vec<Vec<&Block>> = vec![Vec::new(); plan.targets.len()];
    for block in blocks {
        for source in block.sources() {
            users_of[source.target].push(block);
        }
    }
    let of_target = |(target, users): (usize, Vec<&Block>)| {
        let key = plan.key(target);
        let first = users.first();
        let users = Users {
            upstreams: users.iter().map(|block| block.name().into_owned()).collect(),
            rules: first.map(|block| block.rules).unwrap_or_default(),
            is_single: first.is_some_and(|block| block.is_single()),
            keeps_alive: users.iter().any(|block| block.keeps_alive()),
        };
        service(&plan.targets[target], key, (table, entries.get(&key).copied()), users)
    };
    users_of.into_iter().enumerate().map(of_target).collect()
}

/// The services that requests have named.
fn named(http: &HttpConf, table: Table<'_>) -> Option<Named> {
    let (templates, plan) = (http.templates.as_ref()?, http.plan.as_ref()?);
    // SAFETY: blocks of the running configuration.
    let blocks: Vec<&NamedBlock> = http
        .named_blocks
        .iter()
        .filter_map(|&upstream| unsafe { conf::srv_conf(upstream).named.as_deref() })
        .collect();
    let now = now_ms();
    let of_entry = |entry| {
        let named = table.named(entry)?;
        let template = templates.find(named.template)?;
        let places = template.places(&named.name, plan);
        let place = places.into_iter().find(|place| place.key == table.key(entry))?;
        let asks =
            |block: &&&NamedBlock| block.template().map(Template::key) == Some(named.template);
        let users: Vec<_> = blocks.iter().filter(asks).collect();
        let users = Users {
            upstreams: users.iter().map(|block| block.pattern().name().into_owned()).collect(),
            rules: users.first().map(|block| block.pattern().rules).unwrap_or_default(),
            is_single: users.iter().any(|block| block.is_single(&named.name)),
            keeps_alive: users.iter().any(|block| block.pattern().keeps_alive()),
        };
        let last_used_seconds = now.saturating_sub(table.last_used(entry)) as f64 / 1000.0;
        let service = service(&place.target, place.key, (table, Some(entry)), users);
        Some(NamedService { last_used_seconds, service })
    };
    let services = (0..table.entry_capacity()).filter_map(of_entry).collect();
    Some(Named { max: templates.max, services })
}

fn service(
    target: &Target,
    key: u128,
    (table, entry): (Table<'_>, Option<usize>),
    users: Users,
) -> Service {
    let Target { query, selection, endpoint, .. } = target;
    let fresh = entry.map(|e| table.freshness(e));
    let servers: Vec<String> = endpoint.servers.iter().map(ToString::to_string).collect();
    let now = now_ms();
    let ago = |at: u64| (at != 0).then(|| now.saturating_sub(at) as f64 / 1000.0);
    let image = entry.and_then(|e| table.read(e, key));
    let (mode, delay_ms) = match fresh.as_ref().map_or(Mode::Blocking, |f| f.mode) {
        Mode::Blocking => ("blocking", None),
        Mode::Gated(ms) => ("gated", Some(ms)),
        Mode::Sweep(ms) => ("sweep", Some(ms)),
    };
    Service {
        service: query.service.clone(),
        from: query.source.name(),
        datacenter: query.datacenter.clone(),
        tags: selection.tags.clone(),
        status: match selection.admit {
            Admit::Passing => "passing",
            Admit::Warning => "warning",
            Admit::Any => "any",
        },
        filter: query.filter.clone(),
        server: fresh.as_ref().and_then(|f| servers.get(f.server).cloned()),
        servers,
        mode,
        delay_ms,
        index: fresh.as_ref().map_or(0, |f| f.index),
        generation: image.as_ref().map_or(0, |i| i.generation),
        source: fresh.as_ref().and_then(|f| match (f.restored, f.last_good) {
            (true, _) => Some("state file"),
            (false, 0) => None,
            (false, _) => Some("consul"),
        }),
        last_good_seconds: fresh.as_ref().and_then(|f| ago(f.last_good)),
        last_change_seconds: fresh.as_ref().and_then(|f| ago(f.last_change)),
        failures: fresh.as_ref().map_or(0, |f| f.failures),
        refusals: entry.map_or_else(BTreeMap::new, |e| {
            table.refusals(e).into_iter().map(|(reason, n)| (reason.word(), n)).collect()
        }),
        pending: fresh.as_ref().and_then(|f| f.pending).map(|p| Pending {
            removals: p.removals,
            confirmed: p.confirmed,
            of: p.of,
        }),
        last_error: fresh.and_then(|f| (!f.error.is_empty()).then_some(f.error)),
        peers: image.map_or_else(Vec::new, |image| peers(table, &image, &users)),
        upstreams: users.upstreams,
    }
}

fn peers(table: Table<'_>, image: &nginx_consul_core::table::Image, users: &Users) -> Vec<Peer> {
    let Users { rules, is_single, keeps_alive, .. } = *users;
    let peer = |(record, detail): (&nginx_consul_core::table::Record, _)| {
        let nginx_consul_core::table::Detail { node, id, tags, health, .. } = detail;
        let counters = table.counters(record.place);
        let params = record.params();
        let rules = rules.of(&params);
        let (max_fails, timeout) = (rules.max_fails.into(), rules.fail_timeout.into());
        let failed =
            !is_single && table.slot(record.place).is_failed(max_fails, timeout, now_ms() / 1000);
        Peer {
            server: record.addr().to_string(),
            node,
            service_id: id,
            tags,
            health,
            weight: record.weight,
            in_flight: counters.in_flight,
            picks: counters.picks,
            fails: counters.failed,
            backup: params.backup,
            state: match (params.down, failed) {
                (true, _) => "down",
                (false, true) => "unavail",
                (false, false) => "up",
            },
            connections: keeps_alive.then_some(Connections {
                idle: counters.idle,
                active: counters.in_flight,
                opened: counters.opened,
                reused: counters.reused,
            }),
        }
    };
    image.records.iter().zip(image.details()).map(peer).collect()
}

/// Milliseconds since the epoch, as the event loop knows them.
fn now_ms() -> u64 {
    // SAFETY: ngx_cached_time always points to a valid time; only the event loop moves it.
    let time = unsafe { &*nginx_sys::ngx_cached_time.cast_const() };
    u64::try_from(time.sec).unwrap_or(0) * 1000 + time.msec as u64
}
