//! What the sink and the log are told of requests.

use std::time::Instant;

use super::{Job, Tools};
use crate::consul::blocking::{Fetch, Outcome};
use crate::model::Reason;
use crate::model::{Level, Mode, Pending};
use crate::watch::log_labels::query_name;
use crate::watch::outages::Ended;
use crate::watch::plan::Followed;
use crate::watch::{Report, Sink};

/// Reports a good answer: its index, the server and how the service is followed.
pub(in crate::watch) fn report_good<'a>(
    (index, server, mode): (u64, usize, Mode),
    targets: impl Iterator<Item = (&'a Followed, Option<Pending>)>,
    sink: &dyn Sink,
) {
    for (target, pending) in targets.filter(|(target, _)| !target.is_gone()) {
        sink.report(target.number, &Report::Good { index, server, mode, pending });
    }
}

impl Job {
    /// What the log says of a good answer.
    pub(super) fn log_good(&mut self, fetch: Fetch, outcome: Outcome, tools: &Tools<'_>) {
        let watched = &*self.common.watched;
        let (name, server) = (query_name(&watched.query), &watched.endpoint.servers[fetch.server]);
        if fetch.probe {
            let line = format!("{name}: the first server answers again, server \"{server}\"");
            tools.sink.log(Level::Notice, line);
        }
        if let Outcome::Publish { outage: Some(outage), .. } = outcome {
            let (server, without_streaming) = (server.to_string(), self.watch.avoids_copies());
            if let Some(failing) = self.failing.take() {
                failing.end(name, Ended { outage, without_streaming, server }, Instant::now());
            }
        }
    }

    pub(super) fn report_failure(
        &mut self,
        fetch: Fetch,
        (reason, error): (Reason, &str),
        outcome: Outcome,
        tools: &Tools<'_>,
    ) {
        let Outcome::Failed { failures, retry_in, round } = outcome else { return };
        let (common, sink) = (&*self.common, tools.sink);
        let targets = common.targets();
        let heard =
            || targets.iter().filter(|target| !target.is_gone()).map(|target| target.number);
        let server = common.watched.endpoint.servers[fetch.server].to_string();
        let name = query_name(&common.watched.query);
        let retry = match retry_in.as_millis() {
            0 if self.watch.server() != fetch.server => "trying the next server".to_owned(),
            millis => format!("retrying in {millis}ms"),
        };
        let has_data = heard().any(|target| sink.has_data(target));
        match &self.failing {
            None => {
                let failing =
                    tools.outages.begin(&server, (name, error), (retry, has_data), Instant::now());
                self.failing = Some(failing);
            }
            Some(failing) if round && failing.is_told() => {
                let first = if has_data { "" } else { ", it has never answered" };
                let line = format!("{name}: {error}, {retry}, server \"{server}\"{first}");
                sink.log(Level::Info, line);
            }
            Some(_) => {}
        }
        for target in heard() {
            let server = fetch.server;
            sink.report(target, &Report::Failed { server, reason, error, failures, retry_in });
        }
    }
}
