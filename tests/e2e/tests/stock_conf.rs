//! What `nginx -t` refuses where one of nginx's own methods stands before `consul_dynamic`.

use crate::conf_errors::{nginx_version, refused};

#[test]
fn consul_balance_and_another_method_in_one_block_are_refused() {
    for (method, line) in [
        ("least_conn", "consul_balance random;"),
        ("hash $uri consistent", "consul_balance round_robin;"),
        ("ip_hash", "consul_panic 30%;"),
    ] {
        let words = [line.split(' ').next().expect("a word"), &format!("\"{method}\"")];
        let after = format!("upstream api {{\n{method};\nconsul_dynamic web; # here\n{line}\n}}");
        refused(&after, &words);
        let before = format!("upstream api {{\n{line} {method};\nconsul_dynamic web; # here\n}}");
        refused(&before, &words);
    }
}

#[test]
fn a_server_line_that_the_method_before_does_not_support_is_refused() {
    for method in ["hash $uri", "ip_hash", "random"] {
        refused(
            &format!(
                "upstream api {{\n{method};\nconsul_dynamic web;\n\
                 server 127.0.0.1:1 backup; # here\n}}"
            ),
            &["backup"],
        );
    }
}

#[test]
fn a_zone_is_refused_with_another_method_too() {
    refused(
        "upstream api {\nzone api 64k; least_conn;\nconsul_dynamic web; # here\n}",
        &["\"zone\"", "consul_dynamic"],
    );
}

#[test]
fn sticky_after_it_is_refused() {
    if nginx_version() < (1, 29, 6) {
        // It has no such directive.
        refused(
            "upstream api {\nconsul_dynamic web;\nsticky cookie srv; # here\n}",
            &["unknown directive \"sticky\""],
        );
        return;
    }
    refused(
        "upstream api {\nconsul_dynamic web; # here\nsticky cookie srv;\n}",
        &["\"sticky\"", "must stand before"],
    );
    refused(
        "upstream api {\nleast_conn;\nconsul_dynamic web; # here\nsticky cookie srv;\n}",
        &["\"sticky\"", "must stand before"],
    );
}
