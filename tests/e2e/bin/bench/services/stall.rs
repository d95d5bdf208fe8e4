//! How long worker 0's event loop keeps a request waiting.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::changes::Changes;
use super::scene::Scene;

/// Pause between two requests.
const PAUSE: Duration = Duration::from_millis(1);

/// Answers of a plain location, without changes and with them, and the changes made in a second.
pub(super) fn measure(
    scene: &Scene,
    changes: &mut Changes<'_>,
    rate: u32,
    length: Duration,
) -> (String, String, f64) {
    let quiet = sample(scene, || thread::sleep(length)).0;
    let (stirred, made) = sample(scene, || changes.stir(rate, length));
    (quiet, stirred, made)
}

/// p99.9/most of the answers' milliseconds during `f`.
fn sample<T: Send>(scene: &Scene, f: impl FnOnce() -> T + Send) -> (String, T) {
    let mut connection = scene.connection_to(scene.nginx.worker_zero());
    let ended = AtomicBool::new(false);
    let mut times = Vec::new();
    let result = thread::scope(|scope| {
        let other = scope.spawn(|| {
            let result = f();
            ended.store(true, Ordering::SeqCst);
            result
        });
        while !ended.load(Ordering::SeqCst) {
            let start = Instant::now();
            let answer = connection.get("/pid").expect("an answer");
            assert_eq!(answer.status, 200, "{}", answer.body);
            times.push(start.elapsed().as_secs_f64() * 1000.0);
            thread::sleep(PAUSE);
        }
        other.join().expect("the changes")
    });
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    (format!("{:.2}/{:.2}", at(0.999), at(1.0)), result)
}
