//! One answer for one target, outside of any watch.

use std::time::Duration;

use super::runner::{Failure, ask, target_name};
use super::{Level, Mode, Published, Report, Sink, Target, WatchPlan};
use crate::consul::client::Client;
use crate::consul::instances::Instances;
use crate::consul::watch::Fetch;
use crate::resolve::{Names, Resolve};
use crate::snapshot;

/// Asking once, and putting the answer in force: for a service that is new.
pub(crate) struct Once;

impl Once {
    /// Asks a server of the target's; gives the index and the instances.
    ///
    /// # Errors
    ///
    /// There is no answer, or none to believe; the text says why.
    pub(crate) fn ask(
        client: &mut Client,
        target: &Target,
        server: usize,
    ) -> Result<(u64, Instances), String> {
        let watch = WatchPlan {
            query: target.query.clone(),
            endpoint: target.endpoint.clone(),
            timing: target.timing,
            targets: Vec::new(),
        };
        let fetch = Fetch { server, index: None, wait: Duration::ZERO, probe: false };
        // A kept connection that broke is worth a second try.
        for _ in 0..2 {
            match ask(client, &watch, fetch) {
                Ok(Some((index, _, instances))) => return Ok((index, instances)),
                Ok(None) => return Err("nginx ends".to_owned()),
                Err(Failure::Reconnected) => {}
                Err(Failure::Refused(_, error)) => return Err(error),
            }
        }
        Err("the connection is closed again and again".to_owned())
    }

    /// Puts the answer of a server in force.
    pub(crate) fn publish(
        number: usize,
        target: &Target,
        (index, server, instances): (u64, usize, &Instances),
        resolver: &dyn Resolve,
        sink: &dyn Sink,
    ) {
        let mut names = Names::default();
        let budget = target.endpoint.connect_timeout;
        names.refresh(&instances.good, resolver, (budget, target.timing.resolve));
        let (set, _) = snapshot::peers(&instances.good, &target.selection, &names);
        let name = || target_name(&target.query, &target.selection);
        match sink.publish(number, &set, index) {
            Published::Unchanged => {}
            Published::Changed { peers, .. } => {
                let s = if peers == 1 { "" } else { "s" };
                let line =
                    format!("{}: named by a request, {peers} peer{s}, index {index}", name());
                sink.log(Level::Notice, line);
            }
            Published::Refused(reason) => sink.log(Level::Error, format!("{}: {reason}", name())),
        }
        let report = Report::Good { index, server, mode: Mode::Blocking, pending: None };
        sink.report(number, &report);
    }
}
