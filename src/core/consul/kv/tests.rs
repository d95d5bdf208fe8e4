use std::num::NonZeroU16;

use super::*;

/// An answer with these keys and values.
fn answer(pairs: &[(&str, Option<&str>)]) -> Vec<u8> {
    let pair = |(key, value): &(&str, Option<&str>)| {
        let value = value.map(|value| STANDARD.encode(value));
        serde_json::json!({"Key": key, "Value": value, "Flags": 0, "ModifyIndex": 7})
    };
    serde_json::to_vec(&pairs.iter().map(pair).collect::<Vec<_>>()).unwrap()
}

fn servers(found: &Instances) -> Vec<String> {
    found.good.iter().map(|i| format!("{}:{}", i.host, i.port)).collect()
}

fn told(found: &Instances) -> Vec<String> {
    found.skipped.iter().map(|s| format!("{}: {}", s.id, s.reason)).collect()
}

#[test]
fn a_key_for_each_server_with_upsync_s_parameters() {
    let value =
        r#"{"weight":5,"max_fails":"2","fail_timeout":10,"max_conns":7,"backup":1,"down":0}"#;
    let body = answer(&[
        ("up/web/", None),
        ("up/web/10.0.0.1:8080", None),
        ("up/web/[2001:db8::1]:80", Some("")),
        ("up/web/db.example:81", Some(value)),
    ]);
    let found = parse(&body, "up/web").unwrap();
    assert_eq!(servers(&found), ["10.0.0.1:8080", "2001:db8::1:80", "db.example:81"]);
    let expected = Params {
        weight: NonZeroU16::new(5),
        max_fails: Some(2),
        fail_timeout: Some(10),
        max_conns: Some(7),
        slow_start: None,
        backup: true,
        down: false,
    };
    assert_eq!(found.good[2].params, expected);
    assert_eq!((told(&found), found.flawed), (vec![], vec![]));
}

#[test]
fn one_key_with_the_recipe_s_list() {
    let list = r#"[{"ip":"10.0.0.1","port":8080,"weight":3},{"host":"db.example","port":"81"},
                   {"ip":"2001:db8::1","port":80,"name":"x"}]"#;
    let found = parse(&answer(&[("up/web", Some(list))]), "up/web").unwrap();
    assert_eq!(servers(&found), ["10.0.0.1:8080", "2001:db8::1:80", "db.example:81"]);
    assert_eq!(found.good[0].params.weight, NonZeroU16::new(3));
    let keys = [("up/web/10.0.0.1:8080", None), ("up/web/[2001:db8::1]:80", None)];
    let keys = parse(&answer(&keys), "up/web").unwrap();
    assert_eq!(found.good[0].id, keys.good[0].id, "the same server in both layouts");
    assert_eq!(found.good[1].id, keys.good[1].id);
}

#[test]
fn neighbours_are_nobody_s_servers() {
    let body =
        answer(&[("up/web2/10.0.0.2:80", None), ("up/web", None), ("up/website", Some("["))]);
    let found = parse(&body, "up/web").unwrap();
    assert_eq!((servers(&found), told(&found)), (vec![], vec![]));
}

#[test]
fn what_is_bad_is_named_and_costs_nobody_else() {
    let body = answer(&[
        ("up/web", Some(r#"[7, {"port":80}, {"ip":"10.0.0.9","port":80}]"#)),
        ("up/web/10.0.0.1", None),
        ("up/web/10.0.0.1:port", None),
        ("up/web/10.0.0.1:0", None),
        ("up/web/old/10.0.0.1:80", None),
        ("up/web/10.0.0.2:80", Some("weight=5")),
        ("up/web/10.0.0.3:80", Some(r#"{"weight":0}"#)),
    ]);
    let found = parse(&body, "up/web").unwrap();
    assert_eq!(servers(&found), ["10.0.0.3:80", "10.0.0.9:80"]);
    assert_eq!(
        told(&found),
        [
            "up/web/10.0.0.1: invalid key, \"10.0.0.1\" is no host:port",
            "up/web/10.0.0.1:port: invalid key, \"10.0.0.1:port\" is no host:port",
            "up/web/10.0.0.1:0: port 0 is not in 1-65535",
            "up/web/old/10.0.0.1:80: invalid address \"old/10.0.0.1\"",
            "up/web/10.0.0.2:80: its value is not a JSON object",
            "up/web: an element of its list is not an object",
            "up/web: an element of its list has no \"ip\" or no \"port\"",
        ]
    );
    assert_eq!(found.flawed[0].reason, "invalid value \"0\" of \"weight\"");
    let whole = parse(&answer(&[("up/web", Some("{}"))]), "up/web").unwrap();
    assert_eq!(told(&whole), ["up/web: its value is not a JSON list"]);
    let raw = br#"[{"Key":"up/web/10.0.0.1:80","Value":"%"},{"Key":7},7]"#;
    assert_eq!(parse(raw, "up/web").unwrap().skipped.len(), 3);
    assert!(parse(b"{}", "up/web").is_err());
}

#[test]
fn reads_a_recorded_answer() {
    let raw = include_bytes!("../../testdata/kv_recurse.http");
    let at = raw.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let found = parse(&raw[at..], "up/web").unwrap();
    assert_eq!(servers(&found), ["10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!(found.good[0].params.weight, NonZeroU16::new(5));
    assert_eq!(told(&found), ["up/web/bin: invalid key, \"bin\" is no host:port"]);
}
