//! `consul_state`: the last valid answers on disk.
//!
//! The master reads the file before it forks, for targets that have no set from the zone or from
//! Consul.
//! A thread of worker 0 writes it.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::model::{Level, Override, ServiceName};
use crate::on_demand::{ServiceStore, Templates};
use crate::state::saver::name;
use crate::state::{LoadError, Saved, State, StateProvider, Version, file};
use crate::table::{LookupResult, NotSet, Table};
use crate::watch::{Plan, Sink, Target};

use super::writer::TableWriter;

/// `consul_state path [valid=time]`.
#[derive(Clone, Debug)]
pub struct StateFile {
    /// Absolute.
    pub path: PathBuf,
    /// Answers older than that are not taken from it.
    pub valid: Option<Duration>,
    /// Longest file that is read, in bytes.
    pub limit: u64,
}

/// Bytes of the file for each of the zone, at most: names of control characters are longest.
const PER_ZONE_BYTE: u64 = 8;
/// The file of another zone may be longer: that of about a million instances is read with any.
const MIN_LIMIT: u64 = 256 << 20;

impl StateFile {
    /// The same for a zone of that size in bytes: what is in such a zone can be read again.
    pub fn of_zone(self, size: usize) -> StateFile {
        let limit = MIN_LIMIT.max((size as u64).saturating_mul(PER_ZONE_BYTE));
        StateFile { limit, ..self }
    }

    /// The directory that the file is in.
    pub fn directory(&self) -> &Path {
        parent(&self.path)
    }

    /// Publishes the file's sets of the targets that have no data. Leaves those that are too old, for
    /// the file's next version. Restores overrides if the zone `is_new`.
    pub fn restore(
        &self,
        plan: &Plan,
        templates: Option<&Templates>,
        (sink, is_new): (&TableWriter, bool),
    ) -> State {
        let missing: HashMap<u128, usize> = (0..plan.targets.len())
            .filter(|&target| !sink.has_data(target))
            .map(|target| (plan.key(target), target))
            .collect();
        if missing.is_empty() && templates.is_none() && !is_new {
            return State::default();
        }
        let Some(mut state) = self.load(sink) else { return State::default() };
        let now = Clock::now();
        state.to_wall_clock(now);
        sink.with_table(|table| table.note_state_written(now.monotonic_at(state.written_ms)));
        let overrides = std::mem::take(&mut state.overrides);
        if is_new {
            self.restore_overrides(overrides, now, sink);
        }
        let now = now.wall;
        for saved in std::mem::take(&mut state.targets) {
            let too_old = self.refuse(&saved, now);
            let restored = match (saved.template.is_some(), missing.get(&saved.key), too_old) {
                (true, _, None) => self.restore_named(&saved, now, (plan, templates), sink),
                (false, Some(&number), None) => {
                    self.publish((number, &plan.targets[number]), &saved, now, sink)
                }
                (false, Some(_), Some(why)) => {
                    sink.log(Level::Warn, self.not_taken(&saved, &why));
                    state.targets.push(saved);
                    continue;
                }
                _ => continue,
            };
            if let Err(why) = restored {
                sink.log(Level::Error, self.not_taken(&saved, &why));
            }
        }
        state
    }

    fn not_taken(&self, saved: &Saved, why: &str) -> String {
        let (service, name) = (saved.service.escape_debug(), name(&self.path));
        format!("service \"{service}\": not taken from {name}, {why}")
    }

    /// The overrides of instances.
    fn restore_overrides(&self, mut overrides: Vec<Override>, now: Clock, sink: &TableWriter) {
        for held in &mut overrides {
            held.deadline = held.until_ms.map(|until| now.monotonic_at(until));
        }
        overrides.retain(|held| held.until_ms.is_none_or(|until| now.wall < until));
        if overrides.is_empty() {
            return;
        }
        let name = name(&self.path);
        let Some((taken, refused)) = sink.with_table(|table| set_newest(table, overrides, sink))
        else {
            return;
        };
        if let Some((count, why)) = refused {
            sink.log(Level::Error, format!("{name}: {count} overrides are not taken ({why})"));
        }
        if taken > 0 {
            sink.log(Level::Notice, format!("{name}: {taken} overrides of instances taken"));
        }
    }

    /// Restores a service that a request had named, if its upstream still allows it.
    fn restore_named(
        &self,
        saved: &Saved,
        now: u64,
        (plan, templates): (&Plan, Option<&Templates>),
        sink: &TableWriter,
    ) -> Result<(), String> {
        let Some((templates, key)) = templates.zip(saved.template) else { return Ok(()) };
        let name = &saved.service;
        let service = ServiceName { template: key, name: name.clone() };
        let Some(template) = templates.admit(&service) else { return Ok(()) };
        let places = template.targets_of(name, plan);
        let Some(place) = places.iter().find(|place| place.key == saved.key) else { return Ok(()) };
        let number = sink.add(&service, place)?;
        sink.record_lookup(template.lookup_key(name), LookupResult::Followed, Duration::MAX);
        self.publish((number, &place.target), saved, now, sink)
    }

