//! `Service.Meta`.

use super::*;

fn meta(json: &str, keys: &[&str]) -> Meta {
    let json: &RawValue = serde_json::from_str(json).unwrap();
    let keys = MetaKeys::new(keys.iter().map(|&key| key.to_owned()));
    service_meta(Some(json), Some(&keys)).unwrap().meta
}

#[test]
fn only_the_keys_that_have_variables_are_kept() {
    let json = r#"{"Canary-Group":"blue","other":7,"n":"x","version":"1.2"}"#;
    let kept = meta(json, &["canary_group", "version", "absent"]);
    let expected = [("canary_group", "blue"), ("version", "1.2")];
    assert!(kept.iter().map(|(k, v)| (k.as_str(), v.as_str())).eq(expected), "{kept:?}");
    assert!(meta(json, &[]).is_empty());
}

#[test]
fn of_keys_with_one_name_the_first_counts() {
    assert_eq!(meta(r#"{"A-B":"1","a-b":"2","a_b":"3"}"#, &["a_b"])["a_b"], "1");
}

#[test]
fn a_value_is_short_whoever_wrote_it() {
    let json = format!(r#"{{"v":"{}"}}"#, "x".repeat(100_000));
    assert_eq!(meta(&json, &["v"])["v"].len(), MAX_VALUE);
}

#[test]
fn a_parameter_for_nginx_may_have_a_variable_too() {
    let json: &RawValue = serde_json::from_str(r#"{"nginx_weight":"7"}"#).unwrap();
    let keys = MetaKeys::new(["nginx_weight".to_owned()]);
    let read = service_meta(Some(json), Some(&keys)).unwrap();
    assert_eq!((read.params.weight.map(u16::from), &*read.meta["nginx_weight"]), (Some(7), "7"));
}
