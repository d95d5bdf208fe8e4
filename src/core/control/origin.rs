//! Protection against cross-site request forgery: a page of another site must not make an operator's
//! browser change anything.
//!
//! It follows OWASP's cheat sheet for an API without forms: it checks the origin that the browser
//! states (`Sec-Fetch-Site`, else `Origin`), and requires a content type that a form can't send, so
//! that a script of another origin would need a CORS permission, which is never given.

use super::response::Refusal;

/// Checks a request that is to change something, by its headers.
///
/// # Errors
///
/// It may come from a page of another origin (403), or a form may have sent it (415).
pub fn check_origin<'a>(header: impl Fn(&'static str) -> Option<&'a [u8]>) -> Result<(), Refusal> {
    let cross_site = |text: &str| Err(Refusal::new(403, "CrossSite", text));
    let may = |site: &[u8]| site == b"same-origin" || site == b"none";
    match header("sec-fetch-site") {
        Some(site) if may(site) => {}
        Some(_) => {
            return cross_site("requests from pages of other origins are refused (Sec-Fetch-Site)");
        }
        // Not a browser, or an old one.
        None if header("origin").is_none_or(|origin| is_of(origin, header("host"))) => {}
        None => return cross_site("requests from pages of other origins are refused (Origin)"),
    }
    if !header("content-type").is_some_and(is_json) {
        let text = "the content type must be application/json, also of an empty body";
        return Err(Refusal::new(415, "ContentType", text));
    }
    Ok(())
}

/// Whether the origin has the host of the request. The scheme is not compared: a proxy before nginx
/// may terminate TLS.
fn is_of(origin: &[u8], host: Option<&[u8]>) -> bool {
    let host_of = |scheme: &[u8]| origin.strip_prefix(scheme);
    let asked = host_of(b"http://").or_else(|| host_of(b"https://"));
    asked
        .zip(host)
        .is_some_and(|(asked, host)| !host.is_empty() && asked.eq_ignore_ascii_case(host))
}

fn is_json(value: &[u8]) -> bool {
    let kind = value.split(|byte| *byte == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(
        site: Option<&'static str>,
        origin: Option<&'static str>,
        kind: Option<&'static str>,
    ) -> u16 {
        status_of(&[
            ("sec-fetch-site", site),
            ("origin", origin),
            ("host", Some("ops.example:8443")),
            ("content-type", kind),
        ])
    }

    fn status_of(headers: &[(&str, Option<&'static str>)]) -> u16 {
        let header = |name: &str| {
            let found = headers.iter().find(|(header, _)| *header == name);
            found.and_then(|(_, value)| *value).map(str::as_bytes)
        };
        check_origin(header).map_or_else(|refusal| refusal.status, |()| 200)
    }

    #[test]
    fn only_requests_of_the_same_origin_or_of_no_page_change_something() {
        let json = Some("application/json");
        assert_eq!(status(None, None, json), 200, "curl");
        assert_eq!(status(None, None, Some("Application/JSON; charset=utf-8")), 200);
        assert_eq!(status(Some("same-origin"), Some("https://ops.example:8443"), json), 200);
        // Something before nginx has changed the host.
        assert_eq!(status(Some("same-origin"), Some("https://ops.example"), json), 200);
        assert_eq!(status(Some("none"), None, json), 200);
        assert_eq!(status(None, Some("http://OPS.example:8443"), json), 200);
        for site in ["cross-site", "same-site", "", "Same-Origin", "same-origin, cross-site"] {
            assert_eq!(status(Some(site), None, json), 403, "{site}");
        }
        for origin in [
            "https://evil.example",
            "https://ops.example",
            "https://ops.example:8443.evil.example",
            "https://evil.example/ops.example:8443",
            "ops.example:8443",
            "null",
            "",
        ] {
            assert_eq!(status(None, Some(origin), json), 403, "{origin}");
            assert_eq!(status(Some("cross-site"), Some(origin), json), 403, "{origin}");
        }
        let no_host = [("origin", Some("http://")), ("content-type", json)];
        assert_eq!(status_of(&no_host), 403);
    }

    #[test]
    fn what_a_form_can_send_is_refused() {
        for kind in [
            None,
            Some(""),
            Some("text/plain"),
            Some("application/x-www-form-urlencoded"),
            Some("multipart/form-data; boundary=application/json"),
            Some("text/plain; application/json"),
            Some("application/jsonx"),
        ] {
            assert_eq!(status(None, None, kind), 415, "{kind:?}");
        }
    }
}