    /// The file's content. A damaged file is renamed, so that the next start ignores it and an
    /// operator can examine it.
    fn load(&self, sink: &TableWriter) -> Option<State> {
        let name = name(&self.path);
        match file::load(&self.path, self.limit) {
            Ok(Some(state)) => return Some(state),
            Ok(None) => sink.log(Level::Info, format!("{name} does not exist yet")),
            Err(LoadError::Io(error)) => {
                sink.log(
                    Level::Error,
                    format!("cannot read {name} ({error}), starting without it"),
                );
            }
            Err(LoadError::Damaged(damage)) => {
                let then = match file::quarantine(&self.path) {
                    Ok(aside) => format!("renamed to \"{}\"", aside.display()),
                    Err(error) => format!("can't be renamed ({error})"),
                };
                sink.log(
                    Level::Error,
                    format!("{name} is damaged ({damage}), {then}, starting without it"),
                );
            }
        }
        None
    }

    /// Why an answer is too old to be taken.
    fn refuse(&self, saved: &Saved, now: u64) -> Option<String> {
        let valid = self.valid?;
        match saved.age_ms(now).map(Duration::from_millis) {
            None => Some("the clock was set back since".to_owned()),
            Some(age) if age > valid => {
                let (age, valid) = (age.as_secs(), valid.as_secs_f64());
                Some(format!("{age}s old, over valid={valid}s"))
            }
            Some(_) => None,
        }
    }

    fn publish(
        &self,
        (number, target): (usize, &Target),
        saved: &Saved,
        now: u64,
        sink: &TableWriter,
    ) -> Result<(), String> {
        let peers = saved.permitted(&target.selection.addresses);
        let count = peers.peers().len();
        if sink.restore(number, &Saved { peers, ..saved.clone() })? {
            let (service, name) = (saved.service.escape_debug(), name(&self.path));
            let (s, age) =
                (if count == 1 { "" } else { "s" }, saved.age_ms(now).unwrap_or(0) / 1000);
            let line = format!("service \"{service}\": {count} peer{s} from {name}, {age}s old");
            sink.log(Level::Notice, line);
        }
        Ok(())
    }
}

/// Sets as many overrides as there is room for, the newest first. Gives their number, and how many are
/// left out and why.
fn set_newest(
    table: Table<'_>,
    mut overrides: Vec<Override>,
    sink: &TableWriter,
) -> (usize, Option<(usize, NotSet)>) {
    overrides.sort_by_key(|held| held.since_ms);
    let newest = |count: usize| &overrides[overrides.len() - count..];
    // The table has room for `taken`, but not for `too_many`.
    let (mut taken, mut too_many, mut next) = (0, overrides.len() + 1, overrides.len());
    let mut refused = None;
    while taken + 1 < too_many {
        match table.set_overrides(newest(next), sink.me()) {
            Ok(()) => taken = next,
            Err(why @ NotSet::Full(_)) => (too_many, refused) = (next, Some(why)),
            Err(why @ NotSet::Busy) => return (taken, Some((overrides.len() - taken, why))),
        }
        next = taken.midpoint(too_many);
    }
    (taken, refused.map(|why| (overrides.len() - taken, why)))
}

/// What worker 0 saves: the sets in the table.
pub struct TableState {
    /// Where the sets are.
    pub sink: Arc<TableWriter>,
    /// What is followed.
    pub plan: Arc<Plan>,
    /// The file as it was read, with sets for targets that have no data.
    pub expired: State,
}

impl StateProvider for TableState {
    fn versions(&self) -> Option<Vec<Version>> {
        let of_table =
            |table: Table<'_>| (table.is_leader(self.sink.me()), table.overrides_version());
        let (leads, overrides) = self.sink.with_table(of_table)?;
        let mark = |target| self.sink.version(target).unwrap_or_default();
        let named = self.sink.named_targets().into_iter().map(|(number, ..)| number);
        let targets = (0..self.plan.targets.len()).chain(named).map(mark);
        let overrides = Version { generation: overrides, last_good: 0 };
        leads.then(|| targets.chain([overrides]).collect())
    }

    fn state(&self) -> Option<State> {
        let planned = self.plan.targets.iter().enumerate();
        let planned = planned
            .map(|(number, target)| (number, self.plan.key(number), &target.query.service, None));
        let named = self.sink.named_targets();
        let named = named
            .iter()
            .map(|(number, key, named)| (*number, *key, &named.name, Some(named.template)));
        let (mut targets, now) = (Vec::new(), Clock::now());
        let mut expired = self.expired.clone();
        expired.to_wall_clock(now);
        for (number, key, service, template) in planned.chain(named) {
            let Some(mark) = self.sink.version(number) else {
                targets.extend(expired.targets.iter().find(|saved| saved.key == key).cloned());
                continue;
            };
            let (image, index) = self.sink.image(number)?;
            targets.push(Saved {
                key,
                service: service.clone(),
                template,
                index,
                last_good_ms: now.wall_at(mark.last_good),
                peers: image.peer_set()?,
            });
        }
        let mut overrides = self.sink.with_table(|table| table.all_overrides())??;
        overrides.retain(|held| held.selection.is_none());
        for held in &mut overrides {
            held.until_ms = held.deadline.map(|deadline| now.wall_at(deadline));
        }
        Some(State::new(now, targets, overrides))
    }

    fn saved(&self, outcome: Result<(), &io::Error>) {
        self.sink.with_table(|table| match outcome {
            Ok(()) => table.note_state_written(Clock::now().monotonic),
            Err(error) => table.note_state_error(error),
        });
    }

    fn log(&self, level: Level, line: String) {
        self.sink.log(level, line);
    }
}

/// The directory of an absolute path.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("/"))
}
