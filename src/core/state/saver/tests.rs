use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

fn versions(of: &[(u64, u64)]) -> Vec<Version> {
    of.iter().map(|&(generation, last_good)| Version { generation, last_good }).collect()
}

#[test]
fn a_change_is_written_and_an_age_now_and_then() {
    let start = Instant::now();
    let second = Duration::from_secs(1);
    let mut due = Due::default();
    assert!(!due.is_due(&versions(&[(0, 0), (0, 0)]), start), "nothing is known yet");
    assert!(due.is_due(&versions(&[(0, 0), (1, 5)]), start), "the first answer");
    due.last = Some((versions(&[(1, 5), (1, 5)]), start));
    let older = versions(&[(1, 5), (1, 9)]);
    assert!(!due.is_due(&older, start + 59 * second), "only an age differs");
    assert!(due.is_due(&older, start + 60 * second));
    assert!(!due.is_due(&versions(&[(1, 5), (1, 5)]), start + 3600 * second), "nothing differs");
    assert!(due.is_due(&versions(&[(1, 5), (2, 5)]), start + second));
    due.failing = Some(start);
    assert!(due.is_due(&versions(&[(1, 5), (1, 5)]), start + second), "tries until it works");
}

/// Leads or not, has one generation, and notes what it is told.
#[derive(Default)]
struct Script {
    follows: AtomicBool,
    generation: Mutex<u64>,
    outcomes: Mutex<Vec<bool>>,
    lines: Mutex<Vec<(Level, String)>>,
}

impl StateProvider for Script {
    fn versions(&self) -> Option<Vec<Version>> {
        let generation = *self.generation.lock().unwrap();
        (!self.follows.load(Ordering::SeqCst)).then(|| versions(&[(generation, 0)]))
    }

    fn state(&self) -> Option<State> {
        Some(State { written_ms: *self.generation.lock().unwrap(), ..State::default() })
    }

    fn saved(&self, outcome: Result<(), &io::Error>) {
        self.outcomes.lock().unwrap().push(outcome.is_ok());
    }

    fn log(&self, level: Level, line: String) {
        self.lines.lock().unwrap().push((level, line));
    }
}

fn writer(path: PathBuf) -> (Writer, Arc<Script>) {
    let script = Arc::new(Script::default());
    (Writer { path, provider: script.clone(), due: Due::default() }, script)
}

#[test]
fn who_does_not_lead_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let (mut writer, script) = writer(path.clone());
    *script.generation.lock().unwrap() = 1;
    script.follows.store(true, Ordering::SeqCst);
    writer.step(Instant::now());
    assert!(!path.exists());
    script.follows.store(false, Ordering::SeqCst);
    writer.step(Instant::now());
    assert!(path.exists());
}

#[test]
fn trouble_is_logged_once_and_so_is_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("later/state");
    let (mut writer, script) = writer(path.clone());
    let now = Instant::now();
    *script.generation.lock().unwrap() = 1;
    for seconds in 0..3 {
        writer.step(now + Duration::from_secs(seconds));
    }
    std::fs::create_dir(folder.path().join("later")).unwrap();
    for seconds in 3..5 {
        writer.step(now + Duration::from_secs(seconds));
    }
    assert_eq!(*script.outcomes.lock().unwrap(), [false, false, false, true]);
    let lines = script.lines.lock().unwrap();
    let name = path.display();
    let error = format!(
        "state file \"{name}\": can't be written (No such file or directory (os error 2)), \
         what it held before stays"
    );
    let end = format!("state file \"{name}\": written again after 3.0s");
    assert_eq!(*lines, [(Level::Error, error), (Level::Notice, end)]);
}

#[test]
fn the_last_change_is_written_before_the_thread_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let script = Arc::new(Script::default());
    let saver = Saver::start(path.clone(), script.clone()).unwrap();
    *script.generation.lock().unwrap() = 9;
    assert!(saver.join(Duration::from_secs(10)));
    let read = super::file::load(&path, 1 << 20).unwrap().expect("a state file");
    assert_eq!(read.written_ms, 9);
}
