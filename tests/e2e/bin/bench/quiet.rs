//! What a watch costs while nothing changes: requests, and lines in the log.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::consul::Instance;
use nginx_consul_e2e::nginx::{Config, Nginx};
use nginx_consul_e2e::{Dressing, wait};

use crate::options::Options;
use crate::stage::Stage;
use crate::table::Table;
use crate::variants;

/// Services that are followed, each by a watch.
const WATCHES: usize = 20;
/// What is promised of a watch: requests a minute.
const MOST_REQUESTS: f64 = 3.0;
/// Waits that expire while log lines are counted.
const EXPIRED: usize = 60;
/// The service whose waits of a second expire.
const SERVICE: &str = "quiet-0";

/// A Consul that nginx asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Plain,
    Dressed,
    /// Dressed, and an expired wait is answered with a lower index.
    Lower,
}

impl Manner {
    const ALL: [Manner; 3] = [Manner::Plain, Manner::Dressed, Manner::Lower];

    fn title(self) -> &'static str {
        match self {
            Manner::Plain => "plain",
            Manner::Dressed => "dressed",
            Manner::Lower => "dressed, lower index when a wait expires",
        }
    }

    /// What counts the requests of this manner. Without streams a dressing only adds headers that say
    /// nothing new.
    fn dressing(self, stage: &Stage) -> Dressing {
        let dressing = Dressing::start(stage.consul().direct());
        dressing.set(|quirks| {
            quirks.streaming = self != Manner::Plain;
            quirks.lower_index = self == Manner::Lower;
        });
        dressing
    }
}

/// One manner's nginxes: one with the default wait and many watches, one whose only wait is short.
struct Scene {
    manner: Manner,
    many: (Dressing, Nginx),
    short: (Dressing, Nginx),
}

impl Scene {
    fn start(manner: Manner, stage: &Stage) -> Scene {
        let dressings = [manner.dressing(stage), manner.dressing(stage)];
        let whole = variants::following(&dressings[0].url(), SERVICE);
        let more = (1..WATCHES).fold(String::new(), |mut text, n| {
            let _ = writeln!(text, "upstream more{n} {{ consul_dynamic quiet-{n}; }}");
            text
        });
        let many =
            Config::whole(&whole.replace("upstream peers", &format!("{more}upstream peers")));
        let whole = variants::following(&dressings[1].url(), SERVICE);
        let short =
            Config::whole(&whole.replace("consul_dynamic", "consul_wait 1s;\nconsul_dynamic"));
        let (many, short) = (many.start(), short.start());
        let [of_many, of_short] = dressings;
        let scene = Scene { manner, many: (of_many, many), short: (of_short, short) };
        for (dressing, watches) in [(&scene.many.0, WATCHES), (&scene.short.0, 1)] {
            wait::until("all watches block", Duration::from_secs(20), || {
                blocking(dressing) >= watches
            });
        }
        scene
    }
}

fn blocking(dressing: &Dressing) -> usize {
    dressing.requests("quiet-").iter().filter(|seen| seen.index.is_some()).count()
}

fn lines(nginx: &Nginx) -> usize {
    nginx.logged("consul:").len()
}

/// Measures all manners side by side.
pub(crate) fn measure(stage: &Stage, options: &Options) -> Table {
    for n in 0..WATCHES {
        let service = format!("quiet-{n}");
        stage.consul().register(&Instance::new(&service, &service, stage.address(n)));
    }
    let scenes = Manner::ALL.map(|manner| Scene::start(manner, stage));
    let span = Duration::from_secs(if options.quick { 60 } else { 180 });
    let begun = Instant::now();
    let before = scenes.each_ref().map(|scene| {
        let (many, short) = (&scene.many, &scene.short);
        (many.0.requests("").len(), lines(&many.1), blocking(&short.0), lines(&short.1))
    });
    wait::until("sixty waits have expired", Duration::from_secs(300), || {
        scenes
            .iter()
            .zip(before)
            .all(|(scene, before)| blocking(&scene.short.0) > before.2 + EXPIRED)
    });
    thread::sleep(span.saturating_sub(begun.elapsed()));
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    let caption = format!(
        "What a quiet watch costs: {WATCHES} watches for {minutes:.1} minutes, and one with \
         consul_wait 1s; promised are {MOST_REQUESTS} requests a minute, and no line in the log"
    );
    let head = [
        "",
        "requests a minute and watch",
        "their log lines",
        "expired waits of 1 s",
        "log lines",
        "",
    ];
    let mut table = Table::new(caption, head.map(str::to_owned));
    for (scene, before) in scenes.iter().zip(before) {
        let (many, short) = (&scene.many, &scene.short);
        let requests = (many.0.requests("").len() - before.0) as f64 / minutes / WATCHES as f64;
        let said = (lines(&many.1) - before.1, lines(&short.1) - before.3);
        let kept = requests <= MOST_REQUESTS && said == (0, 0);
        let expired = blocking(&short.0) - before.2;
        let cells = [
            scene.manner.title().to_owned(),
            format!("{requests:.2}"),
            said.0.to_string(),
            expired.to_string(),
            said.1.to_string(),
        ];
        table.judged(cells, kept);
    }
    table
}
