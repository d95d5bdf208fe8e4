//! What the words of directives say, without nginx: values, their ranges and the errors about them.
//!
//! | file | reads |
//! |---|---|
//! | `words` | what values have in common: texts, numbers, times, sizes, `name=value` |
//! | `dynamic` | `consul_dynamic` |
//! | `balance` | `consul_balance` |
//! | `removal` | `consul_empty`, `consul_max_removal`, `consul_max_stale`, `consul_allow`, `consul_deny` |
//! | `on_demand` | `consul_allow_service`, `consul_unknown_service` |
//! | `client` | `consul_server`, `consul_wait`, `consul_poll`, `consul_retry` |
//! | `status` | `consul_status` |
//! | `methods` | load balancing methods of other modules in the same `upstream` |
//!
//! An error is the text that nginx logs; nginx adds ` in file:line`.

pub mod words;
pub mod dynamic;
pub mod balance;
pub mod removal;
pub mod on_demand;
pub mod client;
pub mod status;
pub mod methods;

#[cfg(test)]
mod testing;
