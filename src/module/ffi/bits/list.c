/*
 * The bit fields of nginx's structs that the module uses, all of them: bindgen misplaces some.
 * build.rs compiles this for the target and reads from the object file, of which nothing runs, where
 * the compiler has put each. A field that is new here is a constant of ffi::bits.
 */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_http.h>

#ifndef FIELD
/* A struct with all bits of one field set, between what marks it. */
#define FIELD(type, field)                                                     \
    const struct {                                                             \
        char   name[96];                                                       \
        type   value;                                                          \
        char   end[16];                                                        \
    } type##_##field = { "nginx-bit-field:" #type "." #field,                  \
                         { .field = -1 }, "nginx-field-end" };
#endif

FIELD(ngx_buf_t, in_file)
FIELD(ngx_buf_t, last_buf)
FIELD(ngx_buf_t, last_in_chain)
FIELD(ngx_buf_t, memory)

FIELD(ngx_connection_t, close)
FIELD(ngx_connection_t, idle)

FIELD(ngx_event_t, cancelable)
FIELD(ngx_event_t, delayed)
FIELD(ngx_event_t, eof)
FIELD(ngx_event_t, error)
FIELD(ngx_event_t, posted)
FIELD(ngx_event_t, ready)
FIELD(ngx_event_t, timedout)
FIELD(ngx_event_t, timer_set)

FIELD(ngx_http_core_loc_conf_t, exact_match)

FIELD(ngx_http_request_t, header_only)

FIELD(ngx_http_upstream_rr_peers_t, single)

FIELD(ngx_http_upstream_server_t, backup)

FIELD(ngx_http_upstream_t, keepalive)
FIELD(ngx_http_upstream_t, request_body_sent)
FIELD(ngx_http_upstream_t, upgrade)

FIELD(ngx_http_variable_value_t, len)
FIELD(ngx_http_variable_value_t, no_cacheable)
FIELD(ngx_http_variable_value_t, not_found)
FIELD(ngx_http_variable_value_t, valid)

FIELD(ngx_peer_connection_t, cached)

#if (NGX_HTTP_SSL)
FIELD(ngx_http_upstream_t, ssl)
FIELD(ngx_ssl_connection_t, no_send_shutdown)
FIELD(ngx_ssl_connection_t, no_wait_shutdown)
#endif
