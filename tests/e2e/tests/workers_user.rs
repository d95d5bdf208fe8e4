//! Workers drop root: what only the master may read or connect to is told when nginx starts, by
//! `nginx -t` and on a reload.
//!
//! Where the tests don't run as root, nginx drops nothing, and there is nothing to tell.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nginx_consul_e2e::consul::Options;
use nginx_consul_e2e::fake_consul::instance;
use nginx_consul_e2e::{Backend, FakeConsul, Nginx, process, wait};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{SOON, gateway, register_one, tally, unique};

/// What only the user that runs the tests may use.
const PRIVATE: u32 = 0o600;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("another mode");
}

/// A folder that the workers may enter.
fn open_folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    set_mode(folder.path(), 0o755);
    folder
}

/// Whether nginx's workers run as another user than its master.
fn drops_root() -> bool {
    fs::metadata("/proc/self").expect("this process").uid() == 0
}

/// Gives the watch news with this index; returns the token that it comes back with.
fn token_after_news(consul: &FakeConsul, backend: &Backend, index: u64) -> String {
    consul.publish("web", index, &json!([instance("a", backend.address())]));
    wait::until_some("the query after the news", SOON, || {
        let last = consul.queries().pop()?;
        (last.index == Some(index)).then_some(last.token.unwrap_or_default())
    })
}

/// Reloads, and waits until none of the old workers asks any more.
fn reload(nginx: &mut Nginx) {
    let old = nginx.reload();
    wait::until("the old workers end", SOON, || !old.iter().any(|&pid| process::is_alive(pid)));
}

/// How many warnings with `text` are in the error log; what nginx says at its start is on stderr too.
fn warnings(nginx: &Nginx, text: &str) -> usize {
    let log = fs::read_to_string(nginx.prefix().join("error.log")).expect("error.log");
    log.lines().filter(|line| line.contains("[warn]") && line.contains(text)).count()
}

#[test]
fn a_token_file_that_the_workers_cant_read_is_told() {
    let consul = FakeConsul::start();
    let backend = Backend::start("a");
    consul.publish("web", 7, &json!([instance("a", backend.address())]));
    let folder = open_folder();
    let token = folder.path().join("token");
    fs::write(&token, "first\n").expect("a token");
    let upstream = "consul_dynamic web; consul_token_file %%TOKEN%%;";
    let config = gateway(&consul.url(), "web", upstream).main("user nobody nogroup;");
    let config = config.set("TOKEN", token.display());
    let said = format!(
        "consul: file \"{}\" of consul_token_file can't be read by nobody (Permission denied",
        token.display()
    );

    // All may read it: nothing to tell.
    let checked = config.clone().check();
    assert!(checked.passed && !checked.output.contains("can't be"), "{}", checked.output);
    let mut nginx = config.clone().start();
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
    assert_eq!(warnings(&nginx, "can't be"), 0);

    set_mode(&token, PRIVATE);
    let checked = config.check();
    assert!(checked.passed, "{}", checked.output);
    reload(&mut nginx);
    if !drops_root() {
        assert!(!checked.output.contains("can't be"), "{}", checked.output);
        assert_eq!(warnings(&nginx, "can't be"), 0);
        return;
    }
    let warned = checked.output.lines().any(|l| l.contains("[warn]") && l.contains(&said));
    assert!(warned, "{}", checked.output);
    let line = nginx.wait_for_log(&said);
    assert!(line.contains("[warn]") && line.contains("until nginx is reloaded"), "{line}");
    assert_eq!(warnings(&nginx, &said), 1);
    // The master's copy is in use, and stays so until the master reads the file again.
    fs::write(&token, "second\n").expect("a token");
    assert_eq!(token_after_news(&consul, &backend, 8), "first");
    reload(&mut nginx);
    assert_eq!(token_after_news(&consul, &backend, 9), "second");
    assert_eq!(warnings(&nginx, &said), 2, "each reload tells it again");
    // Once they may read it no reload is needed, though its time of change stays what it was.
    fs::write(&token, "third\n").expect("a token");
    assert_eq!(token_after_news(&consul, &backend, 10), "second");
    set_mode(&token, 0o644);
    assert_eq!(token_after_news(&consul, &backend, 11), "third");
    assert_eq!(nginx.logged("waitpid"), [""; 0], "nginx is puzzled by a child that it didn't make");
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
}

#[test]
fn the_token_file_of_the_environment_is_told_by_its_variable() {
    let folder = open_folder();
    let token = folder.path().join("token");
    fs::write(&token, "first\n").expect("a token");
    set_mode(&token, PRIVATE);
    let checked = gateway("http://127.0.0.1:8500", "web", "consul_dynamic web;")
        .main("user nobody nogroup;")
        .environment("CONSUL_HTTP_TOKEN_FILE", token.display())
        .check();
    let said = format!("\"{}\" of CONSUL_HTTP_TOKEN_FILE can't be read by nobody", token.display());
    assert!(checked.passed, "{}", checked.output);
    assert_eq!(checked.output.contains(&said), drops_root(), "{}", checked.output);
}

#[test]
fn a_socket_that_the_workers_cant_connect_to_is_told() {
    let folder = open_folder();
    let socket = folder.path().join("consul.sock");
    let service = unique("web");
    let upstream = "consul_dynamic %%SERVICE%%; consul_retry 50ms 300ms;";
    let config = gateway(&format!("unix:{}", socket.display()), &service, upstream)
        .main("user nobody nogroup;");
    // One that isn't there is Consul's absence.
    let checked = config.clone().check();
    assert!(checked.passed && !checked.output.contains("can't be"), "{}", checked.output);

    let consul = Options::dev()
        .hcl(&format!(
            "addresses {{ http = \"127.0.0.1 unix://{}\" }} unix_sockets {{ mode = \"0770\" }}",
            socket.display()
        ))
        .start();
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let said = format!(
        "consul: socket \"{}\" of consul_server can't be used by nobody (Permission denied",
        socket.display()
    );
    let checked = config.clone().check();
    assert!(checked.passed, "{}", checked.output);
    let told = checked.output.lines().any(|l| l.contains("[warn]") && l.contains(&said));
    assert_eq!(told, drops_root(), "{}", checked.output);
    let nginx = config.start();
    // The master is root: its answer is there, and no other comes.
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
    assert_eq!(warnings(&nginx, &said), usize::from(drops_root()));
    register_one(&consul, &service, &backends[1]);
    if drops_root() {
        let line = nginx.wait_for_log("retrying in");
        assert!(line.contains("Permission denied"), "{line}");
        // The watch itself sees the socket opened.
        set_mode(&socket, 0o777);
    }
    crate::support::until_served_by(&nginx, "/", "a b");
}
