//! The harness of the end-to-end tests, the demo and the benchmark: stock nginx, real Consul
//! agents, backends that say who they are, and what breaks or dresses what passes between them.
//!
//! Everything runs on loopback, on reserved ports and in folders of its own, so that several runs
//! can share a machine. Whatever is started is stopped by its pid when its owner is dropped.

pub mod acl;
pub mod backend;
pub mod browser;
pub mod cluster;
pub mod config;
pub mod consul;
pub mod dressing;
pub mod fake_consul;
pub mod faulty;
pub mod http;
pub mod instance;
pub mod load;
pub mod nginx;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod tally;
pub mod tls;
pub mod version;
pub mod wait;
pub mod wall_clock;
pub mod wire;

pub use backend::{Backend, Manner};
pub use browser::{Browser, Look};
pub use config::Config;
pub use consul::Agent;
pub use dressing::{Dressing, Quirks};
pub use fake_consul::FakeConsul;
pub use faulty::{Failure, FaultyBackend};
pub use instance::Instance;
pub use load::Load;
pub use nginx::Nginx;
pub use proxy::{Fault, Proxy};
pub use tally::Tally;
pub use wall_clock::WallClock;
