//! What is answered.

use serde::Serialize;

use super::{Frozen, Override};
use crate::table::{Detail, Order, Record};

/// Everything that is in force.
#[derive(Clone, Debug, Serialize)]
pub struct Overview {
    /// Of these answers.
    pub version: u32,
    /// The services that are frozen, by selection.
    pub frozen: Vec<FrozenShown>,
    /// What is ordered of instances, also of those that are not there now.
    pub overrides: Vec<OrderShown>,
    /// How many orders of both kinds there can be.
    pub capacity: usize,
    /// The paths there are.
    pub paths: [&'static str; 10],
}

/// Of [`Overview`].
pub const PATHS: [&str; 10] = [
    "GET /",
    "GET /services",
    "GET /services/{service}",
    "POST /services/{service}/freeze",
    "POST /services/{service}/thaw",
    "POST /services/{service}/resync",
    "GET /services/{service}/instances",
    "GET /services/{service}/instances/{id or address:port}",
    "POST /services/{service}/instances/{id or address:port}/{drain|down|up|weight}",
    "DELETE /services/{service}/instances/{id or address:port}",
];

/// A selection of a service that is frozen.
#[derive(Clone, Debug, Serialize)]
pub struct FrozenShown {
    /// The service.
    pub service: String,
    /// By whom, and until when.
    #[serde(flatten)]
    pub frozen: Frozen,
}

/// What is ordered of an instance.
#[derive(Clone, Debug, Serialize)]
pub struct OrderShown {
    /// The service.
    pub service: String,
    /// The instance's service id.
    pub instance: String,
    /// What.
    #[serde(flatten)]
    pub ordered: Override,
}

impl From<&Order> for OrderShown {
    fn from(order: &Order) -> OrderShown {
        OrderShown {
            service: order.service.clone(),
            instance: order.instance.clone(),
            ordered: order.into(),
        }
    }
}

/// Names of services.
#[derive(Clone, Debug, Serialize)]
pub struct Services {
    /// Sorted.
    pub services: Vec<String>,
}

/// A service.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceShown {
    /// Its name.
    pub service: String,
    /// The sets of its instances that upstreams follow.
    pub selections: Vec<SelectionShown>,
}

/// One of the sets.
#[derive(Clone, Debug, Serialize)]
pub struct SelectionShown {
    /// The upstreams that follow it.
    pub upstreams: Vec<String>,
    /// The datacenter that is asked for.
    pub datacenter: Option<String>,
    /// The tags that are asked for.
    pub tags: Vec<String>,
    /// Moves with every change, and with every order.
    pub generation: u64,
    /// By whom it is frozen, and until when.
    pub frozen: Option<Frozen>,
    /// Who is in it.
    pub instances: Vec<InstanceShown>,
}

/// Instances of a service.
#[derive(Clone, Debug, Serialize)]
pub struct InstancesShown {
    /// The service.
    pub service: String,
    /// Each once for every selection that it is in.
    pub instances: Vec<InstanceShown>,
}

/// An instance.
#[derive(Clone, Debug, Serialize)]
pub struct InstanceShown {
    /// Service id.
    pub id: String,
    /// Node.
    pub node: String,
    /// Datacenter, if known.
    pub datacenter: String,
    /// Address and port.
    pub server: String,
    /// The upstreams that it is used in.
    pub upstreams: Vec<String>,
    /// Consul's word for its health.
    pub health: String,
    /// The weight that Consul gives it.
    pub weight: u32,
    /// What is ordered of it: for each upstream that an order is narrowed to, and for all.
    pub overrides: Vec<Override>,
}

impl InstanceShown {
    /// Of a record and what else is known.
    pub fn new(
        (record, detail): (&Record, &Detail),
        upstreams: Vec<String>,
        overrides: Vec<Override>,
    ) -> InstanceShown {
        InstanceShown {
            id: detail.id.clone(),
            node: detail.node.clone(),
            datacenter: detail.datacenter.clone(),
            server: record.addr().to_string(),
            upstreams,
            health: detail.health.clone(),
            weight: record.weight,
            overrides,
        }
    }
}

/// What was lifted.
#[derive(Clone, Debug, Serialize)]
pub struct LiftedShown {
    /// The service.
    pub service: String,
    /// What was ordered.
    pub lifted: Vec<OrderShown>,
}

/// What Consul is asked.
#[derive(Clone, Debug, Serialize)]
pub struct AskedShown {
    /// The service.
    pub service: String,
    /// How many selections of it are asked for.
    pub asked: usize,
}
