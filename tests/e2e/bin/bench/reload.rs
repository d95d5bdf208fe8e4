//! A change right after a reload: how soon a request sees it.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::Nginx;
use nginx_consul_e2e::consul::Instance;
use nginx_consul_e2e::http::Connection;
use nginx_consul_e2e::nginx::Config;
use rustix::process::Signal;

use crate::options::Options;
use crate::propagation::{Jitter, PATIENCE, ask};
use crate::stage::Stage;
use crate::table::{self, Table};
use crate::variants;

/// Reloads of each kind.
const TIMES: usize = 100;
/// The service of this measurement.
const SERVICE: &str = "reloaded";
/// What is promised of a change, milliseconds.
const MOST: f64 = 100.0;
/// Where `server` lines go.
const MARK: &str = "# more\n";

/// Measures ours, and `server` lines that a program writes and nginx reloads, as consul-template's
/// users have it.
pub(crate) fn measure(stage: &Stage, options: &Options) -> Table {
    let times = if options.quick { TIMES / 5 } else { TIMES };
    stage.consul().register(&Instance::new(SERVICE, "stays", stage.address(0)));
    let head = ["", "median, ms", "95 %, ms", "worst, ms", ""];
    let caption = format!(
        "A new instance 0–200 ms after one of {times} reloads, to its first request; promised are \
         {MOST} ms at most"
    );
    let mut table = Table::new(caption, head.map(str::to_owned));
    // Connections of the workers before count for this long.
    let following = variants::following(&stage.consul_url(), SERVICE).replacen(
        "consul_server",
        "consul_wait 2s; consul_server",
        1,
    );
    let mut comes = |nginx: &mut Nginx, n: usize, address: SocketAddr| {
        let start = Instant::now();
        stage.consul().register(&Instance::new(SERVICE, &format!("comes-{n}"), address));
        let took = until_served(nginx, address, start);
        stage.consul().deregister(&format!("comes-{n}"));
        took
    };
    let [median, late, worst] = run(stage, times, &following, &mut comes);
    let kept = worst <= MOST;
    table.judged(["ours".to_owned(), digits(median), digits(late), digits(worst)], kept);
    let lines = variants::of_lines(&format!("server {};\n{MARK}", stage.address(0)));
    let mut reloads = |nginx: &mut Nginx, _: usize, address: SocketAddr| {
        let start = Instant::now();
        let line = format!("server {address};\n{MARK}");
        nginx.rewrite(|text| text.replace(MARK, &line));
        nginx.signal(Signal::HUP);
        let took = until_served(nginx, address, start);
        nginx.rewrite(|text| text.replace(&line, MARK));
        took
    };
    let [median, late, worst] = run(stage, times, &lines, &mut reloads);
    let title = "`server` lines, written and reloaded".to_owned();
    table.row([title, digits(median), digits(late), digits(worst), String::new()]);
    table
}

/// Median, 95th percentile and worst time of a change after a reload.
fn run(
    stage: &Stage,
    times: usize,
    config: &str,
    change: &mut dyn FnMut(&mut Nginx, usize, SocketAddr) -> f64,
) -> [f64; 3] {
    let mut nginx = Config::whole(config).start();
    let mut jitter = Jitter::new();
    let mut took: Vec<f64> = (0..times)
        .map(|n| {
            // Some just before the old worker is a second old: it looks after its threads then.
            let pause = if n % 4 == 0 { 850 } else { 100 };
            thread::sleep(Duration::from_millis(pause) + jitter.below(Duration::from_millis(100)));
            nginx.signal(Signal::HUP);
            thread::sleep(jitter.below(Duration::from_millis(200)));
            change(&mut nginx, n, stage.address(10 + n))
        })
        .collect();
    took.sort_by(f64::total_cmp);
    eprintln!("reload: {}", table::spread(&took, 1));
    [times / 2, times * 95 / 100, times - 1].map(|at| took[at])
}

/// Milliseconds since `start` until the instance serves. Each request has a connection of its own:
/// an old worker answers on those that it has.
fn until_served(nginx: &Nginx, address: SocketAddr, start: Instant) -> f64 {
    loop {
        let mut client = Connection::open(nginx.address()).expect("a connection");
        if ask(&mut client) == address.ip().to_string() {
            return start.elapsed().as_secs_f64() * 1000.0;
        }
        assert!(start.elapsed() < PATIENCE, "{address} doesn't come");
    }
}

fn digits(value: f64) -> String {
    format!("{value:.1}")
}
