//! Answers of `/v1/catalog/service`.

use super::*;

const WEB: &[u8] = include_bytes!("../../../testdata/catalog_service_web.json");

#[test]
fn reads_a_recorded_answer() {
    let Instances { good, skipped, .. } = parse_catalog(WEB, Fields::default()).unwrap();
    let lines: Vec<_> = good
        .iter()
        .map(|i| format!("{} {} {}:{} {}", i.node, i.id, i.host, i.port, i.weight_passing))
        .collect();
    assert_eq!(
        lines,
        [
            "app1 web-1 10.0.0.11:8080 5",
            "app2 web-2 web2.example.internal:8443 10",
            "app3 web-3 2001:db8::13:8080 1",
            "app5 web-5 fd00::15:8080 1",
            "app6 web-6 node6.example.internal:8080 1",
            "app7 web-7 10.0.0.17:8080 1",
        ]
    );
    let told: Vec<_> = skipped.iter().map(|s| format!("{} {}", s.id, s.reason)).collect();
    assert_eq!(told, ["web-4 port 0 is not in 1-65535"]);
}

#[test]
fn a_tagged_address_is_taken_where_there_is_one() {
    let hosts: Vec<_> = parse_catalog(WEB, Fields { address_tag: Some("wan"), ..Fields::default() })
        .unwrap()
        .good
        .into_iter()
        .map(|i| format!("{} {}:{}", i.id, i.host, i.port))
        .collect();
    let expected = ["web-1 198.51.100.11:8080", "web-2 198.51.100.12:443"];
    assert_eq!(hosts[..2], expected);
    assert_eq!(hosts[2], "web-3 2001:db8::13:8080", "it has no other");
}

#[test]
fn an_element_that_breaks_a_rule_is_skipped_and_named() {
    let body = br#"[{"Node":"n","ServiceID":"i","ServicePort":"x"},
                    {"Node":"n","Address":"10.0.0.1","ServiceID":"j","ServicePort":0}]"#;
    let found = parse_catalog(body, Fields::default()).unwrap();
    let told: Vec<_> = found.skipped.iter().map(|s| format!("{} {}", s.node, s.id)).collect();
    assert_eq!((found.good.len(), told), (0, vec!["n i".to_owned(), "n j".to_owned()]));
}
