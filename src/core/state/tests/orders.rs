//! Orders of operators in the file.

use super::*;

#[test]
fn orders_are_kept_but_for_those_to_freeze_and_anything_else_is_damage() {
    let frozen = Order { subject: Subject::Target(7), ..order(Action::Freeze) };
    let orders = vec![frozen, order(Action::Weight(5))];
    let state = State { orders, ..State::default() };
    let text = String::from_utf8(state.encode()).unwrap();
    let (_, content) = text.split_once('\n').unwrap();
    assert_eq!(
        State::decode_content(content.as_bytes()).unwrap().orders,
        [order(Action::Weight(5))]
    );
    for (from, to) in [
        ("\"weight\":5,", "\"weight\":0,"),
        ("\"weight\":5,", ""),
        ("\"action\":\"weight\"", "\"action\":\"drain\""),
        ("\"action\":\"weight\"", "\"action\":\"freeze\""),
        ("8000000000000000", "0000000000000000"),
        ("8000000000000000", "800000000000000"),
        ("8000000000000000", "+800000000000000"),
    ] {
        assert!(content.contains(from), "{content}");
        assert_eq!(content_error(&content.replace(from, to)), "an order is none");
    }
}
