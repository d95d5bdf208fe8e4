use std::sync::Arc;

use super::*;
use crate::watch::testing::{FakeConsul, RecordingSink, element, endpoint, target};
use crate::watch::{Confirm, OnEmpty, Plan, Policy, Token, Watcher, first_answers};

const OVER: Duration = Duration::from_millis(300);

/// A target whose removals need two more reads.
fn guarded(consul: &FakeConsul) -> Target {
    let confirm = OnEmpty::Confirm(Confirm { reads: 2, over: OVER });
    let policy = Policy { on_empty: confirm, max_removal: Some(50) };
    Target { policy, ..target(&Arc::new(endpoint(&consul.url)), "web") }
}

fn start(target: Target, sink: &Arc<RecordingSink>) -> Watcher {
    let plan = Arc::new(Plan::new(vec![target], 4).0);
    Watcher::start(plan, Arc::clone(sink) as Arc<dyn Sink>).unwrap()
}

#[test]
fn an_empty_answer_is_read_again_before_it_counts() {
    let consul = FakeConsul::new(&[element("a", 1), element("b", 2)]);
    let sink = Arc::new(RecordingSink::default());
    let watcher = start(guarded(&consul), &sink);
    sink.until_peers(0, 2);
    consul.set(&[]);
    let took = sink.until_peers(0, 0);
    assert!(took >= OVER, "{took:?}");
    watcher.join(Duration::from_secs(2));
    let told = sink.state.lock().unwrap();
    let reports = told.reports.join("\n");
    for confirmed in 0..2 {
        let pending =
            format!("pending: Some(Pending {{ removals: 2, confirmed: {confirmed}, of: 2 }})");
        assert!(reports.contains(&pending), "{reports}");
    }
    assert!(told.reports.last().unwrap().ends_with("pending: None }"), "{reports}");
    let lines = &told.lines[1..];
    assert_eq!(
        lines[0],
        "Warn service \"web\": 2 of 2 peers are missing from the answer, kept until confirmed by 2 more reads"
    );
    assert!(
        lines[1].starts_with("Warn service \"web\": 2 removals confirmed by 2 more reads within")
    );
    assert_eq!(lines[2], "Notice service \"web\": 0 peers (+0 -2), index 11");
    assert_eq!(lines.len(), 3, "{lines:#?}");
}

#[test]
fn another_engine_knows_what_the_first_had_published() {
    let consul = FakeConsul::new(&[element("a", 1), element("b", 2), element("c", 3)]);
    let sink = Arc::new(RecordingSink::default());
    let watcher = start(guarded(&consul), &sink);
    sink.until_peers(0, 3);
    watcher.join(Duration::from_secs(2));
    consul.set(&[element("a", 1)]);
    // The master has no time to confirm anything: what is held stays.
    let plan = Arc::new(Plan::new(vec![guarded(&consul)], 4).0);
    let shared = Arc::clone(&sink) as Arc<dyn Sink>;
    assert_eq!(first_answers(&plan, &shared, &[0], Duration::from_secs(5)), 1);
    assert_eq!(sink.state.lock().unwrap().sets[&0].peers().len(), 3);
    let watcher = start(guarded(&consul), &sink);
    let took = sink.until_peers(0, 1);
    assert!(took >= OVER, "{took:?}");
    watcher.join(Duration::from_secs(2));
}

#[test]
fn a_token_without_rights_removes_no_peer() {
    // This Consul answers `[]` about the token too: one without any right.
    let consul = FakeConsul::new(&[element("a", 1)]);
    let sink = Arc::new(RecordingSink::default());
    let mut doubtful = guarded(&consul);
    let token = Some(Token::value("s3cret").unwrap());
    doubtful.endpoint = Arc::new(crate::watch::Endpoint { token, ..endpoint(&consul.url) });
    let watcher = start(doubtful, &sink);
    sink.until_peers(0, 1);
    consul.set(&[]);
    sink.until(|told| told.reports.iter().filter(|r| r.contains("reason: Token")).count() >= 2);
    assert_eq!(sink.state.lock().unwrap().sets[&0].peers().len(), 1);
    consul.set(&[element("a", 1), element("b", 2)]);
    sink.until(|told| told.lines.iter().any(|line| line.contains("1 removal cancelled")));
    watcher.join(Duration::from_secs(2));
    let lines = sink.lines();
    let errors: Vec<_> = lines.iter().filter(|line| line.starts_with("Error")).collect();
    assert_eq!(errors.len(), 1, "{lines:#?}");
    assert!(errors[0].contains("the token lost its rights (it has no policy)"), "{errors:?}");
    assert!(!lines.join("\n").contains("s3cret"), "{lines:#?}");
}

#[test]
fn with_stale_reads_an_empty_answer_waits_until_a_server_that_is_cut_off_has_noticed() {
    let over = |consistency, max_stale| {
        let mut target = target(&Arc::new(endpoint("http://127.0.0.1:1")), "web");
        target.policy = Policy::default();
        target.query.consistency = consistency;
        target.timing.max_stale = max_stale;
        match super::policy_of(&target).on_empty {
            OnEmpty::Confirm(confirm) => confirm.over,
            other => panic!("{other:?}"),
        }
    };
    let (five, seconds) = (Some(Duration::from_secs(5)), Duration::from_secs);
    assert_eq!(over(Consistency::Default, five), Duration::from_millis(1500));
    assert_eq!(over(Consistency::Stale, five), seconds(6));
    assert_eq!(over(Consistency::Stale, None), seconds(10));
}
