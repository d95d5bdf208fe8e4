//! What a request asks for: its query arguments and its `Accept` header.

use std::borrow::Cow;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The format of the response.
    pub format: Format,
    /// `service=`: this service only.
    pub service: Option<String>,
}

/// A format of the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The dashboard.
    Html,
    /// JSON.
    Json,
    /// Prometheus' text format, version 0.0.4
    /// (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
    Text,
    /// OpenMetrics 1.0 (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
    OpenMetrics,
}

/// `format=` with an unknown word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown format \"{0}\", it must be \"json\", \"prometheus\" or \"html\"")]
pub struct UnknownFormat(String);

impl Format {
    /// Its `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Html => "text/html; charset=utf-8",
            Format::Json => "application/json",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The format that an `Accept` header likes best; HTML if it names none of ours.
    fn accepted(accept: &str) -> Format {
        let mut best = (Format::Html, 0.0);
        for item in accept.split(',') {
            let mut parts = item.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
            let parameter = |wanted: &str| {
                let found = parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
                found.map(|(_, value)| value.trim_matches('"'))
            };
            let format = match &*kind {
                "text/html" | "application/xhtml+xml" => Format::Html,
                "application/json" => Format::Json,
                "application/openmetrics-text" => Format::OpenMetrics,
                // Without the version it means any text.
                "text/plain" if parameter("version") == Some("0.0.4") => Format::Text,
                _ => continue,
            };
            let quality = parameter("q").map_or(1.0, |q| q.parse().unwrap_or(0.0));
            if quality > best.1 {
                best = (format, quality);
            }
        }
        best.0
    }
}

impl Ask {
    /// Reads the query arguments and the `Accept` header. The first of several arguments of one
    /// name counts, as in nginx's `$arg_name`; an empty `service=` is none.
    ///
    /// # Errors
    ///
    /// `format=` with an unknown word.
    pub fn parse(arguments: &[u8], accept: &str) -> Result<Ask, UnknownFormat> {
        let argument = |wanted: &str| {
            let mut all = form_urlencoded::parse(arguments);
            all.find(|(name, _)| name == wanted).map(|(_, value)| value)
        };
        let accepted = Format::accepted(accept);
        let format = match argument("format").as_deref() {
            None => accepted,
            Some("html") => Format::Html,
            Some("json") => Format::Json,
            Some("prometheus") if accepted == Format::OpenMetrics => Format::OpenMetrics,
            Some("prometheus") => Format::Text,
            Some(other) => return Err(UnknownFormat(crate::text::printable(other).into_owned())),
        };
        let service = argument("service").filter(|name| !name.is_empty());
        Ok(Ask { format, service: service.map(Cow::into_owned) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_says_the_format_else_what_prometheus_a_browser_and_curl_accept() {
        let old = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
                   version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let new = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                   text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        for (arguments, accept, expected) in [
            ("", "", Format::Html),
            ("format=json", "text/html", Format::Json),
            ("a=b&format=prometheus", "", Format::Text),
            ("format=html", "application/json", Format::Html),
            ("", old, Format::OpenMetrics),
            ("", new, Format::OpenMetrics),
            ("format=prometheus", new, Format::OpenMetrics),
            ("", "text/plain;version=0.0.4;q=1,*/*;q=0.1", Format::Text),
            ("", browser, Format::Html),
            ("", "*/*", Format::Html),
            // Any text is no metrics.
            ("", "text/plain", Format::Html),
            ("", "application/json;q=0.9, text/html;q=0.8", Format::Json),
            ("", ";;,=,q=,application/json;q=x", Format::Html),
            ("", "APPLICATION/JSON ; Q=0.5", Format::Json),
        ] {
            let ask = Ask::parse(arguments.as_bytes(), accept).unwrap();
            assert_eq!(ask.format, expected, "{arguments} {accept}");
        }
        let error = Ask::parse(b"format=xml%0a", "").unwrap_err().to_string();
        assert!(error.contains("\"xml\\n\"") && error.contains("json"), "{error}");
    }

    #[test]
    fn a_service_is_named_as_forms_encode_it() {
        let service = |arguments: &str| Ask::parse(arguments.as_bytes(), "").unwrap().service;
        assert_eq!(service("format=json&service=web"), Some("web".into()));
        assert_eq!(service("service=a%2fb+c%2B"), Some("a/b c+".into()));
        assert_eq!(service("service="), None);
        assert_eq!(service("services=web"), None);
    }
}
