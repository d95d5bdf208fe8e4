/*
 * A load balancing method that knows nothing of consul_dynamic:
 *
 *     test_method picks|ignores|diverts|wraps address;
 *
 * "picks" takes the block for itself, as methods do. The others wrap the method that the block
 * has, as keepalive does: "ignores" never calls its peer.init, "diverts" never calls its peer.get,
 * "wraps" calls all of it. All but "wraps" send every request to the address.
 *
 *     test_method_everywhere address;
 *
 * in http does what "diverts" does to all blocks, when nginx has read them.
 */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>


typedef struct {
    ngx_http_upstream_init_pt        original_init_upstream;
    ngx_http_upstream_init_peer_pt   original_init_peer;
    ngx_str_t                        mode;
    ngx_addr_t                      *address;
} test_method_conf_t;


typedef struct {
    test_method_conf_t              *conf;
    void                            *original_data;
    ngx_event_get_peer_pt            original_get_peer;
    ngx_event_free_peer_pt           original_free_peer;
} test_method_peer_t;


extern ngx_module_t  ngx_http_test_method_module;


static ngx_int_t
test_method_get_peer(ngx_peer_connection_t *pc, void *data)
{
    test_method_peer_t  *peer = data;

    if (peer->original_get_peer) {
        return peer->original_get_peer(pc, peer->original_data);
    }

    pc->cached = 0;
    pc->connection = NULL;
    pc->sockaddr = peer->conf->address->sockaddr;
    pc->socklen = peer->conf->address->socklen;
    pc->name = &peer->conf->address->name;

    return NGX_OK;
}


static void
test_method_free_peer(ngx_peer_connection_t *pc, void *data, ngx_uint_t state)
{
    test_method_peer_t  *peer = data;

    if (peer->original_free_peer) {
        peer->original_free_peer(pc, peer->original_data, state);
    }
}


static ngx_int_t
test_method_init_peer(ngx_http_request_t *r, ngx_http_upstream_srv_conf_t *us)
{
    test_method_peer_t  *peer;
    test_method_conf_t  *conf;

    conf = ngx_http_conf_upstream_srv_conf(us, ngx_http_test_method_module);

    peer = ngx_pcalloc(r->pool, sizeof(test_method_peer_t));
    if (peer == NULL) {
        return NGX_ERROR;
    }

    peer->conf = conf;

    if (conf->mode.data[0] == 'd' || conf->mode.data[0] == 'w') {
        if (conf->original_init_peer(r, us) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    if (conf->mode.data[0] == 'w') {
        peer->original_data = r->upstream->peer.data;
        peer->original_get_peer = r->upstream->peer.get;
        peer->original_free_peer = r->upstream->peer.free;
    }

    r->upstream->peer.data = peer;
    r->upstream->peer.get = test_method_get_peer;
    r->upstream->peer.free = test_method_free_peer;

    if (r->upstream->peer.tries == 0) {
        r->upstream->peer.tries = 1;
    }

    return NGX_OK;
}


static ngx_int_t
test_method_init_upstream(ngx_conf_t *cf, ngx_http_upstream_srv_conf_t *us)
{
    test_method_conf_t  *conf;

    conf = ngx_http_conf_upstream_srv_conf(us, ngx_http_test_method_module);

    if (conf->original_init_upstream(cf, us) != NGX_OK) {
        return NGX_ERROR;
    }

    conf->original_init_peer = us->peer.init;
    us->peer.init = test_method_init_peer;

    return NGX_OK;
}


static char *
test_method(ngx_conf_t *cf, ngx_command_t *cmd, void *data)
{
    test_method_conf_t            *conf = data;

    ngx_url_t                      u;
    ngx_str_t                     *value;
    ngx_http_upstream_srv_conf_t  *us;

    value = cf->args->elts;
    us = ngx_http_conf_get_module_srv_conf(cf, ngx_http_upstream_module);

    ngx_memzero(&u, sizeof(ngx_url_t));
    u.url = value[2];
    u.default_port = 80;

    if (ngx_parse_url(cf->pool, &u) != NGX_OK) {
        return "has no address";
    }

    conf->mode = value[1];
    conf->address = u.addrs;
    conf->original_init_upstream = ngx_http_upstream_init_round_robin;

    if (value[1].data[0] != 'p' && us->peer.init_upstream) {
        conf->original_init_upstream = us->peer.init_upstream;
    }

    us->peer.init_upstream = test_method_init_upstream;

    return NGX_CONF_OK;
}


static char *
test_method_everywhere(ngx_conf_t *cf, ngx_command_t *cmd, void *data)
{
    ngx_url_t    u;
    ngx_str_t   *value;
    ngx_addr_t **address = data;

    value = cf->args->elts;

    ngx_memzero(&u, sizeof(ngx_url_t));
    u.url = value[1];
    u.default_port = 80;

    if (ngx_parse_url(cf->pool, &u) != NGX_OK) {
        return "has no address";
    }

    *address = u.addrs;

    return NGX_CONF_OK;
}


static ngx_int_t
test_method_postconfiguration(ngx_conf_t *cf)
{
    ngx_uint_t                       i;
    ngx_addr_t                     **address;
    test_method_conf_t              *conf;
    ngx_http_upstream_srv_conf_t   **us;
    ngx_http_upstream_main_conf_t   *umcf;

    address = ngx_http_conf_get_module_main_conf(cf,
                                                 ngx_http_test_method_module);
    if (*address == NULL) {
        return NGX_OK;
    }

    umcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_upstream_module);
    us = umcf->upstreams.elts;

    for (i = 0; i < umcf->upstreams.nelts; i++) {
        if (us[i]->srv_conf == NULL) {
            continue;
        }

        conf = ngx_http_conf_upstream_srv_conf(us[i],
                                               ngx_http_test_method_module);
        ngx_str_set(&conf->mode, "diverts");
        conf->address = *address;
        conf->original_init_peer = us[i]->peer.init;
        us[i]->peer.init = test_method_init_peer;
    }

    return NGX_OK;
}


static void *
test_method_create_main_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(ngx_addr_t *));
}


static void *
test_method_create_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(test_method_conf_t));
}


static ngx_command_t  test_method_commands[] = {

    { ngx_string("test_method"),
      NGX_HTTP_UPS_CONF|NGX_CONF_TAKE2,
      test_method,
      NGX_HTTP_SRV_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("test_method_everywhere"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      test_method_everywhere,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  test_method_ctx = {
    NULL,
    test_method_postconfiguration,
    test_method_create_main_conf,
    NULL,
    test_method_create_conf,
    NULL,
    NULL,
    NULL
};


ngx_module_t  ngx_http_test_method_module = {
    NGX_MODULE_V1,
    &test_method_ctx,
    test_method_commands,
    NGX_HTTP_MODULE,
    NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    NGX_MODULE_V1_PADDING
};


ngx_module_t  *ngx_modules[] = { &ngx_http_test_method_module, NULL };
char          *ngx_module_names[] = { "ngx_http_test_method_module", NULL };
char          *ngx_module_order[] = { NULL };
