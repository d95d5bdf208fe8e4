use std::sync::Arc;

use super::*;
use crate::model::{Action, Override, Reason};
use crate::table::shards_for;
use crate::table::testing::{set, zone};
use crate::table_writer::end_expired;
use crate::watch::Endpoint;
use crate::watch::testing::{endpoint, target};

/// A writer of the sets of `web` and `db`, and its table.
fn writer() -> (Arc<TableWriter>, Table<'static>) {
    let table = Table::create(zone(1 << 17), shards_for(1)).unwrap();
    table.acquire_leadership(ProcessId::own());
    let endpoint = Arc::new(endpoint("http://127.0.0.1:8500"));
    let targets = ["web", "db"].map(|service| target(&endpoint, service)).to_vec();
    let (plan, _) = Plan::new(targets, 4);
    (TableWriter::new(table, &plan), table)
}

fn saved(ports: impl IntoIterator<Item = u16>) -> Saved {
    Saved {
        key: 0,
        service: "web".into(),
        template: None,
        index: 7,
        last_good_ms: 5,
        peers: set(ports),
    }
}

/// A service that a request names, and its target.
fn named(endpoint: &Arc<Endpoint>, name: &str) -> (ServiceName, ServiceTarget) {
    let service = ServiceName { template: 1, name: name.to_owned() };
    (service, ServiceTarget { key: 11, fixed: None, target: target(endpoint, name) })
}

fn identities(writer: &TableWriter, target: usize) -> usize {
    writer.published_identities(target).len()
}

#[test]
fn a_set_is_published_once_and_reported_with_what_changed() {
    let (writer, _) = writer();
    let changed = |peers, added, removed| Published::Changed { peers, added, removed, changed: 0 };
    assert_eq!(writer.publish(0, &set(1..=3), 1), changed(3, 3, 0));
    assert_eq!(writer.publish(0, &set(1..=3), 2), Published::Unchanged);
    assert_eq!(writer.publish(0, &set(2..=5), 3), changed(4, 2, 1));
    assert_eq!((identities(&writer, 0), writer.has_data(0), writer.has_data(1)), (4, true, false));
}

#[test]
fn a_frozen_set_stays_until_its_time_is_over() {
    let (writer, table) = writer();
    writer.publish(0, &set(1..=3), 1);
    let key = writer.planned[0].key;
    let deadline = Some(Clock::now().monotonic + 60_000);
    let freeze = Override {
        selection: Some(key),
        service: "web".into(),
        action: Action::Freeze,
        deadline,
        ..Override::default()
    };
    table.set_overrides(std::slice::from_ref(&freeze), ProcessId::own()).unwrap();
    assert_eq!(writer.publish(0, &set(3..=7), 2), Published::Unchanged);
    let entry = table.find(key).unwrap();
    let diff = table.frozen_diff(entry);
    assert_eq!((identities(&writer, 0), diff.joined, diff.left), (3, 4, 2));
    let over = Override { deadline: Some(1), ..freeze };
    table.set_overrides(&[over], ProcessId::own()).unwrap();
    end_expired(table, &writer);
    assert_eq!(table.all_overrides().unwrap(), []);
    assert!(matches!(writer.publish(0, &set(3..=7), 3), Published::Changed { peers: 5, .. }));
    let lines = writer.take_lines();
    assert!(lines.iter().any(|(_, line)| line.contains("\"web\"")), "{lines:?}");
}

#[test]
fn an_entry_that_the_lock_kept_from_being_made_comes_with_the_first_answer() {
    let words = zone(1 << 17);
    Table::create(words, shards_for(1)).unwrap();
    let table = Table::attach(words).unwrap();
    table.acquire_leadership(ProcessId::own());
    let endpoint = Arc::new(endpoint("http://127.0.0.1:8500"));
    let (plan, _) = Plan::new(vec![target(&endpoint, "web")], 4);
    let guard = table.lock(ProcessId::own());
    let writer = TableWriter::for_threads(table, &plan);
    drop(guard);
    assert_eq!(table.find(writer.planned[0].key), None);
    assert_eq!(writer.take_lines(), [], "it is no lack of room");
    assert!(matches!(writer.publish(0, &set(1..=3), 1), Published::Changed { peers: 3, .. }));
    assert!(table.find(writer.planned[0].key).is_some());
}

