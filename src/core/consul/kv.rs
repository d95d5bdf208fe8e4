//! Servers in Consul's key/value store, in the two layouts that people have.
//!
//! * A key for each server, as nginx-upsync-module has it: `upstreams/web/10.0.0.1:8080`, its value
//!   empty or a JSON object of nginx's parameters (`{"weight":5,"max_fails":2,"down":0}`).
//! * One key `upstreams/web` with a JSON list: `[{"ip":"10.0.0.1","port":8080,"weight":5}]`; `host`
//!   may stand for `ip`.
//!
//! Names are host names or addresses, IPv6 in brackets.

use std::num::NonZeroU16;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::instances::{Element, Instances, ParseError, Skipped, elements, host, port};
use crate::model::{Health, Instance, Meta};
use crate::params::Params;
use crate::text::quote;

/// Reads what `/v1/kv/<prefix>?recurse` answers: the servers under `prefix`, which has no slash at
/// its end. Keys of neighbours (`webshop` beside `web`), which such a query gives too, are none.
///
/// # Errors
///
/// The body is not a JSON array, or ends early.
pub fn parse(body: &[u8], prefix: &str) -> Result<Instances, ParseError> {
    let mut lists = Vec::new();
    let mut instances = Instances::default();
    elements(body, |json| match pair(json) {
        Ok(pair) => match pair.key.strip_prefix(prefix) {
            Some("") => lists.push(pair.value),
            Some(rest) => {
                if let Some(server) = rest.strip_prefix('/').filter(|name| !name.is_empty()) {
                    instances.add(of_key(&pair.key, server, pair.value.as_deref()));
                }
            }
            None => {}
        },
        Err(skipped) => instances.skipped.push(skipped),
    })?;
    for value in lists.into_iter().flatten() {
        of_list(prefix, &value, &mut instances);
    }
    instances.sort();
    Ok(instances)
}

/// A key and its value.
struct Pair {
    key: String,
    value: Option<Vec<u8>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    key: String,
    value: Option<String>,
}

fn pair(json: &str) -> Result<Pair, Skipped> {
    let bad = |id: &str, reason: String| Skipped { node: String::new(), id: id.to_owned(), reason };
    let entry: Entry =
        serde_json::from_str(json).map_err(|error| bad("", quote(&error.to_string())))?;
    let value = entry.value.map(|value| STANDARD.decode(value)).transpose();
    let value = value.map_err(|_| bad(&entry.key, "its value is not base64".to_owned()))?;
    Ok(Pair { key: entry.key, value: value.filter(|value| !value.is_empty()) })
}

fn of_key(key: &str, server: &str, value: Option<&[u8]>) -> Element {
    let skip = |reason: String| Skipped { node: String::new(), id: key.to_owned(), reason };
    let invalid = || skip(format!("invalid key, \"{}\" is no host:port", quote(server)));
    let (host, port) = server.rsplit_once(':').ok_or_else(invalid)?;
    let port: i64 = port.parse().map_err(|_| invalid())?;
    let parameters = match value {
        None => Map::new(),
        Some(value) => match serde_json::from_slice(value) {
            Ok(Value::Object(parameters)) => parameters,
            _ => return Err(skip("its value is not a JSON object".to_owned())),
        },
    };
    instance(key.to_owned(), host, port, &parameters)
}

/// A key that holds all servers.
fn of_list(key: &str, value: &[u8], instances: &mut Instances) {
    let skip = |reason: &str| {
        Err(Skipped { node: String::new(), id: key.to_owned(), reason: reason.to_owned() })
    };
    let Ok(Value::Array(servers)) = serde_json::from_slice(value) else {
        return instances.add(skip("its value is not a JSON list"));
    };
    for server in servers {
        let Value::Object(server) = server else {
            instances.add(skip("an element of its list is not an object"));
            continue;
        };
        let text = |name: &str| server.get(name).and_then(Value::as_str);
        let number = |name: &str| match server.get(name) {
            Some(Value::String(text)) => text.parse().ok(),
            value => value.and_then(Value::as_i64),
        };
        let (Some(host), Some(port)) = (text("ip").or(text("host")), number("port")) else {
            instances.add(skip("an element of its list has no \"ip\" or no \"port\""));
            continue;
        };
        // The name that the same server would have as a key.
        let brackets = host.contains(':') && !host.starts_with('[');
        let name = if brackets { format!("[{host}]") } else { host.to_owned() };
        instances.add(instance(format!("{key}/{name}:{port}"), host, port, &server));
    }
}

fn instance(id: String, name: &str, number: i64, parameters: &Map<String, Value>) -> Element {
    let skip = |reason| Skipped { node: String::new(), id: id.clone(), reason };
    let host = host(name).map_err(skip)?;
    let port = port(number).map_err(skip)?;
    let (params, flaws) = params(parameters);
    let instance = Instance {
        node: String::new(),
        id,
        host,
        port,
        tags: Vec::new(),
        health: Health::Passing,
        weight_passing: NonZeroU16::MIN,
        weight_warning: 1,
        datacenter: String::new(),
        params,
        meta: Meta::new(),
    };
    Ok((instance, flaws))
}

/// nginx's parameters; members that are none of these are nobody's business here.
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
