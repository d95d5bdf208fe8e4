//! What Consul says about a token.

use super::error::Error;

/// State of the token in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenState {
    /// Consul knows it, and it is linked to some right.
    HasRights,
    /// Consul knows it, and it is linked to no policy, role or identity.
    NoRights,
    /// ACLs are off.
    Disabled,
}

/// What links a token to rights, in an answer of `/v1/acl/token/self`.
const RIGHTS: [&str; 5] =
    ["Policies", "Roles", "ServiceIdentities", "NodeIdentities", "TemplatedPolicies"];

pub(super) fn token_state(body: &[u8]) -> Result<TokenState, Error> {
    let token: serde_json::Value = serde_json::from_slice(body)
        .map_err(|_| Error::Other("the answer of /v1/acl/token/self is not JSON".to_owned()))?;
    let linked = |name: &str| token[name].as_array().is_some_and(|links| !links.is_empty());
    // Tokens from before Consul 1.4 hold their rules themselves.
    let legacy = token["Legacy"] == true || token["Rules"].as_str().is_some_and(|r| !r.is_empty());
    let has_rights = legacy || RIGHTS.iter().any(|name| linked(name));
    Ok(if has_rights { TokenState::HasRights } else { TokenState::NoRights })
}
