//! What Consul says of a token.

use super::Error;

/// What Consul knows of the token that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenState {
    /// It is known, and linked to some right.
    Rightful,
    /// It is known, and linked to no policy, role or identity.
    Powerless,
    /// ACLs are off.
    Disabled,
}

/// What links a token to rights, in an answer of `/v1/acl/token/self`.
const RIGHTS: [&str; 5] =
    ["Policies", "Roles", "ServiceIdentities", "NodeIdentities", "TemplatedPolicies"];

pub(super) fn token_rights(body: &[u8]) -> Result<TokenState, Error> {
    let token: serde_json::Value = serde_json::from_slice(body)
        .map_err(|_| Error::Other("the answer of /v1/acl/token/self is not JSON".to_owned()))?;
    let linked = |name: &str| token[name].as_array().is_some_and(|links| !links.is_empty());
    // Tokens from before Consul 1.4 hold their rules themselves.
    let legacy = token["Legacy"] == true || token["Rules"].as_str().is_some_and(|r| !r.is_empty());
    let rightful = legacy || RIGHTS.iter().any(|name| linked(name));
    Ok(if rightful { TokenState::Rightful } else { TokenState::Powerless })
}
