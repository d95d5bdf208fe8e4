//! What the log says of orders.

use std::time::Duration;

use crate::table::{Action, Order};
use crate::text::quote;

/// That it was given.
pub fn given(order: &Order, expires: Option<Duration>) -> String {
    let how_long = match expires {
        Some(time) => format!("for {time:?}"),
        None if order.action == Action::Freeze => "until it is thawed".to_owned(),
        None => "until it is lifted".to_owned(),
    };
    format!("{} ordered by \"{}\", {how_long}", what(order), quote(&order.by))
}

/// That somebody lifted it.
pub fn lifted(order: &Order, by: &str) -> String {
    format!("{} lifted by \"{}\"", what(order), quote(by))
}

/// That its time is over.
pub fn over(order: &Order) -> String {
    format!("{} is over, it was ordered by \"{}\"", what(order), quote(&order.by))
}

fn what(order: &Order) -> String {
    let service = quote(&order.service);
    if order.action == Action::Freeze {
        return format!("service \"{service}\": freeze");
    }
    let weight = order.action.weight().map_or_else(String::new, |weight| format!(" {weight}"));
    let upstream = match &*order.upstream {
        "" => String::new(),
        upstream => format!(" in upstream \"{}\"", quote(upstream)),
    };
    let (action, instance) = (order.action.name(), quote(&order.instance));
    format!("service \"{service}\": {action}{weight} of instance \"{instance}\"{upstream}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Subject;

    #[test]
    fn a_line_says_what_for_how_long_and_by_whom_and_stays_one_line() {
        let order = |action, upstream: &str| Order {
            subject: Subject::Target(1),
            action,
            since_ms: 0,
            until_ms: 0,
            service: "web".into(),
            instance: "web-1\n".into(),
            upstream: upstream.into(),
            by: "a\"n@::1".into(),
        };
        let weight = order(Action::Weight(5), "api");
        let expected = "service \"web\": weight 5 of instance \"web-1\\n\" in upstream \"api\" ";
        assert_eq!(
            given(&weight, Some(Duration::from_secs(600))),
            format!("{expected}ordered by \"a\\\"n@::1\", for 600s")
        );
        assert_eq!(lifted(&weight, "b"), format!("{expected}lifted by \"b\""));
        let freeze = order(Action::Freeze, "");
        assert_eq!(
            given(&freeze, None),
            "service \"web\": freeze ordered by \"a\\\"n@::1\", until it is thawed"
        );
        assert!(over(&freeze).starts_with("service \"web\": freeze is over, "));
        assert!(given(&order(Action::Drain, ""), None).ends_with("until it is lifted"));
    }
}
