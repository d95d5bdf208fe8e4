//! Overrides: what an operator sets for an instance or a service.

use std::hash::{Hash, Hasher};
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use strum::{EnumString, IntoStaticStr};

use super::peer::identity;

/// What an override does.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, EnumString, IntoStaticStr,
)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Action {
    /// The set of peers of a selection doesn't change.
    Freeze,
    /// The instance gets no new requests; those in flight continue.
    #[default]
    Drain,
    /// As `drain`, for an instance that is broken.
    Down,
    /// Neither failures nor `nginx_down` exclude the instance.
    Up,
    /// The instance has another weight.
    Weight,
}

/// An override of an instance or a selection. In the zone, a text is its number in the list of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Override"))]
#[serde(deny_unknown_fields)]
pub struct Override<T = String> {
    /// Key of the selection that is frozen; `None` for an override of an instance.
    #[serde(skip)]
    pub selection: Option<u128>,
    /// Name of the service.
    pub service: T,
    /// Datacenter that the service is asked for in; `null`: the agent's own.
    pub datacenter: Option<T>,
    /// Node of the instance.
    pub node: T,
    /// Service id of the instance.
    pub id: T,
    /// Address and port of an instance that has several, by a host name.
    pub address: Option<T>,
    /// The only `upstream` that it applies to; `null`: all.
    pub upstream: Option<T>,
    /// What it does.
    pub action: Action,
    /// With `weight`, else `null`.
    pub weight: Option<NonZeroU16>,
    /// Who set it: user and address.
    pub by: T,
    /// When it was set, milliseconds since the epoch.
    pub since_ms: u64,
    /// When it expires, milliseconds since the epoch; `null`: never.
    pub until_ms: Option<u64>,
    /// When it expires, milliseconds of the monotonic clock; `None`: never.
    #[serde(skip)]
    pub deadline: Option<u64>,
}

/// Hash of a service and the datacenter asked for, by which overrides find its instances. Never 0.
pub fn service_scope(service: &str, datacenter: Option<&str>) -> u64 {
    let mut hasher = SipHasher13::new();
    (service, datacenter).hash(&mut hasher);
    hasher.finish().max(1)
}

impl Override {
    /// Whether it has not expired `now`, milliseconds of the monotonic clock.
    pub fn is_in_force(&self, now: u64) -> bool {
        self.deadline.is_none_or(|deadline| now < deadline)
    }

    /// Whether both concern the same selection, or the same instance and `upstream`: only one of them
    /// can be in force.
    pub fn is_about_same(&self, other: &Override) -> bool {
        match (self.selection, other.selection) {
            (None, None) => self.instance() == other.instance() && self.upstream == other.upstream,
            (own, others) => own == others,
        }
    }

    /// Whether it is valid for an instance.
    pub fn is_valid(&self) -> bool {
        self.action != Action::Freeze && (self.action == Action::Weight) == self.weight.is_some()
    }

    /// [`service_scope`] of the instance, and its identity.
    pub fn instance(&self) -> (u64, u64) {
        let scope = service_scope(&self.service, self.datacenter.as_deref());
        let address = self.address.as_ref().and_then(|address| address.parse().ok());
        (scope, identity(&self.node, &self.id, address))
    }
}

impl<T> Override<T> {
    /// The same with each text replaced by what `text` makes of it.
    pub(crate) fn with_texts<'a, U, E>(
        &'a self,
        mut text: impl FnMut(&'a T) -> Result<U, E>,
    ) -> Result<Override<U>, E> {
        Ok(Override {
            selection: self.selection,
            service: text(&self.service)?,
            datacenter: self.datacenter.as_ref().map(&mut text).transpose()?,
            node: text(&self.node)?,
            id: text(&self.id)?,
            address: self.address.as_ref().map(&mut text).transpose()?,
            upstream: self.upstream.as_ref().map(&mut text).transpose()?,
            action: self.action,
            weight: self.weight,
            by: text(&self.by)?,
            since_ms: self.since_ms,
            until_ms: self.until_ms,
            deadline: self.deadline,
        })
    }
}

/// One of an instance of `web` on node `n1`.
#[cfg(test)]
pub(crate) fn of_instance(id: &str, action: Action) -> Override {
    Override {
        service: "web".into(),
        node: "n1".into(),
        id: id.into(),
        action,
        by: "ann@127.0.0.1".into(),
        since_ms: 1_000,
        ..Override::default()
    }
}
