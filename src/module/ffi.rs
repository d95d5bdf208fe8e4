//! nginx's C interface, wrapped once for all that is above. Callbacks come in with raw pointers; what
//! they do with them goes through here.
//!
//! | file          | wraps                                                                        |
//! |---------------|------------------------------------------------------------------------------|
//! | `codes`       | return codes                                                                 |
//! | `catch_panic` | the end of every panic: none unwinds into C                                  |
//! | `text`        | strings and arrays as slices                                                 |
//! | `object`      | programs and libraries that are loaded                                       |
//! | `log`         | lines for the error log                                                      |
//! | `process`     | what nginx says of the process, and its time                                 |
//! | `pool`        | values that a pool drops                                                     |
//! | `bits`        | bit fields of structs, where the C compiler has put them                     |
//! | `event`       | timers and posted events                                                     |
//! | `timer`       | a timer that repeats, for a worker                                           |
//! | `module`      | this module's symbol, and what modules keep in configurations                |
//! | `directive`   | the configuration that is being read                                         |
//! | `session`     | TLS sessions of peers                                                        |
//! | `request`     | a request                                                                    |
//! | `response`    | a response of our own handlers                                               |
//! | `suspended`   | a request that waits for a timer                                             |

pub(crate) mod codes;
pub(crate) mod catch_panic;
mod text;
mod object;
pub(crate) mod log;
pub(crate) mod process;
mod pool;
pub(crate) mod bits;
pub(crate) mod event;
pub(crate) mod timer;
mod module;
mod directive;
pub(crate) mod session;
mod request;
pub(crate) mod response;
pub(crate) mod suspended;

pub(crate) use catch_panic::catch_panic;
pub(crate) use codes::{
    AGAIN, CONF_ERROR, CONF_OK, DECLINED, DONE, ERROR, INTERNAL_SERVER_ERROR, OK,
};
pub(crate) use directive::{Base, Cf, NoMemory};
pub(crate) use log::Log;
pub(crate) use module::{HttpLocConf, HttpMainConf, HttpSrvConf, conf_of, module, srv_conf};
pub(crate) use object::object_of;
pub(crate) use pool::give_to_pool;
pub(crate) use request::Request;
pub(crate) use text::{bytes, elements, str_over};
