//! The dashboard: one page, the same for everyone, that requests `?format=json` by itself. Its
//! markup, styles and scripts are in `dashboard/`; this file puts them together.
//!
//! The page loads nothing from elsewhere. Its Content-Security-Policy admits its own script and style by
//! their digests and no other, and no markup out of text (`require-trusted-types-for`).

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

const STYLE: &str = concat!(
    include_str!("dashboard/page.css"),
    include_str!("dashboard/charts.css"),
    include_str!("dashboard/list.css"),
    include_str!("dashboard/narrow.css"),
);

const SCRIPT: &str = concat!(
    include_str!("dashboard/js/text.js"),
    include_str!("dashboard/js/dom.js"),
    include_str!("dashboard/js/model.js"),
    include_str!("dashboard/js/health.js"),
    include_str!("dashboard/js/view.js"),
    include_str!("dashboard/js/list.js"),
    include_str!("dashboard/js/rows.js"),
    include_str!("dashboard/js/detail.js"),
    include_str!("dashboard/js/overview.js"),
    include_str!("dashboard/js/controls.js"),
    include_str!("dashboard/js/main.js"),
);

static PAGE: LazyLock<Page> = LazyLock::new(Page::new);

/// The dashboard.
#[derive(Debug)]
pub struct Page {
    /// HTML in UTF-8.
    pub body: String,
    policy: String,
}

/// The page of this build.
pub fn page() -> &'static Page {
    &PAGE
}

impl Page {
    fn new() -> Page {
        let body = include_str!("dashboard/page.html")
            .replace("<!-- page.css -->", STYLE)
            .replace("<!-- page.js -->", SCRIPT);
        let policy = format!(
            "default-src 'none'; script-src {}; style-src {}; img-src data:; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'self'; \
             require-trusted-types-for 'script'; trusted-types 'none'",
            source_of(SCRIPT),
            source_of(STYLE),
        );
        Page { body, policy }
    }

    /// Names and values of the headers that go with it.
    pub fn headers(&self) -> [(&'static str, &str); 3] {
        [
            ("Content-Security-Policy", &self.policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
        ]
    }
}

/// The text as a source of a Content-Security-Policy.
fn source_of(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(digest(&SHA256, text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_and_loads_nothing() {
        let Page { body, .. } = page();
        assert!(body.contains(STYLE) && body.contains(SCRIPT), "a placeholder is left");
        assert!(body.contains("<noscript>") && body.contains("?format=json"));
        for text in
            ["http-equiv", "src=", " style=", " onclick=", "innerHTML", "insertAdjacentHTML"]
        {
            assert!(!body.contains(text), "{text}");
        }
        // Either would end its element early.
        assert!(!SCRIPT.contains("</script") && !STYLE.contains("</style"));
    }

    #[test]
    fn the_policy_admits_the_page_s_own_script_and_style() {
        // `printf abc | openssl dgst -sha256 -binary | base64`
        let abc = "'sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0='";
        assert_eq!(source_of("abc"), abc);
        let (_, policy) = page().headers()[0];
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe") && policy.is_ascii(), "{policy}");
    }
}
