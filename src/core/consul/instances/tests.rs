use proptest::prelude::*;

use std::num::NonZeroU16;

use super::*;

const WEB: &[u8] = include_bytes!("../../testdata/health_service_web.json");
const MAINTENANCE: &[u8] = include_bytes!("../../testdata/health_service_api_maintenance.json");

fn good(json: &str) -> Instance {
    let Instances { mut good, skipped, .. } =
        parse_health(format!("[{json}]").as_bytes(), Fields::default()).unwrap();
    assert_eq!((good.len(), &skipped[..]), (1, &[][..]), "{json}");
    good.remove(0)
}

/// "node id reason" of the only element.
fn skipped(json: &str) -> String {
    let Instances { good, skipped, .. } =
        parse_health(format!("[{json}]").as_bytes(), Fields::default()).unwrap();
    assert_eq!((good.len(), skipped.len()), (0, 1), "{json}");
    format!("{} {} {}", skipped[0].node, skipped[0].id, skipped[0].reason)
}

fn with_service(fields: &str) -> String {
    format!(r#"{{"Node":{{"Node":"n","Address":"10.0.0.1"}},"Service":{{"ID":"i",{fields}}}}}"#)
}

#[test]
fn reads_a_recorded_answer() {
    let Instances { good, skipped, .. } = parse_health(WEB, Fields::default()).unwrap();
    let lines: Vec<_> = good
        .iter()
        .map(|i| {
            let (passing, warning) = (i.weight_passing, i.weight_warning);
            let health = serde_json::to_value(i.health).unwrap();
            let health = health.as_str().unwrap();
            format!("{} {} {}:{} {health} {passing}/{warning}", i.node, i.id, i.host, i.port)
        })
        .collect();
    assert_eq!(
        lines,
        [
            "app1 web-1 10.0.0.11:8080 passing 5/1",
            "app2 web-2 web2.example.internal:8443 warning 10/2",
            "app3 web-3 2001:db8::13:8080 critical 1/1",
            "app5 web-5 fd00::15:8080 critical 1/1",
            "app6 web-6 node6.example.internal:8080 critical 1/1",
        ]
    );
    assert_eq!(good[0].tags, ["v1", "http", "weight=5"]);
    assert_eq!(good[0].datacenter, "dc1");
    let reasons: Vec<_> = skipped.iter().map(|s| format!("{} {}", s.id, s.reason)).collect();
    assert_eq!(reasons, ["web-4 port 0 is not in 1-65535", "web-7 port 70000 is not in 1-65535"]);
}

#[test]
fn maintenance_mode_is_critical() {
    assert_eq!(
        parse_health(MAINTENANCE, Fields::default()).unwrap().good[0].health,
        Health::Critical
    );
}

#[test]
fn the_worst_check_counts_whatever_its_order() {
    for (statuses, health) in [
        (&[][..], Health::Passing),
        (&["\"passing\""][..], Health::Passing),
        (&["\"warning\"", "\"passing\""][..], Health::Warning),
        (&["\"critical\"", "\"warning\""][..], Health::Critical),
        (&["\"passing\"", "\"something new\""][..], Health::Critical),
        (&["null"][..], Health::Critical),
    ] {
        let checks: Vec<_> = statuses.iter().map(|s| format!("{{\"Status\":{s}}}")).collect();
        let json = format!(
            r#"{{"Node":{{"Node":"n","Address":"::1"}},"Service":{{"ID":"i","Port":1}},"Checks":[{}]}}"#,
            checks.join(",")
        );
        assert_eq!(good(&json).health, health, "{statuses:?}");
    }
}

#[test]
fn nulls_and_unknown_keys_are_nothing() {
    let instance = good(
        r#"{"New":[{"a":{}}],"Node":{"Node":"n","Address":"10.0.0.1","Meta":null,"X":1},
            "Service":{"ID":"i","Tags":null,"Address":null,"Port":80,"Weights":null,"Y":"z"},
            "Checks":null}"#,
    );
    assert_eq!((instance.host.as_str(), instance.tags.len()), ("10.0.0.1", 0));
    assert_eq!((instance.weight_passing.get(), instance.weight_warning), (1, 1));
}

