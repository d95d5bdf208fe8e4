//! One answer for one target, outside of any watch: for a service that is new.

use std::sync::Arc;
use std::time::Duration;

use super::asking::{Failure, ask};
use super::plan::{Followed, Subject, Target};
use super::publisher::Publisher;
use super::{Mode, Report, Sink};
use crate::consul::client::Client;
use crate::consul::instances::Instances;
use crate::consul::query::View;
use crate::consul::watch::Fetch;
use crate::resolve::Resolve;

/// Asks a server about a target's subject; gives the index and the instances.
///
/// # Errors
///
/// There is no answer, or none to believe; the text says why.
pub(crate) fn ask_once(
    client: &mut Client,
    subject: &Subject,
    server: usize,
) -> Result<(u64, Instances), String> {
    match ask(client, subject, Fetch::read(server, Duration::ZERO), View::Full) {
        Ok(Some(reply)) => Ok((reply.index, reply.instances)),
        Err(Failure::Refused(_, error)) => Err(error),
        // Without an index nothing keeps a client from connecting.
        Ok(None) | Err(Failure::Reconnected) => Err("nginx ends".to_owned()),
    }
}

/// Puts the answer of a server in force for a target; `false` if there is no room for it.
pub(crate) fn publish_once(
    number: usize,
    target: &Target,
    (index, server, instances): (u64, usize, &Instances),
    resolver: &dyn Resolve,
    sink: &dyn Sink,
) -> bool {
    let followed = [Followed::new(number, Arc::new(target.clone()))];
    // The engine that follows it next warns of skipped instances, and if there is no room.
    let mut publisher = Publisher::quiet();
    let answer = (index, instances, true);
    let prepared = publisher.prepare(&target.subject(), &followed, answer, resolver, sink);
    let has_room = publisher.publish(&prepared, sink);
    let pending = prepared.targets().find_map(|(_, pending)| pending);
    sink.report(number, &Report::Good { index, server, mode: Mode::Blocking, pending });
    has_room
}