#[test]
fn the_master_starts_without_the_state_file_while_another_process_holds_the_lock() {
    let words = zone(1 << 17);
    Table::create(words, shards_for(1)).unwrap();
    let table = Table::attach(words).unwrap();
    let endpoint = Arc::new(endpoint("http://127.0.0.1:8500"));
    let (plan, _) = Plan::new(vec![target(&endpoint, "web")], 4);
    let writer = TableWriter::new(table, &plan);
    let _guard = table.lock(ProcessId::own());
    assert_eq!(writer.restore(0, &saved(1..=2)), Err("the shared memory is busy".to_owned()));
    let (service, of) = named(&endpoint, "api");
    assert_eq!(writer.add(&service, &of), Err("the shared memory is busy".to_owned()));
}

#[test]
fn an_older_configuration_s_writer_adds_nothing_and_complains_of_nothing() {
    let (writer, table) = writer();
    let newer = table.announce_configuration();
    newer.put_in_force();
    assert!(newer.acquire_leadership(ProcessId::own()));
    assert!(newer.retain(&[], &[], ProcessId::own()));
    assert_eq!(writer.publish(0, &set(1..=3), 1), Published::Unchanged);
    assert_eq!((writer.take_lines(), table.entries().len()), (vec![], 0));
    assert!(writer.is_superseded() && !writer.watcher_starts());
}

#[test]
fn an_entry_that_another_configuration_has_freed_is_made_again() {
    let (writer, table) = writer();
    writer.publish(0, &set(1..=3), 1);
    assert!(table.retain(&[], &[], ProcessId::own()));
    assert!(!writer.has_data(0));
    assert!(matches!(writer.publish(0, &set(1..=3), 1), Published::Changed { peers: 3, .. }));
    assert_eq!(identities(&writer, 0), 3);
}

#[test]
fn a_set_of_the_state_file_never_replaces_an_answer() {
    let (writer, table) = writer();
    assert_eq!(writer.restore(0, &saved(1..=2)), Ok(true));
    let entry = table.find(writer.planned[0].key).unwrap();
    let last_good = Clock::now().wall_at(writer.version(0).unwrap().last_good);
    assert_eq!((table.freshness(entry).index, last_good), (7, 5));
    writer.publish(1, &set(1..=3), 1);
    assert_eq!((writer.restore(1, &saved(9..=9)), identities(&writer, 1)), (Ok(false), 3));
}

#[test]
fn a_service_that_a_request_names_has_a_number_of_its_own_each_time() {
    let (writer, _) = writer();
    let (service, of) = named(&Arc::new(endpoint("http://127.0.0.1:8500")), "api");
    let first = writer.add(&service, &of).unwrap();
    writer.publish(first, &set(1..=2), 1);
    assert_eq!(writer.services(), [(service.clone(), first)]);
    writer.remove(first);
    assert_eq!((writer.services().len(), writer.has_data(first)), (0, false));
    assert_eq!(writer.unused_for(first), Duration::MAX, "also right after the boot");
    assert_ne!(writer.add(&service, &of).unwrap(), first);
}

#[test]
fn after_it_is_closed_nothing_touches_the_zone() {
    let (writer, table) = writer();
    writer.publish(0, &set(1..=2), 1);
    writer.close();
    assert_eq!(writer.publish(0, &set(1..=3), 2), Published::Unchanged);
    writer.report(0, &Report::Ignored { reason: Reason::Stale });
    assert!(writer.with_table(|_| ()).is_none());
    let entry = table.find(writer.planned[0].key).unwrap();
    assert!(table.has_data(entry));
}
