//! The state file: what nginx knows when it starts while Consul is down.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nginx_consul_e2e::{Agent, Backend, Config, Fault, Load, Nginx, Proxy, load, process, wait};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    SERVER, SOON, addresses, gateway, register, register_one, tally, unique, until_peers,
    until_served_by,
};

mod disk;

/// A folder that outlives an nginx, and a path for the state file: in a folder in it that nginx
/// has to make.
pub(crate) fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("an open folder");
    let path = folder.path().join("state/consul");
    (folder, path)
}

/// nginx that follows `service`; `%%STATE%%` in `http` is the path.
fn with_state(consul: &str, service: &str, path: &Path, http: &str) -> Config {
    let text = format!(
        "{http} consul_retry 50ms 300ms; consul_init_timeout 500ms;
         consul_server %%CONSUL%%; upstream api {{ consul_dynamic %%SERVICE%%; }} {SERVER}"
    );
    Config::http(&text).set("CONSUL", consul).set("SERVICE", service).set("STATE", path.display())
}

/// The content of the state file; `None` if there is none.
///
/// # Panics
/// If it is not whole.
fn read(path: &Path) -> Option<Value> {
    let text = fs::read_to_string(path).ok()?;
    let (first, content) = text.split_once('\n').expect("a first line");
    let words: Vec<&str> = first.split(' ').collect();
    assert_eq!(words[..2], ["nginx-consul-state", "1"], "{first}");
    assert_eq!(words[2].len(), 32, "{first}");
    Some(serde_json::from_str(content).unwrap_or_else(|e| panic!("{e} in {content}")))
}

/// Addresses of a service's peers in the state file, sorted, joined by a space.
fn saved(path: &Path, service: &str) -> String {
    let state = read(path).unwrap_or_default();
    let services = state["services"].as_array().cloned().unwrap_or_default();
    let of = services.into_iter().find(|s| s["service"] == service).unwrap_or_default();
    let peers = of["peers"].as_array().cloned().unwrap_or_default();
    let mut names: Vec<&str> = peers.iter().filter_map(|p| p["address"].as_str()).collect();
    names.sort_unstable();
    names.join(" ")
}

#[track_caller]
fn until_saved(path: &Path, service: &str, backends: &[&Backend]) -> Duration {
    let what = "peers in the state file";
    wait::until_eq(what, SOON, &addresses(backends), || saved(path, service))
}

#[test]
fn a_restart_while_consul_is_down_serves_traffic() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register(&consul, &service, &backends[..2]);
    let proxy = Proxy::start(consul.address());
    let (_folder, path) = place();
    let config = with_state(&proxy.url(), &service, &path, "consul_state %%STATE%%;").workers(2);
    let mut nginx = config.clone().start();
    wait::until("it is live", SOON, || nginx.service(&service)["source"] == "live");
    until_saved(&path, &service, &[&backends[0], &backends[1]]);
    let threads = |pid: &u32| process::threads(*pid).into_iter().map(|thread| thread.name);
    let workers = nginx.workers();
    let savers = workers.iter().flat_map(threads).filter(|name| name == "consul-state").count();
    assert_eq!(savers, 1, "threads that write");
    nginx.quit();

    for fault in [Fault::Refuse, Fault::BlackHole] {
        proxy.set(fault);
        let mut nginx = config.clone().start();
        let load = Load::start(nginx.address(), "/", 2, false);
        let line = nginx.wait_for_log("peers from state file");
        let name = path.display();
        let said = format!("consul: service \"{service}\": 2 peers from state file \"{name}\", ");
        assert!(line.contains("[notice]") && line.contains(&said), "{line}");
        assert!(line.ends_with("s old"), "{line}");
        let status = nginx.status();
        assert_eq!(status["state"]["path"], name.to_string());
        assert_eq!(status["state"]["error"], Value::Null);
        assert!(status["state"]["age_seconds"].as_f64().is_some_and(|age| age < 60.0));
        assert_eq!(status["services"][0]["source"], "state file");
        let age = status["services"][0]["last_good_seconds"].as_f64().expect("an age");
        assert!((0.0..60.0).contains(&age), "{age}");
        wait::until("a few requests", SOON, || load.sent() > 50);
        let seen = load.finish();
        assert_eq!(load::failures(&seen, &["a", "b"]), "", "{fault:?}");
        assert_eq!(seen.outcomes(), "a b", "{fault:?}");
        nginx.quit();
    }

    proxy.set(Fault::Refuse);
    let nginx = config.start();
    until_served_by(&nginx, "/", "a b");
    proxy.set(Fault::Pass);
    wait::until("Consul has answered", SOON, || nginx.service(&service)["source"] == "live");
    register_one(&consul, &service, &backends[2]);
    until_served_by(&nginx, "/", "a b c");
}

