//! What is answered: refusals, and parts of JSON.

use serde::Serialize;
use serde_json::json;

use crate::model::Override;
use crate::table::FrozenDiff;

/// A request that is refused, in the words of NGINX Plus's API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub text: String,
    /// Of a 405: the methods there are.
    pub allow: Option<&'static str>,
}

impl Refusal {
    /// One without further headers.
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
    // For who reads it in a terminal.
    json.push(b'\n');
    json
}

/// Since when and until when a service is frozen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Frozen {
    /// Who set it: user and address.
    pub by: String,
    /// When, milliseconds since the epoch.
    pub since_ms: u64,
    /// Until when; `null`: until it is thawed.
    pub until_ms: Option<u64>,
    /// Instances that the last answer has and the frozen set lacks.
    pub joined: u32,
    /// Instances that the frozen set has and the last answer lacks.
    pub left: u32,
}

impl Frozen {
    /// What is shown of an order to freeze.
    pub fn new(held: &Override, withheld: FrozenDiff) -> Frozen {
        let FrozenDiff { joined, left } = withheld;
        let Override { since_ms, until_ms, .. } = *held;
        Frozen { by: held.by.clone(), since_ms, until_ms, joined, left }
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
