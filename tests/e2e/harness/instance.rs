//! Instances of services, as they are registered.

use std::net::SocketAddr;

use serde_json::{Value, json};

/// An instance to register.
#[derive(Clone, Debug)]
pub struct Instance {
    service: String,
    id: String,
    address: String,
    port: u16,
    tags: Vec<String>,
    meta: Value,
    weights: (u16, u16),
    check: Option<String>,
}

impl Instance {
    /// An instance with weight 1 and a check that a test turns as it likes.
    pub fn new(service: &str, id: &str, address: impl Into<SocketAddr>) -> Instance {
        let address = address.into();
        Instance {
            service: service.to_owned(),
            id: id.to_owned(),
            address: address.ip().to_string(),
            port: address.port(),
            tags: Vec::new(),
            meta: json!({}),
            weights: (1, 1),
            check: Some("passing".to_owned()),
        }
    }

    /// Says another address: a host name, nothing, or what no address is.
    pub fn address(mut self, address: &str) -> Instance {
        address.clone_into(&mut self.address);
        self
    }

    /// Its tags.
    pub fn tags(mut self, tags: &[&str]) -> Instance {
        self.tags = tags.iter().map(|&t| t.to_owned()).collect();
        self
    }

    /// A pair of its metadata.
    pub fn meta(mut self, key: &str, value: &str) -> Instance {
        self.meta[key] = value.into();
        self
    }

    /// Its weights when passing and in warning.
    pub fn weights(mut self, passing: u16, warning: u16) -> Instance {
        self.weights = (passing, warning);
        self
    }

    /// Its check's first status.
    pub fn status(mut self, status: &str) -> Instance {
        self.check = Some(status.to_owned());
        self
    }

    fn service(&self) -> Value {
        json!({
            "Tags": self.tags, "Address": self.address, "Port": self.port, "Meta": self.meta,
            "Weights": { "Passing": self.weights.0, "Warning": self.weights.1 },
        })
    }

    /// What an agent is told of it.
    pub fn for_agent(&self) -> Value {
        let mut document = self.service();
        document["Name"] = self.service.clone().into();
        document["ID"] = self.id.clone().into();
        if let Some(status) = &self.check {
            document["Check"] = json!({
                "CheckID": format!("service:{}", self.id), "TTL": "1h", "Status": status,
            });
        }
        document
    }

    pub(crate) fn for_catalog(&self, node: &str, node_address: &str) -> Value {
        let mut service = self.service();
        service["Service"] = self.service.clone().into();
        service["ID"] = self.id.clone().into();
        let mut document = json!({ "Node": node, "Address": node_address, "Service": service });
        if let Some(status) = &self.check {
            document["Check"] = json!({
                "CheckID": format!("service:{}", self.id), "Name": "e2e", "Status": status,
                "ServiceID": self.id, "Node": node,
            });
        }
        document
    }
}