#[test]
fn what_consul_says_at_the_start_counts_more_than_the_file() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let id = register_one(&consul, &service, &backends[0]);
    let (_folder, path) = place();
    let config = with_state(&consul.url(), &service, &path, "consul_state %%STATE%%;");
    let mut nginx = config.clone().start();
    until_saved(&path, &service, &[&backends[0]]);
    nginx.quit();
    consul.deregister(&id);
    register_one(&consul, &service, &backends[1]);
    let nginx = config.start();
    assert_eq!(tally(&nginx, "/", 3), "b: 3");
    assert_eq!(nginx.logged("from state file"), [""; 0]);
    until_saved(&path, &service, &[&backends[1]]);
}

#[test]
fn a_change_is_on_disk_within_two_seconds_and_at_quit_at_once() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c", "d"]);
    register_one(&consul, &service, &backends[0]);
    let (_folder, path) = place();
    let mut nginx = with_state(&consul.url(), &service, &path, "consul_state %%STATE%%;").start();
    until_saved(&path, &service, &[&backends[0]]);
    let mut expected = vec![&backends[0]];
    for backend in &backends[1..3] {
        register_one(&consul, &service, backend);
        expected.push(backend);
        let span = until_saved(&path, &service, &expected);
        assert!(span < Duration::from_secs(2), "saved after {span:?}");
    }
    register_one(&consul, &service, &backends[3]);
    expected.push(&backends[3]);
    until_peers(&nginx, &service, &expected);
    nginx.quit();
    assert_eq!(saved(&path, &service), addresses(&expected));
}

#[test]
fn an_unchanged_set_is_not_written_again() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let (_folder, path) = place();
    let config = with_state(&consul.url(), &service, &path, "consul_state %%STATE%%;");
    let nginx = config.start();
    until_saved(&path, &service, &[&backend]);
    let before = fs::metadata(&path).expect("the file").ino();
    // Answers that change nothing.
    wait::holds("the same file", Duration::from_millis(2500), || {
        consul.deregister(&register_one(&consul, &unique("noise"), &backend));
        fs::metadata(&path).expect("the file").ino() == before
    });
    drop(nginx);
}

#[test]
fn only_the_workers_user_reads_it_and_no_token_is_in_it() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let (_folder, path) = place();
    let secret = "5ec2e700-0000-4000-8000-000000000000";
    let http = format!("consul_state %%STATE%%; consul_token {secret};");
    let nginx = with_state(&consul.url(), &service, &path, &http).start();
    until_saved(&path, &service, &[&backend]);
    let file = fs::metadata(&path).expect("the file");
    assert_eq!(file.mode() & 0o7777, 0o600);
    let directory = fs::metadata(path.parent().expect("its folder")).expect("its folder");
    assert_eq!(directory.mode() & 0o7777, 0o700);
    let worker = fs::metadata(format!("/proc/{}", nginx.worker_zero())).expect("worker 0");
    assert_eq!((file.uid(), directory.uid()), (worker.uid(), worker.uid()));
    let text = fs::read_to_string(&path).expect("the file");
    assert!(!text.contains(secret) && !text.contains("5ec2e700"), "{text}");
}

/// Starts nginx with Consul down and this in the state file; checks that it is renamed.
fn survives(bytes: &[u8], path: &Path, proxy: &Proxy, service: &str, why: &str) -> Nginx {
    fs::write(path, bytes).expect("a damaged file");
    proxy.set(Fault::Refuse);
    let nginx = with_state(&proxy.url(), service, path, "consul_state %%STATE%%;").start();
    assert_eq!(nginx.get("/").status, 502);
    let line = nginx.wait_for_log("is damaged");
    let name = path.display();
    let said = format!("consul: state file \"{name}\" is damaged ({why}");
    assert!(line.contains("[error]") && line.contains(&said), "{line}");
    assert!(line.contains(&format!("renamed to \"{name}.damaged\"")), "{line}");
    let aside = PathBuf::from(format!("{name}.damaged"));
    assert_eq!(fs::read(aside).expect("the renamed file"), bytes);
    assert!(!path.exists(), "still there");
    nginx
}

