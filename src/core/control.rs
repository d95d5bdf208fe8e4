//! What an operator asks of the module over HTTP (`consul_api`): paths, bodies, refusals and
//! answers. What becomes of it is in [`crate::table::orders`].

use serde::Serialize;

mod arguments;
mod body;
mod origin;
mod route;
mod shown;
mod told;

pub use arguments::Arguments;
pub use body::{Body, MAX_BODY};
pub use origin::{Headers, check_origin};
pub use route::{Route, Verb, route};
pub use shown::{
    AskedShown, FrozenShown, InstanceShown, InstancesShown, LiftedShown, OrderShown, Overview,
    PATHS, SelectionShown, ServiceShown, Services,
};
pub use told::{given, lifted, over};

use crate::table::{Order, Withheld};

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
        #[derive(Serialize)]
        struct Error<'a> {
            status: u16,
            text: &'a str,
            code: &'a str,
        }
        #[derive(Serialize)]
        struct Envelope<'a> {
            error: Error<'a>,
        }
        let Refusal { status, code, text, .. } = self;
        to_json(&Envelope { error: Error { status: *status, text, code } })
    }
}

/// What can be an answer's body.
pub trait Json: Serialize {}

impl<T: Serialize> Json for T {}

/// JSON for a response.
pub fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut json = serde_json::to_vec(value).unwrap_or_default();
    // For who reads it in a terminal.
    json.push(b'\n');
    json
}

/// What is ordered of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Override {
    /// `drain`, `down`, `up` or `weight`.
    pub action: &'static str,
    /// With `weight`.
    pub weight: Option<u16>,
    /// Who ordered it: user and address.
    pub by: String,
    /// When, milliseconds since the epoch.
    pub since_ms: u64,
    /// Until when; `null`: until it is lifted.
    pub until_ms: Option<u64>,
    /// The only `upstream` that it holds for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
}

/// Since when and until when a service is frozen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Frozen {
    /// Who ordered it: user and address.
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

fn until(order: &Order) -> Option<u64> {
    (order.until_ms != 0).then_some(order.until_ms)
}

impl From<&Order> for Override {
    fn from(order: &Order) -> Override {
        Override {
            action: order.action.name(),
            weight: order.action.weight(),
            by: order.by.clone(),
            since_ms: order.since_ms,
            until_ms: until(order),
            upstream: (!order.upstream.is_empty()).then(|| order.upstream.clone()),
        }
    }
}

impl Frozen {
    /// What is shown of an order to freeze.
    pub fn new(order: &Order, withheld: Withheld) -> Frozen {
        let Withheld { joined, left } = withheld;
        let (by, since_ms) = (order.by.clone(), order.since_ms);
        Frozen { by, since_ms, until_ms: until(order), joined, left }
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
            r#"{"error":{"status":404,"text":"no service \"a\"}\n<b>","code":"ServiceNotFound"}}"#;
        assert_eq!(json, format!("{expected}\n"));
    }
}
