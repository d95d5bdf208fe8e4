//! An answer of `/v1/health/service`, from whoever can register anything.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nginx_consul_core::consul::instances::{Fields, parse_health};
use nginx_consul_core::model::MetaKeys;

/// A character that may stand in an address: nothing that ends a log line, a URL or a header.
fn is_harmless(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._:".contains(c)
}

fuzz_target!(|body: &[u8]| {
    let meta = MetaKeys::new(["version".to_owned()]);
    let fields = Fields { address_tag: Some("wan"), meta: Some(&meta) };
    let Ok(instances) = parse_health(body, fields) else { return };
    for pair in instances.good.windows(2) {
        assert!((&pair[0].node, &pair[0].id) <= (&pair[1].node, &pair[1].id), "not sorted");
    }
    for instance in &instances.good {
        assert!(!instance.node.is_empty() && !instance.id.is_empty() && instance.port > 0);
        assert!(!instance.host.is_empty() && instance.host.chars().all(is_harmless));
        assert!(instance.host.len() <= 254, "longer than a name may be");
    }
    for skipped in &instances.skipped {
        // A reason is part of a log line.
        assert!(!skipped.reason.contains(char::is_control), "{:?}", skipped.reason);
        assert!(skipped.reason.len() < 4096);
    }
    // The same answer is the same set.
    assert_eq!(parse_health(body, fields).ok(), Some(instances));
});
