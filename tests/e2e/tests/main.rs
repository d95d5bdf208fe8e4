//! End to end: stock nginx with our module, real Consul agents, backends that say who they are.

mod address_filter;
mod balancing;
mod conf_errors;
mod conf_ok;
mod discovery;
mod examples;
mod failures;
mod gate;
mod harness;
mod instances;
mod invariants;
mod lifecycle;
mod logs;
mod none_usable;
mod outages;
mod policy;
mod regressions;
mod retries;
mod secured;
mod state;
mod status;
mod support;
mod tls;
mod trouble;
mod upheaval;
mod watch_rules;
