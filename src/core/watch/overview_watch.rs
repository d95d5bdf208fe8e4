//! A blocking query about all services of a datacenter: says which services have changed.

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::sink::Sink;
use super::subscription::Context;
use crate::consul::blocking::{BlockingQuery, FetchResult, Settings, Step};
use crate::consul::client::Client;
use crate::consul::endpoint::WatchedQuery;
use crate::consul::fetch::{Failure, check_headers, send};
use crate::consul::overview::{Difference, Overview};
use crate::consul::query::{Fetch, View};
use crate::model::{Consistency, Level, Query, Source};

/// The views that together cover all services.
pub(super) const VIEWS: [View; 3] = [View::Critical, View::Warning, View::Names];
/// Longest `wait` of these queries: after a reload Consul counts their connections for this long.
const WAIT: Duration = Duration::from_secs(20);
/// Pause after an answer, so that a burst of changes makes one more answer. A list of names costs
/// Consul a walk over all services.
const PAUSE_CHECKS: Duration = Duration::from_millis(50);
pub(super) const PAUSE_NAMES: Duration = Duration::from_millis(500);
/// Bytes per second that one overview may take in the long run.
const BYTES: f64 = 512.0 * 1024.0;

/// The query about all services of a query's datacenter, with its token; `None` if no overview can
/// cover it.
pub(super) fn overview_query(watched: &WatchedQuery) -> Option<WatchedQuery> {
    let query = &watched.query;
    let in_catalog = matches!(query.source, Source::Health | Source::Catalog);
    // Entries of the agent's cache have different ages.
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

/// Sends a query about all services; `None` if the watcher stops. Gives the index, the length of the
/// body and the overview.
pub(super) fn fetch_overview(
    client: &mut Client,
    watched: &WatchedQuery,
    view: View,
    fetch: Fetch,
) -> Result<Option<(u64, u64, Overview)>, Failure> {
    let Some(response) = send(client, watched, fetch, view)? else { return Ok(None) };
    // `Filtered-By-ACLs` is no failure here: what the token hides in an overview, it hides in the
    // queries about services too.
    let index = check_headers(&response, response.index, watched.timing.max_stale)?;
    let overview = Overview::parse(view, &response.body);
    let overview = overview.map_err(|error| Failure::of_body(error, client))?;
    Ok(Some((index, response.body.len() as u64, overview)))
}

/// One blocking query about all services.
pub(super) struct OverviewWatch {
    watched: WatchedQuery,
    view: View,
    rules: BlockingQuery,
    rng: SmallRng,
    known: Option<Overview>,
    /// Changes since the last answer may have been missed.
    may_have_missed: bool,
    has_failed: bool,
}

/// What has changed between two overviews.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OverviewDiff {
    /// What to read at once.
    pub(super) named: Difference,
    /// Any other service may have changed too.
    pub(super) is_unattributed: bool,
}

/// How a query ended.
#[derive(Debug)]
pub(super) enum OverviewOutcome {
    /// No request was sent, or its result says nothing.
    Idle,
    /// With an answer.
    Changed(OverviewDiff),
    /// Without an answer.
    Failed,
}

impl OverviewWatch {
    /// Sends its first request at `at`.
    pub(super) fn new(watched: WatchedQuery, view: View, at: Instant) -> Self {
        let (endpoint, timing) = (&watched.endpoint, &watched.timing);
        let mut rules = BlockingQuery::new(Settings {
            servers: endpoint.servers.len(),
            wait: timing.wait.min(WAIT),
            retry_min: timing.retry_min,
            retry_max: timing.retry_max,
            poll_interval: None,
            fallback_interval: timing.poll,
            can_avoid_copies: false,
            may_lag: false,
        });
        rules.pause_until(at);
        let rng = SmallRng::from_rng(&mut rand::rng());
        OverviewWatch {
            watched,
            view,
            rules,
            rng,
            known: None,
            may_have_missed: true,
            has_failed: false,
        }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.rules.due()
    }

    pub(super) fn will_block(&self) -> bool {
        self.rules.will_block()
    }

    /// Starts anew after a panic.
    pub(super) fn restart(&mut self) {
        let at = Instant::now() + Duration::from_secs(5);
        *self = OverviewWatch::new(self.watched.clone(), self.view, at);
    }

    /// Sends one request and handles its result; `None` if the watcher stops.
    pub(super) fn run(&mut self, context: &mut Context<'_>) -> Option<OverviewOutcome> {
        let step = self.rules.next(Instant::now());
        let Step::Fetch(fetch) = step else { return Some(OverviewOutcome::Idle) };
        let fetched = fetch_overview(context.client, &self.watched, self.view, fetch);
        let failure = match fetched {
            Ok(None) => return None,
            Ok(Some(reply)) => {
                return Some(OverviewOutcome::Changed(self.take(fetch, reply, context.sink)));
            }
            Err(failure) => failure,
        };
        self.may_have_missed = true;
        self.rules.on_result(failure.result(), Instant::now(), &mut self.rng);
        let Failure::Failed(_, error) = failure else { return Some(OverviewOutcome::Idle) };
        if fetch.probe {
            return Some(OverviewOutcome::Idle);
        }
        if !std::mem::replace(&mut self.has_failed, true) {
            let server = &self.watched.endpoint.servers[fetch.server];
            let (name, view) = (self.name(), self.view);
            let line = format!(
                "{name} failed ({view:?}: {error}), falling back to polling every service, \
                 server \"{server}\""
            );
            context.sink.log(Level::Warn, line);
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
        let good = FetchResult::Good { index, digest: overview.digest(), bytes, is_copy: false };
        self.rules.on_result(good, now, &mut self.rng);
        let pause = if self.view == View::Names { PAUSE_NAMES } else { PAUSE_CHECKS };
        self.rules.pause_until(now + pause + Duration::from_secs_f64(bytes as f64 / BYTES));
        if std::mem::take(&mut self.has_failed) {
            sink.log(Level::Notice, format!("{} recovered", self.name()));
        }
        let may_have_missed = std::mem::take(&mut self.may_have_missed);
        let named = self.known.as_ref().map(|k| k.difference(&overview)).unwrap_or_default();
        self.known = Some(overview);
        // The list of names does not show for every change which service it belongs to.
        let moved = self.view == View::Names && fetch.index != Some(index);
        OverviewDiff { named, is_unattributed: may_have_missed || fetch.index.is_none() || moved }
    }

    /// Its name in log lines.
    fn name(&self) -> String {
        let datacenter = self.watched.query.datacenter.as_deref().unwrap_or_default();
        let datacenter = match datacenter {
            "" => String::new(),
            datacenter => format!(" dc={}", datacenter.escape_debug()),
        };
        format!("overview watch of all services{datacenter}")
    }
}