#[test]
fn weights_have_a_floor_and_a_ceiling() {
    for (weights, expected) in [
        (r#"{"Passing":10,"Warning":0}"#, (10, 0)),
        (r#"{"Passing":0,"Warning":0}"#, (1, 1)),
        (r#"{"Passing":0,"Warning":3}"#, (1, 3)),
        (r#"{"Passing":-5,"Warning":-5}"#, (1, 1)),
        (r#"{"Passing":70000,"Warning":70000}"#, (65535, 65535)),
        (r#"{"Passing":7}"#, (7, 1)),
        ("{}", (1, 1)),
    ] {
        let instance = good(&with_service(&format!(r#""Port":1,"Weights":{weights}"#)));
        let found = (instance.weight_passing.get(), instance.weight_warning);
        assert_eq!(found, expected, "{weights}");
    }
}

#[test]
fn addresses_lose_their_brackets_and_names_stay() {
    for (address, host) in [
        ("10.1.2.3", "10.1.2.3"),
        ("[::1]", "::1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("web-1.node_a.example.", "web-1.node_a.example."),
        ("", "10.0.0.1"),
    ] {
        let instance = good(&with_service(&format!(r#""Port":1,"Address":"{address}""#)));
        assert_eq!(instance.host, host, "{address}");
    }
}

#[test]
fn a_bad_address_is_skipped() {
    for address in
        ["bad addr!", "unix:///x", "a\\u0007b", "a\\nb", "a..b", "-a", "fe80::1%eth0", "ä"]
    {
        let line = skipped(&with_service(&format!(r#""Port":1,"Address":"{address}""#)));
        assert!(line.starts_with("n i invalid address \""), "{line}");
        assert!(!line.contains(char::is_control), "{line:?}");
    }
    let none = r#"{"Node":{"Node":"n"},"Service":{"ID":"i","Port":1}}"#;
    assert_eq!(skipped(none), "n i no address");
}

#[test]
fn a_bad_port_is_skipped() {
    assert_eq!(skipped(&with_service(r#""Port":0"#)), "n i port 0 is not in 1-65535");
    assert_eq!(skipped(&with_service(r#""Port":-1"#)), "n i port -1 is not in 1-65535");
    assert_eq!(skipped(&with_service(r#""Tags":[]"#)), "n i port 0 is not in 1-65535");
    for port in ["\"80\"", "1e9", "99999999999999999999", "80.5"] {
        let line = skipped(&with_service(&format!(r#""Port":{port}"#)));
        assert!(line.starts_with("n i invalid "), "{line}");
    }
}

#[test]
fn an_element_of_any_other_shape_costs_only_itself() {
    let web = with_service(r#""Port":80"#);
    for bad in [
        "null",
        "5",
        "\"x\"",
        "[]",
        "[[[]]]",
        "{}",
        r#"{"Node":5,"Service":[]}"#,
        r#"{"Service":{"ID":"i","Port":1}}"#,
        r#"{"Node":{"Node":"n","Address":"::1"},"Service":{"Port":1}}"#,
        r#"{"Node":{"Node":"n","Address":"::1"},"Service":{"ID":"i","Port":1},"Checks":{}}"#,
        r#"{"Node":{"Node":"n","Address":"::1"},"Service":{"ID":"i","Port":1,"Tags":[null]}}"#,
        r#"{"Node":{"Node":"\ud800","Address":"::1"},"Service":{"ID":"i","Port":1}}"#,
    ] {
        let both =
            parse_health(format!("[{web},{bad},{web}]").as_bytes(), Fields::default()).unwrap();
        assert_eq!((both.good.len(), both.skipped.len()), (2, 1), "{bad}");
    }
}

#[test]
fn what_is_not_a_list_is_an_error() {
    for body in ["", "null", "{}", "\"x\"", "[", "[{}", "[{},]", "[]x", "<html>", "[1 2]"] {
        let error = parse_health(body.as_bytes(), Fields::default()).expect_err(body).to_string();
        assert!(error.starts_with("the answer is not a list of instances ("), "{error}");
    }
    assert_eq!(parse_health(b" [ ] \n", Fields::default()).unwrap(), Instances::default());
}

#[test]
fn twenty_thousand_instances_in_16_mib() {
    let output = "x".repeat(470);
    let mut body = String::from("[");
    for i in 0..20_000 {
        let comma = if i == 0 { "" } else { "," };
        body += &format!(
            r#"{comma}{{"Node":{{"ID":"","Node":"node-{i:05}","Address":"10.{}.{}.7","Datacenter":"dc1",
            "Meta":null}},"Service":{{"ID":"big-{i}","Service":"big","Tags":["v1","http"],"Address":"",
            "Port":{},"Weights":{{"Passing":1,"Warning":1}}}},"Checks":[{{"CheckID":"serfHealth",
            "Status":"passing"}},{{"CheckID":"service:big-{i}","Status":"passing","Output":"{output}"}}]}}"#,
            i / 256,
            i % 256,
            1 + i
        );
    }
    body += "]";
    assert!(body.len() > 16 << 20, "{}", body.len());
    let instances = parse_health(body.as_bytes(), Fields::default()).unwrap();
    assert_eq!((instances.good.len(), instances.skipped.len()), (20_000, 0));
}

proptest! {
    #[test]
    fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_health(&body, Fields::default());
    }

    #[test]
    fn no_text_makes_an_unbelievable_instance(host in ".*", port: i64, node in ".*", id in ".*") {
        let text = |s: &str| serde_json::to_string(s).unwrap();
        let json = format!(
            r#"[{{"Node":{{"Node":{}}},"Service":{{"ID":{},"Address":{},"Port":{port}}}}}]"#,
            text(&node), text(&id), text(&host)
        );
        let found = parse_health(json.as_bytes(), Fields::default()).unwrap();
        prop_assert_eq!(found.good.len() + found.skipped.len(), 1);
        for instance in found.good {
            prop_assert!(instance.host.bytes().all(|b| b.is_ascii_graphic()));
            prop_assert!(!instance.node.is_empty() && !instance.id.is_empty());
            prop_assert_eq!(i64::from(instance.port), port);
        }
        for skipped in found.skipped {
            prop_assert!(!skipped.reason.contains(char::is_control));
        }
    }
}

#[test]
fn an_instance_brings_nginx_s_parameters_in_its_meta() {
    let meta =
        r#""Port":80,"Meta":{"team":"a","nginx_weight":"7","nginx_backup":"true","x":"\u0000"}"#;
    let params = good(&with_service(meta)).params;
    assert_eq!((params.weight, params.backup), (NonZeroU16::new(7), true));
    assert_eq!(good(&with_service(r#""Port":80,"Meta":null"#)).params, Params::default());
}

#[test]
fn a_bad_parameter_is_named_and_the_instance_stays() {
    let json = with_service(r#""Port":80,"Meta":{"nginx_weight":"much","nginx_max_fails":"3"}"#);
    let found = parse_health(format!("[{json}]").as_bytes(), Fields::default()).unwrap();
    assert_eq!(found.good[0].params, Params { max_fails: Some(3), ..Params::default() });
    let flaw = "invalid value \"much\" of \"nginx_weight\" in Service.Meta";
    let expected = Skipped { node: "n".into(), id: "i".into(), reason: flaw.into() };
    assert_eq!(found.flawed, [expected]);
}

#[test]
fn a_tagged_address_is_chosen_as_consul_s_dns_does() {
    let of = |service: &str, address_tag| {
        let json = format!(
            r#"{{"Node":{{"Node":"n","Address":"10.0.0.1","TaggedAddresses":{{"wan":"1.0.0.1"}}}},
                "Service":{{"ID":"i","Port":80,{service}}}}}"#
        );
        let found = parse_health(
            format!("[{json}]").as_bytes(),
            Fields { address_tag, ..Fields::default() },
        )
        .unwrap();
        format!("{}:{}", found.good[0].host, found.good[0].port)
    };
    let tagged =
        r#""Address":"10.0.0.2","TaggedAddresses":{"wan":{"Address":"1.0.0.2","Port":81}}"#;
    assert_eq!(of(tagged, Some("wan")), "1.0.0.2:81");
    assert_eq!(of(tagged, Some("lan")), "10.0.0.2:80", "the service's only one");
    assert_eq!(of(tagged, None), "10.0.0.2:80");
    assert_eq!(of(r#""Address":"10.0.0.2""#, Some("wan")), "10.0.0.2:80");
    assert_eq!(of(r#""Address":"""#, Some("wan")), "1.0.0.1:80", "the node's");
    assert_eq!(of(r#""TaggedAddresses":null"#, Some("lan")), "10.0.0.1:80");
}

#[test]
fn the_nodes_of_an_executed_query_are_instances_and_null_is_none() {
    let body = br#"{"Service":"web","Datacenter":"dc2","Failovers":1,"Nodes":[
        {"Node":{"Node":"n","Address":"10.0.0.1"},"Service":{"ID":"i","Port":80},"Checks":[]},
        {"Node":{"Node":"n"},"Service":{"ID":"j","Port":0}}]}"#;
    let fields = Fields::default();
    let found = parse_executed(body, fields).unwrap();
    assert_eq!((found.good[0].id.as_str(), found.skipped[0].id.as_str()), ("i", "j"));
    assert_eq!(parse_executed(br#"{"Nodes":null}"#, fields).unwrap(), Instances::default());
    assert!(parse_executed(b"[]", fields).is_err() && parse_executed(b"", fields).is_err());
}
