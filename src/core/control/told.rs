//! What the log says of overrides.

use std::time::Duration;

use crate::model::{Action, Override};
use crate::text::quote;

/// That it was set.
pub fn set(held: &Override, expires: Option<Duration>) -> String {
    let how_long = match expires {
        Some(time) => format!("for {time:?}"),
        None if held.action == Action::Freeze => "until it is thawed".to_owned(),
        None => "until it is lifted".to_owned(),
    };
    format!("{} ordered by \"{}\", {how_long}", what(held), quote(&held.by))
}

/// That somebody removed it.
pub fn removed(held: &Override, by: &str) -> String {
    format!("{} lifted by \"{}\"", what(held), quote(by))
}

/// That its time is over.
pub fn over(held: &Override) -> String {
    format!("{} is over, it was ordered by \"{}\"", what(held), quote(&held.by))
}

fn what(held: &Override) -> String {
    let (service, action) = (quote(&held.service), <&str>::from(held.action));
    if held.action == Action::Freeze {
        return format!("service \"{service}\": {action}");
    }
    let weight = held.weight.map_or_else(String::new, |weight| format!(" {weight}"));
    let named = |name: &String| format!(" in upstream \"{}\"", quote(name));
    let upstream = held.upstream.as_ref().map_or_else(String::new, named);
    let (id, node) = (quote(&held.id), quote(&held.node));
    format!(
        "service \"{service}\": {action}{weight} of instance \"{id}\" on node \"{node}\"{upstream}"
    )
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::model::of_instance;

    #[test]
    fn a_line_says_what_for_how_long_and_by_whom_and_stays_one_line() {
        let held = |action| Override {
            id: "web-1\n".into(),
            by: "a\"n@::1".into(),
            ..of_instance("web-1", action)
        };
        let weight = Override {
            upstream: Some("api".into()),
            weight: NonZeroU16::new(5),
            ..held(Action::Weight)
        };
        let expected = "service \"web\": weight 5 of instance \"web-1\\n\" on node \"n1\" \
                        in upstream \"api\" ";
        assert_eq!(
            set(&weight, Some(Duration::from_secs(600))),
            format!("{expected}ordered by \"a\\\"n@::1\", for 600s")
        );
        assert_eq!(removed(&weight, "b"), format!("{expected}lifted by \"b\""));
        let freeze = held(Action::Freeze);
        assert_eq!(
            set(&freeze, None),
            "service \"web\": freeze ordered by \"a\\\"n@::1\", until it is thawed"
        );
        assert!(over(&freeze).starts_with("service \"web\": freeze is over, "));
        assert!(set(&held(Action::Drain), None).ends_with("until it is lifted"));
    }
}