#[test]
fn a_damaged_file_is_renamed_and_ignored() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let proxy = Proxy::start(consul.address());
    let (_folder, path) = place();
    let mut nginx = with_state(&proxy.url(), &service, &path, "consul_state %%STATE%%;").start();
    until_saved(&path, &service, &[&backend]);
    nginx.quit();
    let good = fs::read(&path).expect("the file");
    drop(survives(b"garbage\n", &path, &proxy, &service, "its first line is not that"));
    drop(survives(&good[..good.len() - 1], &path, &proxy, &service, "its checksum is wrong"));
    let mut changed = good.clone();
    let at = good.len() - 20;
    changed[at] ^= 1;
    let nginx = survives(&changed, &path, &proxy, &service, "its checksum is wrong");
    proxy.set(Fault::Pass);
    until_served_by(&nginx, "/", "a");
    until_saved(&path, &service, &[&backend]);
}

#[test]
fn an_answer_that_is_too_old_is_refused_and_kept_on_disk() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let (other, backends) = (unique("other"), Backend::start_all(&["a", "b"]));
    register_one(&consul, &service, &backends[0]);
    register_one(&consul, &other, &backends[1]);
    let proxy = Proxy::start(consul.address());
    let (_folder, path) = place();
    let second = format!(
        "consul_state %%STATE%% %%VALID%%;
         upstream other {{ consul_server {}; consul_dynamic {other}; }}",
        consul.url()
    );
    let config = with_state(&proxy.url(), &service, &path, &second);
    let mut nginx = config.clone().set("VALID", "").start();
    until_saved(&path, &service, &[&backends[0]]);
    until_saved(&path, &other, &[&backends[1]]);
    proxy.set(Fault::Refuse);
    nginx.quit();
    wait::until("what is saved is too old", SOON, || {
        let written = fs::metadata(&path).and_then(|file| file.modified()).expect("its time");
        written.elapsed().is_ok_and(|age| age > Duration::from_millis(1100))
    });

    let mut nginx = config.clone().set("VALID", "valid=1s").start();
    assert_eq!(nginx.get("/").status, 502);
    let line = nginx.wait_for_log("not taken from state file");
    assert!(line.contains("[warn]") && line.contains("over valid=1s"), "{line}");
    assert_eq!(nginx.service(&service)["source"], Value::Null);
    // The file is written again for the sake of the other service.
    let before = fs::metadata(&path).expect("the file").ino();
    wait::until("another file", SOON, || fs::metadata(&path).is_ok_and(|m| m.ino() != before));
    nginx.quit();
    assert_eq!(saved(&path, &service), addresses(&[&backends[0]]));

    let nginx = config.set("VALID", "valid=1h").start();
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
}

#[test]
fn the_test_makes_no_directory_and_off_no_file() {
    let (folder, path) = place();
    let checked = with_state("http://127.0.0.1:1", "web", &path, "consul_state %%STATE%%;").check();
    assert!(checked.passed, "{}", checked.output);
    assert!(!checked.output.contains("consul_state"), "{}", checked.output);
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 0);
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let nginx = gateway(
        &consul.url(),
        &service,
        "consul_dynamic %%SERVICE%%; } consul_state off; map $uri $unused {",
    )
    .start();
    until_served_by(&nginx, "/", "a");
    assert_eq!(nginx.status()["state"], Value::Null);
    let threads = process::threads(nginx.worker_zero());
    assert!(!threads.iter().any(|thread| thread.name == "consul-state"), "{threads:?}");
}

