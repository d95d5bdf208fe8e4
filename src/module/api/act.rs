//! The actions of the API.

use std::collections::BTreeSet;
use std::rc::Rc;

use nginx_consul_core::clock::Clock;
use nginx_consul_core::control::{self, Arguments, Body, Frozen, PATHS, Refusal, Route};
use nginx_consul_core::model::{Action, Level, Override, identity, service_scope};
use nginx_consul_core::process::ProcessId;
use nginx_consul_core::status::{Peer, Service};
use nginx_consul_core::table::{NotSet, PeerRecord};
use nginx_consul_core::text::quote;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};

use crate::ffi::Log;
use crate::services::{Followed, Services};
use crate::status::service;

/// A request, and its sender.
pub(super) struct ApiRequest<'r> {
    pub(super) services: Services<'r>,
    pub(super) arguments: Arguments,
    pub(super) who: String,
    /// The log of the connection.
    pub(super) log: Log<'r>,
}

/// Status and body of the response.
pub(super) type Answer = Result<(u16, Value), Refusal>;

/// A set of a service's instances that upstreams follow, as the status shows it.
struct Selection {
    key: u128,
    entry: Option<usize>,
    service: Service,
    peers: Vec<(PeerRecord, Peer)>,
}

/// An instance in a selection.
type Found<'a> = (&'a Service, &'a PeerRecord, &'a Peer);

