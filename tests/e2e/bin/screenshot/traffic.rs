//! Requests at a rate that goes up and down, as a day's does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nginx_consul_e2e::http;

/// Clients of one path.
const CLIENTS: u32 = 4;

/// Ends when it is dropped.
pub(crate) struct Traffic {
    stopping: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Sends about `rate` requests a second, give or take a third.
    pub(crate) fn start(address: SocketAddr, path: String, rate: f64) -> Traffic {
        let stopping = Arc::new(AtomicBool::new(false));
        // The waves of different paths differ.
        let phase = path.bytes().map(f64::from).sum::<f64>();
        let clients = (0..if rate > 0.0 { CLIENTS } else { 0 }).map(|_| {
            let (stopping, path) = (Arc::clone(&stopping), path.clone());
            let start = Instant::now();
            thread::spawn(move || {
                while !stopping.load(Ordering::SeqCst) {
                    let now = start.elapsed().as_secs_f64();
                    let wave = 1.0 + 0.25 * (now / 7.0 + phase).sin() + 0.1 * (now * 1.7).sin();
                    let due = Instant::now()
                        + Duration::from_secs_f64(f64::from(CLIENTS) / (rate * wave));
                    // What becomes of a request is for the dashboard to show.
                    let _ = http::get(address, &path);
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                }
            })
        });
        Traffic { clients: clients.collect(), stopping }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}
