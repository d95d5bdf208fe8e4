//! What the headers of a response say.

use std::time::Duration;

use http::HeaderMap;

/// A response with status 200.
///
/// A streamed response comes from a materialized view of the agent. Its headers always say that no
/// leader is known and that the data has no age, which means nothing
/// (<https://github.com/hashicorp/consul/issues/9776>, <https://github.com/hashicorp/consul/issues/11912>).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// `X-Consul-Index`; `None` if absent or not a decimal 64-bit number.
    pub index: Option<u64>,
    /// `X-Consul-Query-Backend` is `streaming`; Consul before 1.10.1 has no such header.
    pub streamed: bool,
    /// `X-Consul-KnownLeader`; `None` if the response is streamed.
    pub known_leader: Option<bool>,
    /// `X-Consul-LastContact`: age of the data on a follower; `None` if the response is streamed.
    pub last_contact: Option<Duration>,
    /// `Age`: of the data in an agent's cache; `None` if the response is streamed.
    pub age: Option<Duration>,
    /// `X-Consul-Results-Filtered-By-ACLs`: `true` if the token hides instances.
    pub filtered: bool,
    /// `X-Consul-Default-ACL-Policy` is `allow`.
    pub default_allow: bool,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// At most [`Endpoint::max_body`](crate::consul::endpoint::Endpoint::max_body) bytes.
    pub body: Vec<u8>,
}

impl Response {
    /// A response without its body.
    pub(super) fn from_headers(headers: &HeaderMap) -> Response {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let streamed = header("x-consul-query-backend") == Some("streaming");
        let unless_streamed = |name| header(name).filter(|_| !streamed);
        let last_contact = unless_streamed("x-consul-lastcontact").and_then(decimal);
        Response {
            index: header("x-consul-index").and_then(decimal),
            streamed,
            known_leader: unless_streamed("x-consul-knownleader").and_then(|v| v.parse().ok()),
            last_contact: last_contact.map(Duration::from_millis),
            age: unless_streamed("age").and_then(decimal).map(Duration::from_secs),
            filtered: header("x-consul-results-filtered-by-acls") == Some("true"),
            default_allow: header("x-consul-default-acl-policy") == Some("allow"),
            content_type: header("content-type").map(str::to_owned),
            body: Vec::new(),
        }
    }
}

fn decimal(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(headers: &[(&'static str, &'static str)]) -> Response {
        let pair = |&(name, value): &(&'static str, &'static str)| {
            (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap())
        };
        Response::from_headers(&headers.iter().map(pair).collect())
    }

    /// As in <https://github.com/hashicorp/consul/issues/11912>.
    const STREAMED: [(&str, &str); 7] = [
        ("Content-Type", "application/json"),
        ("X-Consul-Default-Acl-Policy", "allow"),
        ("X-Consul-Effective-Consistency", "leader"),
        ("X-Consul-Index", "42"),
        ("X-Consul-Knownleader", "false"),
        ("X-Consul-Lastcontact", "0"),
        ("X-Consul-Query-Backend", "streaming"),
    ];

    #[test]
    fn a_streamed_head_says_nothing_of_the_leader_or_of_the_age_of_the_data() {
        let streamed = head(&STREAMED);
        assert_eq!((streamed.index, streamed.streamed), (Some(42), true));
        assert_eq!((streamed.known_leader, streamed.last_contact), (None, None));
        let cached = [&STREAMED[..], &[("X-Cache", "HIT"), ("Age", "0")]].concat();
        assert_eq!(head(&cached).age, None);
    }

    #[test]
    fn the_same_headers_count_where_a_server_answers() {
        for backend in [&[("X-Consul-Query-Backend", "blocking-query")][..], &[]] {
            let headers = [&STREAMED[..6], backend, &[("Age", "7")]].concat();
            let response = head(&headers);
            assert!(!response.streamed && response.default_allow);
            assert_eq!(response.known_leader, Some(false));
            assert_eq!(response.last_contact, Some(Duration::ZERO));
            assert_eq!(response.age, Some(Duration::from_secs(7)));
        }
    }

    #[test]
    fn a_value_that_is_none_is_absent() {
        for index in ["", "-1", "+1", "1e3", "18446744073709551616"] {
            assert_eq!(head(&[("X-Consul-Index", index)]).index, None, "{index}");
        }
    }
}
