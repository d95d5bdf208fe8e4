//! Servers in Consul's key/value store, in the two layouts that people have.
//!
//! * A key for each server, as nginx-upsync-module has it: `upstreams/web/10.0.0.1:8080`, its value
//!   empty or a JSON object of nginx's parameters (`{"weight":5,"max_fails":2,"down":0}`).
//! * One key `upstreams/web` with a JSON list: `[{"ip":"10.0.0.1","port":8080,"weight":5}]`; `host`
//!   may stand for `ip`.
//!
//! Names are host names or addresses, IPv6 in brackets.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::instances::{Element, ParseError, RawInstance, ServiceMeta, elements};
use crate::model::{Health, Instances, Skipped};
use crate::params::Params;
use crate::text::quote;

/// Reads what `/v1/kv/<prefix>?recurse` answers: the servers under `prefix`, which has no slash at
/// its end. Such a query also gives the keys of neighbours (`webshop` beside `web`), which are not
/// servers of this prefix.
///
/// # Errors
///
/// The body is not a JSON array, or ends early.
pub fn parse(body: &[u8], prefix: &str) -> Result<Instances, ParseError> {
    let mut lists = Vec::new();
    let mut instances = Instances::default();
    elements(body, |json| match pair(json) {
        Ok((key, value)) => match key.strip_prefix(prefix) {
            Some("") => lists.push(value),
            Some(rest) => {
                if let Some(server) = rest.strip_prefix('/').filter(|name| !name.is_empty()) {
                    instances.add(of_key(&key, server, value.as_deref()));
                }
            }
            None => {}
        },
        Err(skipped) => instances.skipped.push(skipped),
    })?;
    for value in lists.into_iter().flatten() {
        of_list(prefix, &value).into_iter().for_each(|server| instances.add(server));
    }
    instances.sort();
    Ok(instances)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    key: String,
    value: Option<String>,
}

fn skipped(id: &str, reason: impl Into<String>) -> Skipped {
    Skipped { node: String::new(), id: id.to_owned(), reason: reason.into() }
}

/// A key and its value, unless that is empty.
fn pair(json: &str) -> Result<(String, Option<Vec<u8>>), Skipped> {
    let Entry { key, value } =
        serde_json::from_str(json).map_err(|error| skipped("", quote(&error.to_string())))?;
    let value = value.map(|value| STANDARD.decode(value)).transpose();
    let value = value.map_err(|_| skipped(&key, "its value is not base64"))?;
    Ok((key, value.filter(|value| !value.is_empty())))
}

fn of_key(key: &str, server: &str, value: Option<&[u8]>) -> Element {
    let invalid = || skipped(key, format!("invalid key, \"{}\" is no host:port", quote(server)));
    let (host, port) = server.rsplit_once(':').ok_or_else(invalid)?;
    let port = port.parse().map_err(|_| invalid())?;
    let parameters = value.map_or(Ok(Map::new()), serde_json::from_slice);
    let parameters = parameters.map_err(|_| skipped(key, "its value is not a JSON object"))?;
    instance(key.to_owned(), host, port, &parameters)
}

/// Servers of a key that holds a list of them.
fn of_list(key: &str, value: &[u8]) -> Vec<Element> {
    match serde_json::from_slice::<Vec<Value>>(value) {
        Ok(servers) => servers.iter().map(|server| of_element(key, server)).collect(),
        Err(_) => vec![Err(skipped(key, "its value is not a JSON list"))],
    }
}

fn of_element(key: &str, server: &Value) -> Element {
    let not_an_object = || skipped(key, "an element of its list is not an object");
    let server = server.as_object().ok_or_else(not_an_object)?;
    let host = server.get("ip").or(server.get("host")).and_then(Value::as_str);
    let port = server.get("port").and_then(|port| match port {
        Value::String(text) => text.parse().ok(),
        value => value.as_i64(),
    });
    let (host, port) = host
        .zip(port)
        .ok_or_else(|| skipped(key, "an element of its list has no \"ip\" or no \"port\""))?;
    // The name that the same server would have as a key.
    let brackets = host.contains(':') && !host.starts_with('[');
    let name = if brackets { format!("[{host}]") } else { host.to_owned() };
    instance(format!("{key}/{name}:{port}"), host, port, server)
}

fn instance(id: String, host: &str, port: i64, parameters: &Map<String, Value>) -> Element {
    let (params, flaws) = params(parameters);
    let address = Some(host.to_owned());
    let raw = RawInstance { id: Some(id), address, port: Some(port), ..RawInstance::default() };
    let meta = ServiceMeta { params, flaws, ..ServiceMeta::default() };
    raw.finish(Health::Passing, meta)
}

/// nginx's parameters; other members are not read.
fn params(parameters: &Map<String, Value>) -> (Params, Vec<String>) {
    let (mut params, mut flaws) = (Params::default(), Vec::new());
    for name in Params::NAMES {
        let text = match parameters.get(name) {
            None | Some(Value::Null) => continue,
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        };
        // upsync writes 0 and 1.
        let text = match (name, text.as_str()) {
            ("backup" | "down", "0") => "false",
            ("backup" | "down", "1") => "true",
            (_, text) => text,
        };
        if params.set(name, text).is_err() {
            flaws.push(format!("invalid value \"{}\" of \"{name}\"", quote(text)));
        }
    }
    (params, flaws)
}

#[cfg(test)]
mod tests;
