//! The steps of the story; each panics unless what it tells was seen.

use std::time::{Duration, Instant};

use nginx_consul_e2e::{process, wait};

use crate::consul::{Consul, SERVICE};
use crate::stage::{NAMES, PATIENCE, Stage, failures};
use crate::story::{count, say, span, step};

/// How long the clients are watched where a figure needs many requests.
const WHILE: Duration = Duration::from_millis(1500);

/// How long a service serves on whose last instance has gone: `consul_empty`'s default.
const CONFIRMED: Duration = Duration::from_millis(1500);

/// Tells it all.
pub(crate) fn run(cluster: bool, keep: bool) {
    println!("nginx-consul: stock nginx follows a real Consul\n");
    let mut stage = Stage::set(cluster);
    let mut number = 0;
    let mut title = |text: &str| {
        number += 1;
        step(number, text);
    };
    title("Three instances share the requests");
    spread(&stage);
    title("A fourth registers");
    registers(&stage);
    title("One turns critical, and is well again");
    turns_critical(&stage);
    title("Weights change");
    weights(&stage);
    title("Consul is killed, and traffic goes on");
    let killed = killed(&mut stage);
    title("Consul returns, and changes flow again");
    returns(&mut stage, killed);
    title("nginx reloads under load");
    reloads(&mut stage);
    if cluster {
        title("A client agent leaves, and its instances with it");
        agent_leaves(&mut stage);
    }
    title("Every instance goes, and one returns");
    all_go(&stage);
    println!("\nnginx's error log, as the module wrote it:");
    stage.log(0).iter().for_each(say);
    stage.load.stop();
    if keep {
        NAMES.iter().for_each(|name| stage.consul.set_check(name, "passing"));
        stage.keep();
    }
}

fn spread(stage: &Stage) {
    let seen = stage.watch(WHILE);
    assert_eq!(failures(&seen), 0, "failures: {seen}");
    let third = seen.total() / 3;
    for name in &NAMES[..3] {
        let share = seen.of(name);
        assert!(share * 10 > third * 9 && share * 10 < third * 11, "uneven: {seen}");
    }
    assert_eq!(seen.of("gold"), 0, "served before it was registered: {seen}");
    say(format!("{}: {seen}; failed: 0", count(seen.total(), "request")));
}

fn registers(stage: &Stage) {
    let span_ = stage.until_first("gold", || stage.consul.register(&stage.backends[3], 1));
    assert_eq!(stage.failed(), 0, "failures: {}", stage.load.window());
    say(format!("gold is served {} after its registration began; failed: 0", span(span_)));
    let seen = stage.watch(WHILE);
    assert_eq!(failures(&seen), 0, "failures: {seen}");
    assert!(seen.of("gold") * 5 > seen.total(), "too few for gold: {seen}");
    say(format!("{}: {seen}", count(seen.total(), "request")));
}

fn turns_critical(stage: &Stage) {
    let out = stage.until_last(&["blue"], || stage.consul.set_check("blue", "critical"));
    let seen = stage.load.window();
    assert_eq!(failures(&seen), 0, "failures: {seen}");
    let total = count(seen.total(), "request");
    say(format!("blue is out {} after its check turned; failed: 0 of {total}", span(out)));
    let back = stage.until_first("blue", || stage.consul.set_check("blue", "passing"));
    assert_eq!(stage.failed(), 0, "failures: {}", stage.load.window());
    say(format!("blue is back {} after its check passed; failed: 0", span(back)));
}

fn weights(stage: &Stage) {
    stage.consul.register(&stage.backends[0], 5);
    wait::until("the weight is known to nginx", PATIENCE, || {
        let service = stage.nginx.service(SERVICE);
        let peers = service["peers"].as_array().cloned().unwrap_or_default();
        peers.iter().any(|peer| peer["service_id"] == "red" && peer["weight"] == 5)
    });
    let seen = stage.watch(WHILE);
    assert_eq!(failures(&seen), 0, "failures: {seen}");
    let share = seen.of("red") * 100 / seen.total();
    // Five of eight.
    assert!((58..=67).contains(&share), "red has {share} %: {seen}");
    say(format!("red weighs 5 instead of 1, and has {share} % of the requests: {seen}; failed: 0"));
}

fn killed(stage: &mut Stage) -> Instant {
    let lines = stage.log(0).len();
    stage.load.open_window();
    let start = Instant::now();
    stage.consul.asked().kill();
    wait::until("nginx has noticed", PATIENCE, || stage.log(lines).len() == 1);
    say(format!("nginx's log: {}", stage.log(lines)[0]));
    while start.elapsed() < WHILE * 2 {
        wait::pause();
    }
    let seen = stage.load.window();
    assert_eq!(failures(&seen), 0, "failures: {seen}");
    assert_eq!(NAMES.iter().filter(|name| seen.of(name) > 0).count(), 4, "somebody left: {seen}");
    say(format!(
        "{} in {} without Consul; failed: 0",
        count(seen.total(), "request"),
        span(start.elapsed())
    ));
    start
}

