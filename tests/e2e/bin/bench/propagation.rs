//! From registering an instance to the first request it serves.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::Dressing;
use nginx_consul_e2e::consul::Instance;
use nginx_consul_e2e::http::Connection;
use nginx_consul_e2e::nginx::Config;

use crate::options::Options;
use crate::stage::Stage;
use crate::table::{self, Table};
use crate::variants;

/// Measurements of each kind.
const TIMES: usize = 20;
/// Longest an instance may take to come or go.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The service of this measurement.
const SERVICE: &str = "moving";

/// What is promised of a change: milliseconds in the middle, and at most.
const MEDIAN: f64 = 5.0;
const MOST: f64 = 50.0;

/// Measures registrations one by one, and amid other changes; of Consul as it is, and dressed as one
/// that streams.
pub(crate) fn measure(stage: &Stage, options: &Options) -> Table {
    let times = if options.quick { TIMES / 4 } else { TIMES };
    // Two that stay, so that requests are answered all the time.
    for n in 0..2 {
        stage.consul().register(&Instance::new(SERVICE, &format!("stays-{n}"), stage.address(n)));
    }
    let dressing = Dressing::start(stage.consul().direct());
    let head = ["", "registering → first request, ms", "deregistered → last request, ms", ""];
    let caption = format!(
        "Propagation, {times} of each; least–**median**–most; promised are a median of {MEDIAN} ms \
         and {MOST} ms at most"
    );
    let mut table = Table::new(caption, head.map(str::to_owned));
    for (manner, url) in
        [("plain", format!("http://{}", stage.consul().direct())), ("dressed", dressing.url())]
    {
        let nginx = Config::whole(&variants::following(&url, SERVICE)).start();
        let mut jitter = Jitter::new();
        let mut run = |title: &str, pause: &mut dyn FnMut() -> Duration| {
            let mut trial = Trial { stage, nginx: nginx.address() };
            let (came, went): (Vec<f64>, Vec<f64>) = (0..times)
                .map(|n| {
                    thread::sleep(pause());
                    let came = trial.come(10 + n);
                    thread::sleep(pause());
                    (came, trial.go(10 + n))
                })
                .unzip();
            eprintln!("propagation: {manner}, {title}: {}", table::spread(&came, 1));
            let kept = [&came, &went].iter().all(|values| table::within(values, MEDIAN, MOST));
            let title = format!("{manner}: {title}");
            table.judged([title, table::spread(&came, 1), table::spread(&went, 1)], kept);
        };
        run("one change a second", &mut || Duration::from_secs(1));
        run("changes 0–0.4 s apart", &mut || jitter.below(Duration::from_millis(400)));
    }
    table
}

struct Trial<'a> {
    stage: &'a Stage,
    nginx: SocketAddr,
}

impl Trial<'_> {
    /// Registers the instance at the `n`-th address; milliseconds until it serves.
    fn come(&mut self, n: usize) -> f64 {
        let address = self.stage.address(n);
        let mut client = Connection::open(self.nginx).expect("a connection");
        let start = Instant::now();
        self.stage.consul().register(&Instance::new(SERVICE, &format!("comes-{n}"), address));
        loop {
            if ask(&mut client) == address.ip().to_string() {
                return start.elapsed().as_secs_f64() * 1000.0;
            }
            assert!(start.elapsed() < PATIENCE, "{address} doesn't come");
        }
    }

    /// Takes it back; milliseconds from Consul's answer to the last request it served. Round robin
    /// over three asks it every third time, so 200 answers by others mean that it is out.
    fn go(&mut self, n: usize) -> f64 {
        let ip = self.stage.address(n).ip().to_string();
        let mut client = Connection::open(self.nginx).expect("a connection");
        self.stage.consul().deregister(&format!("comes-{n}"));
        let start = Instant::now();
        let (mut last, mut others) = (Duration::ZERO, 0);
        while others < 200 {
            if ask(&mut client) == ip {
                (last, others) = (start.elapsed(), 0);
            } else {
                others += 1;
            }
            assert!(start.elapsed() < PATIENCE, "{ip} doesn't go");
        }
        last.as_secs_f64() * 1000.0
    }
}

/// Who answers a request.
pub(crate) fn ask(client: &mut Connection) -> String {
    let answer = client.get("/").expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body.trim().to_owned()
}

/// Marsaglia's xorshift: the same gaps in each run.
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) fn new() -> Jitter {
        Jitter(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        limit.mul_f64((self.0 >> 11) as f64 / (1u64 << 53) as f64)
    }
}
