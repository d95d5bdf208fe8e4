//! Parts of responses: refusals, and what a freeze shows.

use serde::Serialize;
use serde_json::json;

use crate::model::Override;
use crate::table::FrozenDiff;

/// The refusal of a request, in the format of NGINX Plus's API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Error code, for programs.
    pub code: &'static str,
    /// Explanation, for people.
    pub text: String,
    /// For a 405: the `Allow` header.
    pub allow: Option<&'static str>,
}

impl Refusal {
    /// A refusal without further headers.
    pub fn new(status: u16, code: &'static str, text: impl Into<String>) -> Refusal {
        Refusal { status, code, text: text.into(), allow: None }
    }

    /// The body of the response.
    pub fn to_json(&self) -> Vec<u8> {
        let Refusal { status, code, text, .. } = self;
        to_json(&json!({ "error": { "status": status, "text": text, "code": code } }))
    }
}

/// JSON for a response.
pub fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut json = serde_json::to_vec(value).unwrap_or_default();
    // For readers in a terminal.
    json.push(b'\n');
    json
}

/// The freeze of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Frozen {
    /// Who set it: user and address.
    pub by: String,
    /// When it was set, milliseconds since the epoch.
    pub since_ms: u64,
    /// When it expires; `null`: never.
    pub until_ms: Option<u64>,
    /// Instances that the last answer has and the frozen set lacks.
    pub joined: u32,
    /// Instances that the frozen set has and the last answer lacks.
    pub left: u32,
}

impl Frozen {
    /// The freeze that an override sets.
    pub fn new(override_: &Override, diff: FrozenDiff) -> Frozen {
        let FrozenDiff { joined, left } = diff;
        let Override { since_ms, until_ms, .. } = *override_;
        Frozen { by: override_.by.clone(), since_ms, until_ms, joined, left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_explains_itself_and_cannot_be_broken_out_of() {
        let refusal = Refusal::new(404, "ServiceNotFound", "no service \"a\"}\n<b>");
        let json = String::from_utf8(refusal.to_json()).unwrap();
        let expected =
            r#"{"error":{"code":"ServiceNotFound","status":404,"text":"no service \"a\"}\n<b>"}}"#;
        assert_eq!(json, format!("{expected}\n"));
    }
}
