//! A Consul whose ACL denies by default, and the tokens that nginx reads it with.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::consul::{Agent, Options};
use crate::{version, wait};

/// The token that may do everything.
pub const MANAGEMENT: &str = "b1000000-0000-4000-8000-000000000001";

/// Longest the ACL system may take to be there.
const PATIENCE: Duration = Duration::from_secs(60);

/// A token of Consul's.
#[derive(Clone, Debug)]
pub struct Token {
    /// What is sent with requests.
    pub secret: String,
    /// What Consul calls it, to take it back.
    pub accessor: String,
}

/// Starts an agent that denies by default, and makes a token that may read services and nodes.
///
/// # Panics
/// If that doesn't come to be.
pub fn start(options: Options) -> (Agent, Token) {
    let consul = options
        .hcl(&format!(
            "acl {{ enabled = true default_policy = \"deny\"
                    tokens {{ {} agent = \"{MANAGEMENT}\" }} }}",
            version::management_token(MANAGEMENT)
        ))
        .token(MANAGEMENT)
        .start();
    until_up(&consul);
    let rules = "service_prefix \"\" { policy = \"read\" } node_prefix \"\" { policy = \"read\" }";
    consul.put("/v1/acl/policy", &json!({ "Name": "gateway", "Rules": rules }));
    let token = issue(&consul).expect("a token");
    (consul, token)
}

/// Waits until an agent knows its tokens, after a restart too.
///
/// # Panics
/// If it never does.
pub fn until_up(consul: &Agent) {
    wait::until("the ACL system is up", PATIENCE, || {
        let own = consul.request("GET", "/v1/acl/token/self", &Value::Null);
        own.is_ok_and(|answer| answer.status == 200)
    });
}

/// Makes another token that may read services and nodes, if Consul is there to do so.
pub fn issue(consul: &Agent) -> Option<Token> {
    let wanted = json!({ "Policies": [{ "Name": "gateway" }] });
    let answer = consul.request("PUT", "/v1/acl/token", &wanted).ok()?;
    let made: Value = serde_json::from_str(&answer.body).ok()?;
    let text = |name: &str| Some(made[name].as_str()?.to_owned());
    Some(Token { secret: text("SecretID")?, accessor: text("AccessorID")? })
}

/// Takes a token back; says whether Consul did.
pub fn revoke(consul: &Agent, token: &Token) -> bool {
    let path = format!("/v1/acl/token/{}", token.accessor);
    let answer = consul.request("DELETE", &path, &Value::Null);
    answer.is_ok_and(|answer| answer.status == 200)
}

/// Puts a token into a file that workers can read, as programs that rotate tokens do it: the file
/// is replaced as a whole.
///
/// # Panics
/// If the file can't be written.
pub fn swap(file: &Path, token: &Token) {
    let new = file.with_extension("new");
    fs::write(&new, &token.secret).expect("a token file");
    fs::set_permissions(&new, Permissions::from_mode(0o644)).expect("readable by workers");
    fs::rename(new, file).expect("the token file");
}
