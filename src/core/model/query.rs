//! What a watch asks Consul for, and which instances of the answer an `upstream` takes.

use serde::Serialize;
use strum::{EnumString, IntoStaticStr};

use super::meta::MetaKeys;
use crate::address::AddressFilter;

/// Consistency mode of a Consul query
/// (<https://developer.hashicorp.com/consul/api-docs/features/consistency>).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, EnumString)]
#[strum(serialize_all = "lowercase")]
pub enum Consistency {
    /// The leader answers, from its lease.
    #[default]
    Default,
    /// Any server answers, perhaps with old data.
    Stale,
    /// The leader answers after it has verified that it still leads.
    Consistent,
    /// The agent answers from its cache.
    Cached,
}

/// Where in Consul the peers are.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, EnumString, IntoStaticStr, Serialize,
)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Source {
    /// `/v1/health/service`: the instances of a service with their health.
    #[default]
    Health,
    /// `/v1/catalog/service`: every registered instance.
    Catalog,
    /// `/v1/kv`: servers that somebody wrote there.
    Kv,
    /// `/v1/query`: what a prepared query gives; it does not block.
    Query,
}

impl Source {
    /// Its name in the configuration and the status.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// What one watch asks Consul: everything that makes a separate query necessary.
///
/// Tags and health are not here: Consul wakes a blocking query for every change of the service,
/// whatever the tag asked for, so one watch serves every [`Selection`] of the same service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Query {
    /// Where to look.
    pub source: Source,
    /// Name of the service as registered, of the prepared query, or the prefix of the keys, without
    /// a slash at its end.
    pub service: String,
    /// `dc=`: datacenter, the agent's own if `None`.
    pub datacenter: Option<String>,
    /// `ns=`: namespace (Consul Enterprise).
    pub namespace: Option<String>,
    /// `partition=`: admin partition (Consul Enterprise).
    pub partition: Option<String>,
    /// `near=`: node to sort by; `_agent` is the agent asked.
    pub near: Option<String>,
    /// `filter=`: an expression that only Consul can evaluate.
    pub filter: Option<String>,
    /// How fresh the answer has to be.
    pub consistency: Consistency,
    /// `address=`: which of the tagged addresses (`lan`, `wan`, `lan_ipv4`, …) to connect to.
    pub address: Option<String>,
    /// Which other parts of `Service.Meta` to keep.
    pub meta: MetaKeys,
}

impl Query {
    /// What is set besides the service and the consistency, by Consul's names of the parameters.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("dc", &self.datacenter),
            ("ns", &self.namespace),
            ("partition", &self.partition),
            ("near", &self.near),
            ("filter", &self.filter),
        ];
        all.into_iter()
            .filter_map(|(name, value)| Some((name, value.as_deref()?)))
            .filter(|(_, value)| !value.is_empty())
    }
}

/// Which states of health a block takes into its set of peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, EnumString, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Admit {
    /// All checks pass.
    #[default]
    Passing,
    /// No check is critical; an instance in warning has its `Weights.Warning`.
    Warning,
    /// Every registered instance.
    Any,
}

/// Which instances of a watch's answer one `upstream` block takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selection {
    /// The instance must have each of these tags; compared without regard to case, as Consul does.
    pub tags: Vec<String>,
    /// Which health it must have.
    pub admit: Admit,
    /// Which addresses it may have.
    pub addresses: AddressFilter,
}