impl ApiRequest<'_> {
    pub(super) fn answer(&self, route: &Route, body: &[u8]) -> Answer {
        let body = Body::parse(body)?;
        body.check(match route {
            Route::Set(_, _, action) => Some(*action),
            Route::Freeze(_) => Some(Action::Freeze),
            _ => None,
        })?;
        match route {
            Route::Root => Ok((200, self.overview())),
            Route::Services => Ok((200, json!({ "services": self.names() }))),
            Route::Service(name) => self.service(name),
            Route::Freeze(name) => self.freeze(name, body),
            Route::Thaw(name) => self.thaw(name),
            Route::Resync(name) => self.resync(name),
            Route::Instances(name) => self.instances(name, None),
            Route::Instance(name, id) => self.instances(name, Some(id)),
            Route::Set(name, id, action) => self.set(name, id, *action, body),
            Route::Remove(name, id) => self.remove(name, id),
        }
    }

    fn overview(&self) -> Value {
        let (table, now) = (self.services.table, Clock::now());
        let held = table.all_overrides().unwrap_or_default().into_iter();
        let in_force = held.filter(|held| held.is_in_force(now.monotonic));
        let (frozen, overrides): (Vec<_>, Vec<_>) =
            in_force.partition(|held| held.selection.is_some());
        let frozen = frozen.iter().map(|held| {
            let entry = held.selection.and_then(|key| table.find(key));
            let withheld = entry.map(|entry| table.frozen_diff(entry)).unwrap_or_default();
            with(json!(Frozen::new(held, withheld)), "service", json!(held.service))
        });
        json!({
            "version": 1,
            "frozen": frozen.collect::<Vec<_>>(),
            "overrides": overrides,
            "capacity": table.override_capacity(),
            "paths": PATHS,
        })
    }

    fn names(&self) -> BTreeSet<String> {
        let numbers = self.services.numbers();
        numbers.filter_map(|n| Some(self.services.name(n)?.into_owned())).collect()
    }

    /// The selections of a service, in one upstream or all.
    fn selections(&self, name: &str) -> Result<Vec<Selection>, Refusal> {
        let (table, now) = (self.services.table, Clock::now());
        let overrides = Rc::new(table.overrides(now.monotonic).unwrap_or_default());
        let is_named = |number: &usize| self.services.name(*number).is_some_and(|n| n == name);
        let numbers = self.services.numbers().filter(is_named);
        let mut found: Vec<Followed<'_>> = numbers.filter_map(|n| self.services.get(n)).collect();
        if found.is_empty() {
            let text = format!("no upstream follows a service \"{}\" now", quote(name));
            return Err(Refusal::new(404, "ServiceNotFound", text));
        }
        if let Some(upstream) = &self.arguments.upstream {
            found.retain(|followed| followed.upstreams().contains(upstream));
            if found.is_empty() {
                let (upstream, name) = (quote(upstream), quote(name));
                let text = format!("no upstream \"{upstream}\" follows service \"{name}\"");
                return Err(Refusal::new(404, "UpstreamNotFound", text));
            }
        }
        let selection = |followed: &Followed| {
            let (service, mut peers) = service(followed, table, &overrides, now.monotonic);
            let peers = std::iter::from_fn(|| peers.next(table, now.monotonic)).collect();
            Selection { key: followed.key, entry: followed.entry, service, peers }
        };
        Ok(found.iter().map(selection).collect())
    }

    fn service(&self, name: &str) -> Answer {
        let selections = self.selections(name)?.into_iter().map(|mut selection| {
            let peers = selection.peers.iter().flat_map(|(_, peer)| to_raw_value(peer));
            selection.service.peers = peers.collect();
            selection.service
        });
        let selections: Vec<Service> = selections.collect();
        Ok((200, json!({ "service": name, "selections": selections })))
    }

    /// The instances of these selections with this id or address.
    fn found<'a>(
        &self,
        selections: &'a [Selection],
        (name, id): (&str, &str),
    ) -> Result<Vec<Found<'a>>, Refusal> {
        let is_meant = |(_, _, peer): &Found<'_>| {
            (peer.service_id == id || peer.server == id)
                && self.arguments.node.as_ref().is_none_or(|node| *node == peer.node)
        };
        let found: Vec<Found<'a>> = all(selections).filter(is_meant).collect();
        if found.is_empty() {
            let (name, id) = (quote(name), quote(id));
            let text = format!("service \"{name}\" has no instance \"{id}\" now");
            return Err(Refusal::new(404, "InstanceNotFound", text));
        }
        Ok(found)
    }

    fn instances(&self, name: &str, id: Option<&str>) -> Answer {
        let selections = self.selections(name)?;
        let found = match id {
            Some(id) => self.found(&selections, (name, id))?,
            None => all(&selections).collect(),
        };
        let shown = found
            .into_iter()
            .map(|(service, _, peer)| with(json!(peer), "upstreams", json!(service.upstreams)));
        Ok((200, json!({ "service": name, "instances": shown.collect::<Vec<_>>() })))
    }

    /// One instance, in every selection that has it.
    fn the_instance<'a>(
        &self,
        selections: &'a [Selection],
        (name, id): (&str, &str),
    ) -> Result<Vec<Found<'a>>, Refusal> {
        let found = self.found(selections, (name, id))?;
        // Nodes of several datacenters can have the same names.
        let name = |(_, _, peer): &Found<'a>| (&peer.datacenter, &peer.node, &peer.service_id);
        if found.iter().any(|other| Some(name(other)) != found.first().map(name)) {
            let id = quote(id);
            let text =
                format!("several instances are \"{id}\", say which by its address, or with ?node=");
            return Err(Refusal::new(409, "InstanceAmbiguous", text));
        }
        Ok(found)
    }

    fn freeze(&self, name: &str, body: Body) -> Answer {
        let has_data = |entry: usize| self.services.table.has_data(entry);
        let selections =
            self.selections(name)?.into_iter().filter(|s| s.entry.is_some_and(has_data));
        let freeze = self.new_override(name, Action::Freeze, body);
        let new: Vec<Override> = selections
            .map(|selection| Override { selection: Some(selection.key), ..freeze.clone() })
            .collect();
        if new.is_empty() {
            let text = format!("Consul has not answered for service \"{}\" yet", quote(name));
            return Err(Refusal::new(409, "NoData", text));
        }
        self.set_overrides(&new, body)?;
        self.service(name)
    }

    fn thaw(&self, name: &str) -> Answer {
        let selections = self.selections(name)?;
        let is_meant = |key| selections.iter().any(|selection| selection.key == key);
        let removed = self.remove_overrides(|held| match self.arguments.upstream {
            // Also a selection that the configuration no longer has.
            None => held.selection.is_some() && held.service == name,
            Some(_) => held.selection.is_some_and(is_meant),
        })?;
        if removed.is_empty() {
            let text = format!("service \"{}\" is not frozen", quote(name));
            return Err(Refusal::new(409, "NotFrozen", text));
        }
        self.request_resync(&selections);
        self.service(name)
    }

    fn resync(&self, name: &str) -> Answer {
        let asked = self.request_resync(&self.selections(name)?);
        let (service, by) = (quote(name), quote(&self.who));
        self.log(
            Level::Notice,
            format!("service \"{service}\": Consul is asked again for \"{by}\""),
        );
        Ok((202, json!({ "service": name, "asked": asked })))
    }

    fn request_resync(&self, selections: &[Selection]) -> usize {
        let entries = selections.iter().filter_map(|selection| selection.entry);
        entries.map(|entry| self.services.table.request_resync(entry)).count()
    }

    fn set(&self, name: &str, id: &str, action: Action, body: Body) -> Answer {
        let mut new: Vec<Override> = Vec::new();
        let selections = self.selections(name)?;
        for (service, record, peer) in self.the_instance(&selections, (name, id))? {
            let is_several = record.identity != identity(&peer.node, &peer.service_id, None);
            let held = Override {
                datacenter: service.datacenter.clone(),
                node: peer.node.clone(),
                id: peer.service_id.clone(),
                address: is_several.then(|| peer.server.clone()),
                upstream: self.arguments.upstream.clone(),
                ..self.new_override(name, action, body)
            };
            // Several selections may have the instance.
            if !new.iter().any(|new| new.is_about_same(&held)) {
                new.push(held);
            }
        }
        self.set_overrides(&new, body)?;
        self.instances(name, Some(id))
    }

    fn remove(&self, name: &str, id: &str) -> Answer {
        // The instance and the service need not exist any more; an instance that exists may be
        // named by its address.
        let selections = self.selections(name).unwrap_or_default();
        let found = match self.the_instance(&selections, (name, id)) {
            Err(refusal) if refusal.status != 404 => return Err(refusal),
            found => found.unwrap_or_default(),
        };
        let found: Vec<(u64, u64)> = found
            .iter()
            .map(|(service, record, _)| {
                (service_scope(name, service.datacenter.as_deref()), record.identity)
            })
            .collect();
        let Arguments { upstream, node } = &self.arguments;
        let removed = self.remove_overrides(|held| {
            held.selection.is_none()
                && held.service == name
                && (upstream.is_none() || held.upstream == *upstream)
                && node.as_ref().is_none_or(|node| held.node == *node)
                && (if found.is_empty() { held.id == id } else { found.contains(&held.instance()) })
        })?;
        if removed.is_empty() {
            let (id, name) = (quote(id), quote(name));
            let text = format!("instance \"{id}\" of service \"{name}\" has no override");
            return Err(Refusal::new(404, "OverrideNotFound", text));
        }
        Ok((200, json!({ "service": name, "removed": removed })))
    }

    /// An override for a service, from now on.
    fn new_override(&self, service: &str, action: Action, body: Body) -> Override {
        let now = Clock::now();
        let expires = |now| body.expires.map(|time| now + time.as_millis() as u64);
        Override {
            service: service.to_owned(),
            action,
            weight: body.weight,
            by: self.who.clone(),
            since_ms: now.wall,
            until_ms: expires(now.wall),
            deadline: expires(now.monotonic),
            ..Override::default()
        }
    }

    fn set_overrides(&self, new: &[Override], body: Body) -> Result<(), Refusal> {
        let set = self.services.table.set_overrides(new, ProcessId::own());
        set.map_err(|why| match why {
            NotSet::Full(_) => {
                let text = format!("{why}; remove one, or increase the size in \"consul_zone\"");
                Refusal::new(507, "TooManyOverrides", text)
            }
            NotSet::Busy => busy(),
        })?;
        self.log_each(new.iter().map(|held| control::set_line(held, body.expires)));
        Ok(())
    }

    fn remove_overrides(
        &self,
        which: impl Fn(&Override) -> bool,
    ) -> Result<Vec<Override>, Refusal> {
        let removed = self.services.table.remove_overrides(which, ProcessId::own());
        let removed = removed.ok_or_else(busy)?;
        self.log_each(removed.iter().map(|held| control::removed_line(held, &self.who)));
        Ok(removed)
    }

    /// An override that holds for several selections of a service is one line.
    fn log_each(&self, lines: impl Iterator<Item = String>) {
        lines
            .collect::<BTreeSet<_>>()
            .into_iter()
            .for_each(|override_line| self.log(Level::Notice, override_line));
    }

    fn log(&self, level: Level, line: String) {
        self.log.write(&(level, line));
    }
}

/// The instances of these selections.
fn all(selections: &[Selection]) -> impl Iterator<Item = Found<'_>> {
    selections.iter().flat_map(|Selection { service, peers, .. }| {
        peers.iter().map(move |(record, peer)| (service, record, peer))
    })
}

fn busy() -> Refusal {
    Refusal::new(503, "Busy", "the shared memory is busy, try again")
}

/// An object with one more member.
fn with(mut object: Value, name: &str, value: Value) -> Value {
    if let Value::Object(members) = &mut object {
        members.insert(name.to_owned(), value);
    }
    object
}
