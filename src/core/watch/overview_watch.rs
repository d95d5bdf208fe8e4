//! Follows what all services of a datacenter have in common, by a blocking query about all of them.

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::Sink;
use super::fetch::{Failure, send};
use super::plan::WatchedQuery;
use super::subscription::Tools;
use crate::consul::blocking::{Answer, Fetch, Settings, Step, Watch};
use crate::consul::client::Client;
use crate::consul::overview::{Difference, Overview};
use crate::consul::query::View;
use crate::consul::validate::vet;
use crate::model::{Consistency, Level, Query, Source};

/// One of each speaks for all services.
pub(super) const VIEWS: [View; 3] = [View::Critical, View::Warning, View::Names];
/// Length of the queries, at most: after a reload Consul counts them for so long.
const WAIT: Duration = Duration::from_secs(20);
/// Pause after an answer, so that a burst of changes is one more answer. Consul goes through all
/// services for a list of the names.
const PAUSE_CHECKS: Duration = Duration::from_millis(50);
pub(super) const PAUSE_NAMES: Duration = Duration::from_millis(500);
/// Bytes a second that one overview may take for long.
const BYTES: f64 = 512.0 * 1024.0;

/// What to ask for the services of a watched's datacenter, through its token; `None` if no overview
/// could speak for it.
pub(super) fn overview_query(watched: &WatchedQuery) -> Option<WatchedQuery> {
    let query = &watched.query;
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
    Some(WatchedQuery { query, ..watched.clone() })
}

/// Asks about all services; `None` if the engine ends. Gives index, length of the body and what it
/// says.
pub(super) fn fetch_overview(
    client: &mut Client,
    watched: &WatchedQuery,
    view: View,
    fetch: Fetch,
) -> Result<Option<(u64, u64, Overview)>, Failure> {
    let Some(answer) = send(client, watched, fetch, view)? else { return Ok(None) };
    // One that is filtered by the token's rights is as good: what the token can't see here it
    // can't see of the services either.
    let index = vet(&answer, answer.index, watched.timing.max_stale)?;
    let overview = Overview::parse(view, &answer.body)?;
    Ok(Some((index, answer.body.len() as u64, overview)))
}

/// One blocking query about all services.
pub(super) struct OverviewWatch {
    watched: WatchedQuery,
    view: View,
    watch: Watch,
    rng: SmallRng,
    known: Option<Overview>,
    /// Changes may have gone unseen since the last answer.
    has_lost: bool,
    has_failed: bool,
}

/// What has changed between two overviews.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OverviewDiff {
    /// Whom to read at once.
    pub(super) named: Difference,
    /// Something else may have changed, nobody knows where.
    pub(super) is_all: bool,
}

/// How a query ended.
#[derive(Debug)]
pub(super) enum OverviewOutcome {
    /// Nothing was asked yet, or to no avail.
    Idle,
    /// With an answer.
    Found(OverviewDiff),
    /// Without.
    Failed,
}

impl OverviewWatch {
    /// The first request comes at `at`.
    pub(super) fn new(watched: WatchedQuery, view: View, at: Instant) -> Self {
        let (endpoint, timing) = (&watched.endpoint, &watched.timing);
        let mut watch = Watch::new(Settings {
            servers: endpoint.servers.len(),
            wait: timing.wait.min(WAIT),
            retry_min: timing.retry_min,
            retry_max: timing.retry_max,
            sweep: None,
            poll: timing.poll,
            can_avoid_copies: false,
            may_lag: false,
        });
        watch.pause_until(at);
        let rng = SmallRng::from_rng(&mut rand::rng());
        OverviewWatch { watched, view, watch, rng, known: None, has_lost: true, has_failed: false }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.watch.due()
    }

    pub(super) fn will_block(&self) -> bool {
        self.watch.will_block()
    }

    /// Starts anew after a panic.
    pub(super) fn restart(&mut self) {
        let at = Instant::now() + Duration::from_secs(5);
        *self = OverviewWatch::new(self.watched.clone(), self.view, at);
    }

    /// One request and what follows from it; `None` if the engine ends.
    pub(super) fn run(&mut self, tools: &mut Tools<'_>) -> Option<OverviewOutcome> {
        let step = self.watch.next(Instant::now());
        let Step::Fetch(fetch) = step else { return Some(OverviewOutcome::Idle) };
        let fetched = fetch_overview(tools.client, &self.watched, self.view, fetch);
        let failure = match fetched {
            Ok(None) => return None,
            Ok(Some(reply)) => {
                return Some(OverviewOutcome::Found(self.take(fetch, reply, tools.sink)));
            }
            Err(failure) => failure,
        };
        self.has_lost = true;
        self.watch.answer(failure.answer(), Instant::now(), &mut self.rng);
        let Failure::Refused(_, error) = failure else { return Some(OverviewOutcome::Idle) };
        if fetch.probe {
            return Some(OverviewOutcome::Idle);
        }
        if !std::mem::replace(&mut self.has_failed, true) {
            let server = &self.watched.endpoint.servers[fetch.server];
            let (name, view) = (self.name(), self.view);
            let line = format!(
                "{name} failed ({view:?}: {error}), polling every service, server \"{server}\""
            );
            tools.sink.log(Level::Warn, line);
        }
        Some(OverviewOutcome::Failed)
    }

    fn take(
        &mut self,
        fetch: Fetch,
        (index, bytes, overview): (u64, u64, Overview),
        sink: &dyn Sink,
    ) -> OverviewDiff {
        let now = Instant::now();
        let answer = Answer::Good { index, digest: overview.digest(), bytes, is_copy: false };
        self.watch.answer(answer, now, &mut self.rng);
        let pause = if self.view == View::Names { PAUSE_NAMES } else { PAUSE_CHECKS };
        self.watch.pause_until(now + pause + Duration::from_secs_f64(bytes as f64 / BYTES));
        if std::mem::take(&mut self.has_failed) {
            sink.log(Level::Notice, format!("{} answers again", self.name()));
        }
        let has_lost = std::mem::take(&mut self.has_lost);
        let named = self.known.as_ref().map(|k| k.difference(&overview)).unwrap_or_default();
        self.known = Some(overview);
        // The list of names tells only of some changes whose they are.
        let moved = self.view == View::Names && fetch.index != Some(index);
        OverviewDiff { named, is_all: has_lost || fetch.index.is_none() || moved }
    }

    /// Words for a log line.
    fn name(&self) -> String {
        let datacenter = self.watched.query.datacenter.as_deref().unwrap_or_default();
        let datacenter = match datacenter {
            "" => String::new(),
            datacenter => format!(" dc={}", datacenter.escape_debug()),
        };
        format!("overview watch of all services{datacenter}")
    }
}
