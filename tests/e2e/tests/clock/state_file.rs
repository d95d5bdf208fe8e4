//! The state file, over a restart.

use std::fs;
use std::path::Path;

use siphasher::sip128::SipHasher13;

use super::*;
use crate::state::place;
use crate::support::SERVER;

/// What the file holds, behind its first line.
fn content(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_once('\n').map(|(_, content)| content.to_owned()).unwrap_or_default()
}

/// Makes it a file that another boot has written.
fn of_another_boot(path: &Path) {
    let own = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the boot");
    let (own, other) = (own.trim_end(), "5ec2e700-0000-4000-8000-000000000000");
    let content = content(path);
    assert!(content.contains(own), "{content}");
    let content = content.replace(own, other);
    let sum = SipHasher13::new().hash(content.as_bytes()).as_u128();
    fs::write(path, format!("nginx-consul-state 1 {sum:032x}\n{content}")).expect("the file");
}

/// nginx with instances `a`, which is down for ten minutes, and `b` ends; the wall clock is set; nginx
/// starts again while Consul is down. `change` gets the file in between.
fn restarted(step: i64, change: impl FnOnce(&Path)) -> (Nginx, WallClock, Vec<Backend>) {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let proxy = Proxy::start(consul.address());
    let (_folder, path) = place();
    let text = format!(
        "consul_state %%STATE%% valid=10m; consul_retry 50ms 300ms; consul_init_timeout 500ms;
         consul_server %%CONSUL%%; upstream api {{ consul_dynamic %%SERVICE%%; }} {SERVER}"
    );
    let clock = WallClock::default();
    let config = clock
        .of(Config::http(&text))
        .set("CONSUL", proxy.url())
        .set("SERVICE", &service)
        .set("STATE", path.display())
        .file("server.conf", "location /api { consul_api; }");
    let mut nginx = config.clone().start();
    until_served_by(&nginx, "/", "a b");
    set_down(&nginx, &service, &ids[0], "10m");
    wait::until("all is saved", SOON, || content(&path).contains("\"until_ms\""));
    nginx.quit();
    drop(nginx);
    change(&path);
    proxy.set(Fault::Refuse);
    clock.set(step);
    let nginx = config.start();
    clock.step(&nginx, step);
    (nginx, clock, backends)
}

#[test]
fn in_the_same_boot_it_is_as_old_as_it_is() {
    for step in [BACK, FORWARD] {
        let (nginx, _clock, _backends) = restarted(step, |_| ());
        assert_eq!(tally(&nginx, "/", 4), "b: 4", "{step}");
        let age = nginx.status()["services"][0]["last_good_seconds"].as_f64().expect("an age");
        assert!((0.0..MINUTES).contains(&age), "{age} s after {step} s");
        let line = nginx.wait_for_log("peers from state file");
        assert!(line.contains("2 peers"), "{line}");
    }
}

#[test]
fn a_file_of_another_boot_is_read_by_the_wall_clock() {
    let (nginx, _clock, _backends) = restarted(BACK, of_another_boot);
    nginx.wait_for_log("the clock was set back since");
    assert_eq!(nginx.outcome("/"), "502");

    let (nginx, _clock, _backends) = restarted(FORWARD, of_another_boot);
    nginx.wait_for_log("s old, over valid=600s");
    assert_eq!(nginx.outcome("/"), "502");
    assert_eq!(nginx.logged("overrides of instances taken"), [""; 0], "it has expired");

    let (nginx, _clock, _backends) = restarted(0, of_another_boot);
    assert_eq!(tally(&nginx, "/", 4), "b: 4", "the wall clock is right");
}
