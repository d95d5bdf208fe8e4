//! Lines of the error log about overrides.

use std::fmt::Write as _;
use std::time::Duration;

use crate::model::{Action, Override};
use crate::text::quote;

/// An override was set.
pub fn set_line(override_: &Override, expires: Option<Duration>) -> String {
    let how_long = match expires {
        Some(time) => format!("for {}", span(time)),
        None if override_.action == Action::Freeze => "until it is thawed".to_owned(),
        None => "until it is removed".to_owned(),
    };
    format!("{} set by \"{}\", {how_long}", what(override_), quote(&override_.by))
}

/// Somebody removed an override.
pub fn removed_line(override_: &Override, by: &str) -> String {
    format!("{} removed by \"{}\"", what(override_), quote(by))
}

/// The time of an override has passed.
pub fn expired_line(override_: &Override) -> String {
    format!("{} has expired, it was set by \"{}\"", what(override_), quote(&override_.by))
}

/// A whole number of seconds as nginx writes times: `1h30m`.
fn span(time: Duration) -> String {
    let units = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
    let mut left = time.as_secs();
    let mut text = String::new();
    for (unit, seconds) in units {
        if left >= seconds {
            let _ = write!(text, "{}{unit}", left / seconds);
            left %= seconds;
        }
    }
    text
}

fn what(override_: &Override) -> String {
    let (service, action) = (quote(&override_.service), <&str>::from(override_.action));
    if override_.action == Action::Freeze {
        return format!("service \"{service}\": {action}");
    }
    let weight = override_.weight.map_or_else(String::new, |weight| format!(" {weight}"));
    let named = |name: &String| format!(" in upstream \"{}\"", quote(name));
    let upstream = override_.upstream.as_ref().map_or_else(String::new, named);
    let (id, node) = (quote(&override_.id), quote(&override_.node));
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
    fn a_time_is_written_as_nginx_has_it() {
        let of = |seconds| span(Duration::from_secs(seconds));
        let texts = [1, 90, 600, 5400, 7200, 90_061, 365 * 86_400].map(of);
        assert_eq!(texts, ["1s", "1m30s", "10m", "1h30m", "2h", "1d1h1m1s", "365d"]);
    }

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
            set_line(&weight, Some(Duration::from_secs(600))),
            format!("{expected}set by \"a\\\"n@::1\", for 10m")
        );
        assert_eq!(removed_line(&weight, "b"), format!("{expected}removed by \"b\""));
        let freeze = held(Action::Freeze);
        assert_eq!(
            set_line(&freeze, None),
            "service \"web\": freeze set by \"a\\\"n@::1\", until it is thawed"
        );
        assert!(expired_line(&freeze).starts_with("service \"web\": freeze has expired, "));
        assert!(set_line(&held(Action::Drain), None).ends_with("until it is removed"));
    }
}
