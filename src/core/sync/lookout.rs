//! Looks out for changes of all services of a datacenter, by a blocking query about all of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::asking::Failure;
use super::plan::Subject;
use super::runner::Tools;
use super::{Level, Sink};
use crate::consul::client::{self, Client, Request};
use crate::consul::gate::vet;
use crate::consul::overview::{Difference, Overview};
use crate::consul::query::View;
use crate::consul::watch::{Answer, Fetch, Settings, Step, Watch};
use crate::model::{Consistency, Query, Source};

/// One of each is a full look.
pub(super) const VIEWS: [View; 3] = [View::Critical, View::Warning, View::Names];
/// Length of the queries, at most: after a reload Consul counts them for so long.
pub(super) const WAIT: Duration = Duration::from_secs(20);
/// Pause after an answer, so that a burst of changes is one more answer. Consul goes through all
/// services for a list of the names.
const PAUSE_CHECKS: Duration = Duration::from_millis(50);
pub(super) const PAUSE_NAMES: Duration = Duration::from_millis(500);
/// Bytes a second that one lookout may take for long.
const BYTES: f64 = 512.0 * 1024.0;

/// What a lookout speaks for: the services of one datacenter, seen through one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    subject: Arc<Subject>,
}

impl Scope {
    /// The scope of a watch; `None` if no lookout could speak for it.
    pub(super) fn of(subject: &Subject) -> Option<Scope> {
        let query = &subject.query;
        let in_catalog = matches!(query.source, Source::Health | Source::Catalog);
        // Each entry of the agent's cache has an age of its own.
        if !in_catalog || query.consistency == Consistency::Cached {
            return None;
        }
        let query = Query {
            source: Source::Health,
            datacenter: query.datacenter.clone(),
            namespace: query.namespace.clone(),
            partition: query.partition.clone(),
            consistency: query.consistency,
            ..Query::default()
        };
        let subject = Subject { query, ..subject.clone() };
        Some(Scope { subject: Arc::new(subject) })
    }

    /// Words for a log line.
    fn name(&self) -> String {
        let mut name = "the overview of all services".to_owned();
        if let Some(datacenter) = &self.subject.query.datacenter {
            name += &format!(" dc={}", datacenter.escape_debug());
        }
        name
    }
}

/// One blocking query about all services.
pub(super) struct Lookout {
    scope: Scope,
    view: View,
    watch: Watch,
    rng: SmallRng,
    known: Option<Overview>,
    /// Changes may have gone unseen since the last answer.
    lost: bool,
    failed: bool,
}

/// What a look gave.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Finding {
    /// Whom to read at once.
    pub(super) news: Difference,
    /// There was more than `news` tells.
    pub(super) more: More,
}

/// Whether something else may have changed, nobody knows where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum More {
    #[default]
    No,
    /// A lookout that woke for nothing that is to be seen: a check that went and came back, or
    /// something about checks that are none of its own.
    Perhaps,
    Yes,
}

/// How a look ended.
#[derive(Debug)]
pub(super) enum Looked {
    /// The engine ends.
    Stopped,
    /// Nothing was asked yet, or to no avail.
    Idle,
    /// With an answer.
    Found(Finding),
    /// Without.
    Failed,
}

