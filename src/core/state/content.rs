//! The JSON of a state file.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use super::{Damage, Saved, State, distinct, health, is_one_of_several};
use crate::model::{Meta, Peer, identity};
use crate::params::Params;
use crate::table::{Action, Order, Subject};

#[derive(Serialize, Deserialize)]
struct Content {
    written_ms: u64,
    services: Vec<Entry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    orders: Vec<OrderEntry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    /// 32 hex digits.
    key: String,
    service: String,
    /// Of a service that a request has named: 32 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    template: Option<String>,
    index: u64,
    last_good_ms: u64,
    peers: Vec<PeerEntry>,
}

#[derive(Serialize, Deserialize)]
struct PeerEntry {
    address: SocketAddr,
    weight: NonZeroU16,
    node: String,
    id: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    health: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    datacenter: String,
    /// One of several addresses of a host name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    one_of_several: bool,
    #[serde(default, skip_serializing_if = "Params::is_default")]
    params: Params,
    #[serde(default, skip_serializing_if = "Meta::is_empty")]
    meta: Meta,
}

/// Of an order about an instance.
#[derive(Serialize, Deserialize)]
struct OrderEntry {
    /// Three words, 48 hex digits.
    subject: String,
    action: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
    since_ms: u64,
    until_ms: u64,
    service: String,
    instance: String,
    upstream: String,
    by: String,
}

pub(super) fn write(state: &State) -> Vec<u8> {
    let services = state.targets.iter().map(Entry::of).collect();
    let about_instances = state.orders.iter().filter(|order| order.action != Action::Freeze);
    let orders = about_instances.map(OrderEntry::of).collect();
    let content = Content { written_ms: state.written_ms, services, orders };
    serde_json::to_vec(&content).unwrap_or_default()
}

pub(super) fn read(content: &[u8]) -> Result<State, Damage> {
    let content: Content =
        serde_json::from_slice(content).map_err(|e| Damage::Content(e.to_string()))?;
    let mut keys = HashSet::new();
    let mut targets = Vec::with_capacity(content.services.len());
    for entry in content.services {
        let name = entry.service.escape_debug().to_string();
        let bad = |why: String| Damage::Content(format!("service \"{name}\": {why}"));
        let saved = entry.check().map_err(bad)?;
        if !keys.insert(saved.key) {
            return Err(bad("it is there twice".to_owned()));
        }
        targets.push(saved);
    }
    let orders: Option<Vec<Order>> = content.orders.into_iter().map(OrderEntry::check).collect();
    let orders = orders.ok_or_else(|| Damage::Content("an order is none".to_owned()))?;
    Ok(State { written_ms: content.written_ms, targets, orders })
}

impl Entry {
    fn of(saved: &Saved) -> Entry {
        Entry {
            key: format!("{:032x}", saved.key),
            service: saved.service.clone(),
            template: saved.template.map(|template| format!("{template:032x}")),
            index: saved.index,
            last_good_ms: saved.last_good_ms,
            peers: saved.peers.peers().iter().map(PeerEntry::of).collect(),
        }
    }

    fn check(self) -> Result<Saved, String> {
        let template = self.template.map(|t| key(&t).ok_or("its template is none")).transpose()?;
        let peers: Result<Vec<Peer>, String> =
            self.peers.into_iter().map(PeerEntry::check).collect();
        Ok(Saved {
            key: key(&self.key).ok_or("its key is not one")?,
            service: self.service,
            template,
            index: self.index,
            last_good_ms: self.last_good_ms,
            peers: distinct(peers?),
        })
    }
}

/// What 32 hex digits say, unless that is 0.
fn key(text: &str) -> Option<u128> {
    let is_hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    u128::from_str_radix(text, 16).ok().filter(|&key| is_hex && key != 0)
}

impl OrderEntry {
    fn of(order: &Order) -> OrderEntry {
        let [a, b, c] = order.subject.encode();
        OrderEntry {
            subject: format!("{a:016x}{b:016x}{c:016x}"),
            action: order.action.name().to_owned(),
            weight: order.action.weight(),
            since_ms: order.since_ms,
            until_ms: order.until_ms,
            service: order.service.clone(),
            instance: order.instance.clone(),
            upstream: order.upstream.clone(),
            by: order.by.clone(),
        }
    }

    fn check(self) -> Option<Order> {
        let is_hex =
            self.subject.len() == 48 && self.subject.bytes().all(|b| b.is_ascii_hexdigit());
        let word = |at: usize| {
            let digits = self.subject.get(at * 16..at * 16 + 16).filter(|_| is_hex)?;
            u64::from_str_radix(digits, 16).ok()
        };
        let subject = Subject::decode([word(0)?, word(1)?, word(2)?]);
        Some(Order {
            subject: Some(subject).filter(|s| matches!(s, Subject::Instance { .. }))?,
            action: Action::of_instance(&self.action, self.weight)?,
            since_ms: self.since_ms,
            until_ms: self.until_ms,
            service: self.service,
            instance: self.instance,
            upstream: self.upstream,
            by: self.by,
        })
    }
}

impl PeerEntry {
    fn of(peer: &Peer) -> PeerEntry {
        PeerEntry {
            address: peer.addr,
            weight: peer.weight,
            node: peer.node.clone(),
            id: peer.id.clone(),
            tags: peer.tags.clone(),
            health: peer.health.as_str().to_owned(),
            datacenter: peer.datacenter.clone(),
            one_of_several: is_one_of_several(peer),
            params: peer.params,
            meta: peer.meta.clone(),
        }
    }

    fn check(self) -> Result<Peer, String> {
        if self.address.port() == 0 {
            return Err(format!("its address {} has no port", self.address));
        }
        let addr = self.one_of_several.then_some(self.address);
        Ok(Peer {
            addr: self.address,
            weight: self.weight,
            identity: identity(&self.node, &self.id, addr),
            health: health(&self.health)
                .ok_or_else(|| format!("unknown health \"{}\"", self.health.escape_debug()))?,
            node: self.node,
            id: self.id,
            tags: self.tags,
            datacenter: self.datacenter,
            params: self.params,
            meta: self.meta,
        })
    }
}
