//! The control API (`consul_api`) without HTTP and nginx: it parses requests, and makes responses and
//! log lines. [`Table`](crate::table::Table) stores the overrides that it sets.
//!
//! | file | holds |
//! |---|---|
//! | `response` | refusals, and parts of JSON |
//! | `origin` | refuses requests that a page of another site makes a browser send |
//! | `route` `arguments` `body` | the path and method, the query arguments and the body of a request |
//! | `log_lines` | lines of the error log about overrides |

mod response;
mod origin;
mod route;
mod arguments;
mod body;
mod log_lines;

pub use arguments::Arguments;
pub use body::{Body, MAX_BODY};
pub use log_lines::{expired_line, removed_line, set_line};
pub use origin::check_origin;
pub use response::{Frozen, Refusal, to_json};
pub use route::{PATHS, Route, Verb, route};
