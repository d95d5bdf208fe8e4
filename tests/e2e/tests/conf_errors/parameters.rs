//! Parameters of `consul_dynamic`.

use super::{refused_in_http, refused_in_upstream};

#[test]
fn a_doubled_parameter_is_refused() {
    for double in [
        "filter=a filter=b",
        "dc=a dc=b",
        "ns=a ns=b",
        "partition=a partition=b",
        "near=a near=b",
        "status=any status=any",
        "consistency=stale consistency=default",
        "max_fails=1 max_fails=2",
        "fail_timeout=1s fail_timeout=2s",
        "max_conns=1 max_conns=2",
        "slow_start=1s slow_start=2s",
    ] {
        let name = double.split('=').next().expect("a name");
        refused_in_upstream(
            &format!("consul_dynamic web {double};"),
            &["consul_dynamic", "duplicate", name],
        );
    }
}

#[test]
fn a_bad_value_of_a_parameter_is_refused() {
    for bad in [
        "status=healthy",
        "status=",
        "consistency=eventual",
        "max_fails=many",
        "max_fails=-1",
        "fail_timeout=soon",
        "max_conns=x",
        "slow_start=-3s",
        "fail_timeout=500ms",
        "dc=",
        "dc=dc1,",
        "dc=,dc1",
        "dc=dc1,,dc2",
        "dc=dc1,dc2,dc1",
    ] {
        let (name, value) = bad.split_once('=').expect("a parameter");
        refused_in_upstream(
            &format!("consul_dynamic web {bad};"),
            &["consul_dynamic", name, value],
        );
    }
}

#[test]
fn what_is_no_service_and_no_parameter_is_refused() {
    for (line, word) in [
        ("consul_dynamic;", "invalid number of arguments"),
        ("consul_dynamic \"\";", "empty"),
        ("consul_dynamic tag=v1;", "a service name before \"tag=v1\""),
        ("consul_dynamic web colour=red;", "\"colour=red\""),
        ("consul_dynamic web passing;", "\"passing\""),
    ] {
        refused_in_upstream(line, &["\"consul_dynamic\" directive", word]);
    }
}

#[test]
fn a_source_has_the_parameters_that_mean_something_to_it() {
    for (line, named) in [
        ("consul_dynamic web source=zookeeper;", "zookeeper"),
        ("consul_dynamic web source=catalog status=any;", "status"),
        ("consul_dynamic up/web tag=v1 source=kv;", "tag"),
        ("consul_dynamic up/web source=kv filter=x;", "filter"),
        ("consul_dynamic web source=query filter=x;", "filter"),
        ("consul_dynamic / source=kv;", "prefix"),
    ] {
        refused_in_upstream(line, &["\"consul_dynamic\"", named]);
    }
    refused_in_http("consul_poll 100ms;", &["\"consul_poll\"", "100ms", "at least 500ms"]);
}
