//! End to end: stock nginx with our module, real Consul agents, backends that say who they are.

mod balancing;
mod conf_errors;
mod conf_ok;
mod discovery;
mod examples;
mod failures;
mod harness;
mod instances;
mod invariants;
mod lifecycle;
mod logs;
mod none_usable;
mod outages;
mod regressions;
mod retries;
mod secured;
mod status;
mod support;
mod watch_rules;