/// Asks about all services of a scope; `None` if the engine ends. Gives index, length of the body and
/// what it says.
pub(super) fn look_over(
    client: &mut Client,
    subject: &Subject,
    view: View,
    fetch: Fetch,
) -> Result<Option<(u64, u64, Overview)>, Failure> {
    let Subject { query, endpoint, timing } = subject;
    let patience = fetch.probe.then_some(endpoint.connect_timeout);
    let Fetch { server, index, wait, probe, from } = fetch;
    let request = Request { endpoint, server, query, view, from, index, wait, patience };
    let answer = match if probe { client.probe(request) } else { client.get(request) } {
        Ok(answer) => answer,
        Err(client::Error::Stopped) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // One that is filtered by the token's rights is as good: what the token can't see here it
    // can't see of the services either.
    let index = vet(&answer, answer.index, timing.max_stale)?;
    let overview = Overview::parse(view, &answer.body)?;
    Ok(Some((index, answer.body.len() as u64, overview)))
}

impl Lookout {
    pub(super) fn new(scope: &Scope, view: View) -> Self {
        let (endpoint, timing) = (&scope.subject.endpoint, &scope.subject.timing);
        Lookout {
            scope: scope.clone(),
            view,
            watch: Watch::new(Settings {
                servers: endpoint.servers.len(),
                wait: timing.wait.min(WAIT),
                retry_min: timing.retry_min,
                retry_max: timing.retry_max,
                sweep: None,
                poll: timing.poll,
                can_avoid_copies: false,
                may_lag: false,
            }),
            rng: SmallRng::from_rng(&mut rand::rng()),
            known: None,
            lost: true,
            failed: false,
        }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.watch.due()
    }

    /// How long the next request blocks, if it does.
    pub(super) fn blocks_for(&self) -> Option<Duration> {
        self.watch.will_block().then_some(self.scope.subject.timing.wait.min(WAIT))
    }

    /// Starts anew after a panic.
    pub(super) fn restart(&mut self) {
        *self = Lookout::new(&self.scope, self.view);
        self.watch.read_again(Instant::now() + Duration::from_secs(5));
    }

    /// One request and what follows from it.
    pub(super) fn run(&mut self, tools: &mut Tools<'_>) -> Looked {
        let sent = Instant::now();
        let Step::Fetch(fetch) = self.watch.next(sent) else { return Looked::Idle };
        let asked = look_over(tools.client, &self.scope.subject, self.view, fetch);
        tools.client.end_probe(asked.is_ok());
        match asked {
            Ok(None) => Looked::Stopped,
            Ok(Some((index, bytes, overview))) => {
                Looked::Found(self.take((fetch, sent), (index, bytes, overview), tools.sink))
            }
            Err(failure) => {
                self.lost = true;
                self.watch.answer(failure.answer(), Instant::now(), &mut self.rng);
                let Failure::Refused(_, error) = failure else { return Looked::Idle };
                if fetch.probe {
                    return Looked::Idle;
                }
                if !std::mem::replace(&mut self.failed, true) {
                    let server = &self.scope.subject.endpoint.servers[fetch.server];
                    let (name, view) = (self.scope.name(), self.view);
                    let line = format!(
                        "{name} is not to be had ({view:?}: {error}), server \"{server}\": they \
                         are read in turn"
                    );
                    tools.sink.log(Level::Warn, line);
                }
                Looked::Failed
            }
        }
    }

    fn take(
        &mut self,
        (fetch, sent): (Fetch, Instant),
        (index, bytes, overview): (u64, u64, Overview),
        sink: &dyn Sink,
    ) -> Finding {
        let now = Instant::now();
        let answer = Answer::Good { index, digest: overview.digest(), bytes, is_copy: false };
        self.watch.answer(answer, now, &mut self.rng);
        let pause = if self.view == View::Names { PAUSE_NAMES } else { PAUSE_CHECKS };
        self.watch.pause_until(now + pause + Duration::from_secs_f64(bytes as f64 / BYTES));
        if std::mem::take(&mut self.failed) {
            sink.log(Level::Notice, format!("{} is there again", self.scope.name()));
        }
        let lost = std::mem::take(&mut self.lost);
        let news = self.known.as_ref().map(|k| k.difference(&overview)).unwrap_or_default();
        self.known = Some(overview);
        let moved = fetch.index != Some(index);
        let early = now - sent + Duration::from_millis(100) < fetch.wait;
        let more = match self.view {
            _ if lost || fetch.index.is_none() => More::Yes,
            View::Names if moved => More::Yes,
            View::Names => More::No,
            _ if early && news.is_empty() => More::Perhaps,
            _ => More::No,
        };
        Finding { news, more }
    }
}
