//! `balancer_by_lua_block`, which those who come from the Lua recipe have in the block.

use std::path::PathBuf;

use super::refused_beside;

/// Debian's modules, of the release that the nginx under test is from.
fn lua() -> [PathBuf; 2] {
    ["ndk_http_module.so", "ngx_http_lua_module.so"]
        .map(|name| PathBuf::from("/usr/lib/nginx/modules").join(name))
}

const WORDS: [&str; 4] = [
    "\"consul_dynamic\"",
    "\"balancer_by_lua_block\"",
    "ngx_http_lua_module",
    "/usr/lib/nginx/modules/ngx_http_lua_module.so",
];

#[test]
fn balancer_by_lua_before_consul_dynamic_is_refused() {
    for service in ["web", "$arg_s"] {
        let upstream = format!(
            "upstream api {{\nserver 0.0.0.1 down;\n\
             balancer_by_lua_block {{ # theirs\nrequire('ngx.balancer').set_current_peer('127.0.0.1', 1)\n}}\n\
             consul_dynamic {service}; # here\n}}"
        );
        refused_beside(&lua(), &upstream, &WORDS);
    }
}

#[test]
fn balancer_by_lua_after_consul_dynamic_is_refused() {
    for rest in ["", "keepalive 8;"] {
        let upstream = format!(
            "upstream api {{\nserver 0.0.0.1 down;\nconsul_dynamic web; # here\n\
             balancer_by_lua_block {{ # theirs\nrequire('ngx.balancer').set_current_peer('127.0.0.1', 1)\n}}\n\
             {rest}\n}}"
        );
        refused_beside(&lua(), &upstream, &WORDS);
    }
}