fn returns(stage: &mut Stage, killed: Instant) {
    stage.load.open_window();
    stage.consul.asked().start();
    let line = stage.nginx.wait_for_log("recovered after");
    say(format!("Consul is up again {} after it was killed", span(killed.elapsed())));
    say(format!("nginx's log: {}", &line[line.find("consul: ").unwrap_or(0)..]));
    let seen = stage.load.window();
    assert_eq!(failures(&seen), 0, "failures: {seen}");
    let out = stage.until_last(&["green"], || stage.consul.set_check("green", "critical"));
    assert_eq!(stage.failed(), 0, "failures: {}", stage.load.window());
    say(format!("green turns critical, and is out after {}; failed: 0", span(out)));
    let back = stage.until_first("green", || stage.consul.set_check("green", "passing"));
    say(format!("green passes, and is back after {}", span(back)));
}

fn reloads(stage: &mut Stage) {
    const TIMES: usize = 5;
    stage.load.open_window();
    let mut longest = Duration::ZERO;
    for _ in 0..TIMES {
        let old = stage.nginx.reload();
        let start = Instant::now();
        wait::until("the old workers end", PATIENCE, || {
            !old.iter().any(|&pid| process::is_alive(pid))
        });
        longest = longest.max(start.elapsed());
    }
    let seen = stage.load.window();
    assert_eq!(failures(&seen), 0, "failures: {seen}");
    say(format!(
        "{TIMES} reloads; old workers gone within {}, a poll in flight or not; failed: 0 of {}",
        span(longest),
        count(seen.total(), "request")
    ));
    let out = stage.until_last(&["blue"], || stage.consul.set_check("blue", "critical"));
    stage.until_first("blue", || stage.consul.set_check("blue", "passing"));
    assert_eq!(stage.failed(), 0, "failures: {}", stage.load.window());
    say(format!("the new workers follow: blue turns critical, and is out after {}", span(out)));
}

fn agent_leaves(stage: &mut Stage) {
    let Consul::Cluster(cluster) = &mut stage.consul else { return };
    stage.load.open_window();
    let start = Instant::now();
    cluster.client.signal(rustix::process::Signal::TERM);
    wait::until("gold is served no more", PATIENCE, || {
        let last = stage.load.seen("gold").map_or(start, |seen| seen.last);
        last.elapsed() > Duration::from_millis(700)
    });
    let last = stage.load.seen("gold").map_or(start, |seen| seen.last);
    let seen = stage.load.window();
    assert_eq!(failures(&seen), 0, "failures: {seen}");
    say(format!("gold is out {} after its agent was terminated; failed: 0", span(last - start)));
    cluster.client.terminate();
    stage.load.open_window();
    cluster.client.start();
    cluster.client.set_check("gold", "passing");
    wait::until("gold is served", PATIENCE, || stage.load.seen("gold").is_some());
    assert_eq!(stage.failed(), 0, "failures: {}", stage.load.window());
    say("the agent starts again, and gold is back; failed: 0");
}

fn all_go(stage: &Stage) {
    let gone = stage.until_last(&NAMES, || {
        NAMES.iter().for_each(|name| stage.consul.set_check(name, "critical"));
    });
    assert!(gone > CONFIRMED, "the last one left without confirmation, after {gone:?}");
    let line = stage.nginx.wait_for_log("more reads within");
    say(format!("nginx's log: {}", &line[line.find("consul: ").unwrap_or(0)..]));
    say(format!("the last one is out {} after the first turned critical", span(gone)));
    let seen = stage.watch(Duration::from_millis(300));
    assert_eq!(seen.outcomes(), "502", "somebody serves: {seen}");
    let start = Instant::now();
    assert_eq!(stage.nginx.get("/").status, 502);
    let one = start.elapsed();
    assert!(one < Duration::from_millis(200), "a 502 took {one:?}");
    let total = count(seen.total(), "request");
    say(format!("{total}: all 502, at once (one takes {})", span(one)));
    let lines = stage.nginx.logged("consul: no usable instance");
    let line = lines.first().expect("a line about it");
    let text = line[line.find("consul: ").unwrap_or(0)..].split(" while ").next().unwrap_or("");
    say(format!("nginx's log: {text} ({} in all)", count(lines.len(), "such line")));
    let back = stage.until_first("red", || stage.consul.set_check("red", "passing"));
    say(format!("red passes, and is served {} later", span(back)));
    let seen = stage.watch(Duration::from_millis(500));
    assert_eq!(seen.outcomes(), "red", "not only red: {seen}");
    say(format!("{}: {seen}; failed: 0", count(seen.total(), "request")));
}