#[test]
fn overrides_of_instances_outlive_a_restart_and_are_not_set_twice() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let (_folder, path) = place();
    let start = || {
        let server = "location /api { consul_api; }";
        with_state(&consul.url(), &service, &path, "consul_state %%STATE%%;")
            .file("server.conf", server)
            .start()
    };
    let send = |nginx: &Nginx, method: &str, path: &str| {
        let path = format!("/api/services/{service}/instances/{path}");
        nginx.send_json(method, &path, "").status
    };
    let mut nginx = start();
    until_served_by(&nginx, "/", "a b");
    assert_eq!(send(&nginx, "POST", &format!("{}/drain", ids[0])), 200);
    let held = || read(&path).unwrap_or_default()["overrides"].as_array().map_or(0, Vec::len);
    wait::until_eq("overrides in the file", SOON, &1, held);
    // It stays while its instance is away, and is there when that comes back.
    consul.deregister(&ids[0]);
    until_saved(&path, &service, &[&backends[1]]);
    let kept = &read(&path).unwrap_or_default()["overrides"][0];
    assert_eq!((&kept["node"], &kept["id"]), (&json!(consul.node()), &json!(ids[0])), "{kept:#}");
    nginx.quit();
    drop(nginx);
    let mut nginx = start();
    nginx.wait_for_log("1 overrides of instances taken");
    register_one(&consul, &service, &backends[0]);
    until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
    assert_eq!(tally(&nginx, "/", 6), "b: 6");
    let peers = nginx.service(&service)["peers"].as_array().cloned().expect("peers");
    assert!(peers.iter().any(|peer| peer["state"] == "draining"), "{peers:#?}");
    assert_eq!(send(&nginx, "DELETE", &ids[0]), 200);
    nginx.reload_and_wait();
    assert_eq!(tally(&nginx, "/", 6), "a: 3, b: 3");
    wait::until_eq("overrides in the file", SOON, &0, held);
    nginx.quit();
    drop(nginx);
    let nginx = start();
    assert_eq!(tally(&nginx, "/", 6), "a: 3, b: 3");
}

#[test]
fn an_override_that_is_removed_while_its_service_is_not_followed_leaves_the_file() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    let id = register_one(&consul, &service, &backend);
    let (_folder, path) = place();
    let text = "consul_server %%CONSUL%%; consul_state %%STATE%%;
        upstream api { consul_dynamic $arg_s; consul_allow_service *; consul_idle 2s; }
        server { listen 127.0.0.1:%%PORT%%; location / { proxy_pass http://api; }
        location = /consul { consul_status; } location /api { consul_api; } }";
    let nginx = Config::http(text).set("CONSUL", consul.url()).set("STATE", path.display()).start();
    assert_eq!(nginx.outcome(&format!("/?s={service}")), "a");
    let send = |method: &str, path: &str| {
        let path = format!("/api/services/{service}/instances/{path}");
        nginx.send_json(method, &path, "").status
    };
    assert_eq!(send("POST", &format!("{id}/up")), 200);
    let held = || read(&path).unwrap_or_default()["overrides"].as_array().map_or(0, Vec::len);
    wait::until_eq("overrides in the file", SOON, &1, held);
    wait::until("nobody follows the service", SOON, || {
        nginx.status()["on_demand"]["services"].as_array().is_some_and(Vec::is_empty)
    });
    assert_eq!(send("DELETE", &id), 200);
    wait::until_eq("overrides in the file", SOON, &0, held);
}

#[test]
fn worker_0_killed_in_a_loop_leaves_a_whole_file_and_no_litter() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let proxy = Proxy::start(consul.address());
    let (_folder, path) = place();
    let config = with_state(&proxy.url(), &service, &path, "consul_state %%STATE%%;")
        .workers(2)
        .allow_kills();
    let mut nginx = config.clone().start();
    until_saved(&path, &service, &[&backends[0]]);
    let first = read(&path).expect("a state file");
    for round in 0..12_u64 {
        let zero = nginx.worker_zero();
        let id = register_one(&consul, &service, &backends[1]);
        // A worker writes about a second after its start, this time at a different moment.
        thread::sleep(Duration::from_millis(960 + round * 8));
        process::send(zero, Signal::KILL);
        consul.deregister(&id);
        nginx.until_replaced(zero);
        read(&path).expect("a state file");
    }
    until_peers(&nginx, &service, &[&backends[0]]);
    until_saved(&path, &service, &[&backends[0]]);
    let last = read(&path).expect("a state file");
    assert!(last["written_ms"].as_u64() > first["written_ms"].as_u64(), "never written again");
    nginx.quit();
    let names = fs::read_dir(path.parent().expect("its folder")).expect("its folder");
    let mut names: Vec<_> = names.map(|entry| entry.expect("an entry").file_name()).collect();
    names.retain(|name| name != "consul.tmp");
    assert_eq!(names, ["consul"], "litter");
    proxy.set(Fault::Refuse);
    let nginx = config.start();
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
}
