//! `consul_keepalive`.

use super::{refused, refused_in_upstream};

#[test]
fn a_bad_parameter_of_it_is_refused() {
    refused_in_upstream("consul_keepalive;", &["invalid number of arguments", "consul_keepalive"]);
    for bad in ["0", "-1", "many", "requests=0", "timeout=0", "timeout=soon", "time=-1s", "idle=3"]
    {
        let numbered = bad.contains('=');
        let arguments = if numbered { format!("8 {bad}") } else { bad.to_owned() };
        refused_in_upstream(
            &format!("consul_keepalive {arguments};"),
            &[&format!("invalid value \"{bad}\" in \"consul_keepalive\" directive")],
        );
    }
    refused_in_upstream(
        "consul_keepalive 8 time=1m time=2m;",
        &["\"consul_keepalive time\" directive is duplicate"],
    );
}

#[test]
fn it_is_refused_twice_and_elsewhere() {
    refused(
        "upstream api {\nconsul_keepalive 8;\nconsul_keepalive 9; # here\n}",
        &["\"consul_keepalive\" directive is duplicate"],
    );
    refused("consul_keepalive 8; # here", &["\"consul_keepalive\" directive is not allowed here"]);
}

#[test]
fn it_is_refused_without_a_service() {
    refused(
        "upstream api {\nserver 127.0.0.1:1;\nconsul_keepalive 8; # here\n}",
        &["\"consul_keepalive\" directive is without effect", "consul_dynamic"],
    );
}

#[test]
fn it_is_refused_beside_nginxs_own_keepalive() {
    for own in ["consul_dynamic web;", "least_conn; consul_dynamic web;"] {
        refused(
            &format!("upstream api {{\n{own}\nconsul_keepalive 8; # here\nkeepalive 8;\n}}"),
            &["\"consul_keepalive\" directive can't be used together with \"keepalive\""],
        );
    }
}
