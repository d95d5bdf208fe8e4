//! Services that requests name.

use super::{refused, refused_in_http, refused_in_upstream};

#[test]
fn only_services_of_health_and_catalog_may_be_named_by_requests() {
    for source in ["kv", "query"] {
        refused_in_upstream(
            &format!("consul_dynamic $arg_s source={source};"),
            &["\"consul_dynamic\"", "variable", &format!("source={source}")],
        );
    }
}

#[test]
fn what_may_be_named_has_to_be_said_well() {
    for (line, shown) in [
        ("consul_allow_service \"\";", "\"\""),
        ("consul_allow_service tag=;", "\"tag=\""),
        ("consul_allow_service colour=red;", "colour=red"),
        ("consul_first_wait soon;", "soon"),
        ("consul_idle 0;", "\"0\""),
        ("consul_max_services 0;", "\"0\""),
        ("consul_unknown_service 404;", "404"),
        ("consul_unknown_service status=200;", "from 400 to 599"),
        ("consul_unknown_service status=499;", "from 400 to 599"),
        ("consul_unknown_service valid=0;", "valid=0"),
        ("consul_unknown_service status=404 status=502;", "duplicate"),
    ] {
        let directive = line.split(' ').next().expect("a directive");
        refused_in_http(line, &[directive, shown]);
    }
}

#[test]
fn what_is_for_named_services_is_refused_beside_a_fixed_name() {
    for line in [
        "consul_allow_service web-*;",
        "consul_first_wait 1s;",
        "consul_idle 1m;",
        "consul_unknown_service status=404;",
    ] {
        let directive = line.split(' ').next().expect("a directive");
        refused(
            &format!("upstream api {{\nconsul_dynamic web; # here\n{line}\n}}"),
            &[directive, "without effect"],
        );
    }
}
