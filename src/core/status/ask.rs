//! What a request asks of the status: its query arguments and its `Accept` header.

use percent_encoding::percent_decode;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// How it is to be written.
    pub format: Format,
    /// `service=`: this service only.
    pub service: Option<String>,
}

/// How the status is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Html,
    /// For programs.
    Json,
    /// Prometheus' text format, version 0.0.4
    /// (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
    Text,
    /// OpenMetrics 1.0 (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
    OpenMetrics,
}

/// `format=` with a word that is none.
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

    /// Whether it is one of Prometheus' formats.
    pub fn is_metrics(self) -> bool {
        matches!(self, Format::Text | Format::OpenMetrics)
    }

    /// What a type of an `Accept` header stands for.
    fn of_type(
        kind: &str,
        mut parameters: impl Iterator<Item = (String, String)>,
    ) -> Option<Format> {
        match kind.to_ascii_lowercase().as_str() {
            "text/html" | "application/xhtml+xml" => Some(Format::Html),
            "application/json" => Some(Format::Json),
            "application/openmetrics-text" => Some(Format::OpenMetrics),
            // Without the version it is any text.
            "text/plain" => parameters
                .any(|(name, value)| name == "version" && value == "0.0.4")
                .then_some(Format::Text),
            _ => None,
        }
    }

    /// The format that an `Accept` header likes best; HTML if it names none of ours.
    fn accepted(accept: &str) -> Format {
        let mut best = (Format::Html, 0.0);
        for item in accept.split(',') {
            let mut parts = item.split(';');
            let kind = parts.next().unwrap_or_default().trim();
            let parameters: Vec<(String, String)> = parts
                .filter_map(|part| part.trim().split_once('='))
                .map(|(name, value)| {
                    (name.to_ascii_lowercase(), value.trim_matches('"').to_owned())
                })
                .collect();
            let quality = parameters.iter().find(|(name, _)| name == "q");
            let quality = quality.map_or(1.0, |(_, q)| q.parse::<f32>().unwrap_or(0.0));
            if let Some(format) = Format::of_type(kind, parameters.into_iter()) {
                if quality > best.1 {
                    best = (format, quality);
                }
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
        let argument = |name: &str| {
            arguments.split(|&b| b == b'&').find_map(|argument| {
                argument.strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(decoded)
            })
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
        Ok(Ask { format, service: argument("service").filter(|name| !name.is_empty()) })
    }
}

/// As forms are encoded.
fn decoded(value: &[u8]) -> String {
    let spaced: Vec<u8> = value.iter().map(|&b| if b == b'+' { b' ' } else { b }).collect();
    percent_decode(&spaced).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(arguments: &str, accept: &str) -> Format {
        Ask::parse(arguments.as_bytes(), accept).unwrap().format
    }

    #[test]
    fn the_argument_says_the_format() {
        assert_eq!(format("", ""), Format::Html);
        assert_eq!(format("format=json", "text/html"), Format::Json);
        assert_eq!(format("a=b&format=prometheus", ""), Format::Text);
        assert_eq!(format("format=html", "application/json"), Format::Html);
        let error = Ask::parse(b"format=xml%0a", "").unwrap_err().to_string();
        assert!(error.contains("\"xml\\n\"") && error.contains("json"), "{error}");
    }

    #[test]
    fn prometheus_a_browser_and_curl_get_what_they_accept() {
        let old = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
                   version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let new = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                   text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let text = "text/plain;version=0.0.4;q=1,*/*;q=0.1";
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        assert_eq!(format("", old), Format::OpenMetrics);
        assert_eq!(format("", new), Format::OpenMetrics);
        assert_eq!(format("format=prometheus", new), Format::OpenMetrics);
        assert_eq!(format("", text), Format::Text);
        assert_eq!(format("", browser), Format::Html);
        assert_eq!(format("", "*/*"), Format::Html);
        assert_eq!(format("", "text/plain"), Format::Html, "any text is no metrics");
        assert_eq!(format("", "application/json;q=0.9, text/html;q=0.8"), Format::Json);
        assert_eq!(format("", ";;,=,q=,application/json;q=x"), Format::Html);
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
