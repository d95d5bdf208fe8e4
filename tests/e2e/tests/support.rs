//! What the tests share.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nginx_consul_e2e::consul::Options;
use nginx_consul_e2e::{Agent, Backend, Config, FakeConsul, Instance, Nginx, Tally, wait};
use tempfile::TempDir;

/// How long a change may take to be seen: much longer than it does on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(8);

/// A server that proxies to the upstream `api`, with the status page; a file `server.conf` adds to it.
pub(crate) const SERVER: &str = "server {
    listen 127.0.0.1:%%PORT%%;
    include server*.conf;
    location / { proxy_pass http://api; }
    location = /consul { consul_status; }
}";

/// A service name that no other test uses.
pub(crate) fn unique(name: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// nginx whose upstream `api` has these lines; `%%SERVICE%%` is the service.
pub(crate) fn gateway(consul: &str, service: &str, upstream: &str) -> Config {
    Config::http(&format!("consul_server %%CONSUL%%;\nupstream api {{ {upstream} }}\n{SERVER}"))
        .set("CONSUL", consul)
        .set("SERVICE", service)
}

/// nginx that follows `service` and nothing else.
pub(crate) fn follow(consul: &str, service: &str) -> Nginx {
    gateway(consul, service, "consul_dynamic %%SERVICE%%;").start()
}

/// Registers backends as instances `<service>-<name>`, and returns their ids.
pub(crate) fn register(consul: &Agent, service: &str, backends: &[Backend]) -> Vec<String> {
    backends.iter().map(|backend| register_one(consul, service, backend)).collect()
}

/// Registers one backend as instance `<service>-<name>`, and returns its id.
pub(crate) fn register_one(consul: &Agent, service: &str, backend: &Backend) -> String {
    let id = format!("{service}-{}", backend.name());
    consul.register(&Instance::new(service, &id, backend.address()));
    id
}

/// nginx whose upstream `api` picks by `method`; `parameters` are those of `consul_dynamic`.
pub(crate) fn balanced(consul: &Agent, service: &str, parameters: &str, method: &str) -> Config {
    let upstream = "consul_dynamic %%SERVICE%% %%PARAMETERS%%; consul_balance %%METHOD%%;";
    gateway(&consul.url(), service, upstream).set("PARAMETERS", parameters).set("METHOD", method)
}

/// An agent that also listens on a unix socket: the folder of the socket, the socket, and the agent.
pub(crate) fn on_socket() -> (TempDir, PathBuf, Agent) {
    let folder = tempfile::tempdir().expect("a folder");
    // Workers run as another user than the agent.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("an open folder");
    let socket = folder.path().join("consul.sock");
    let hcl = format!(
        "addresses {{ http = \"127.0.0.1 unix://{}\" }} unix_sockets {{ mode = \"0777\" }}",
        socket.display()
    );
    let consul = Options::dev().hcl(&hcl).start();
    (folder, socket, consul)
}

/// A scripted Consul whose service `web` is the first of two backends, `a`, at index 7.
pub(crate) fn scripted() -> (FakeConsul, Vec<Backend>) {
    let (consul, backends) = (FakeConsul::start(), Backend::start_all(&["a", "b"]));
    consul.publish_one("web", 7, &backends[0]);
    (consul, backends)
}

/// Who answers `n` requests, as `a: 2, b: 1`.
pub(crate) fn tally(nginx: &Nginx, path: &str, n: usize) -> String {
    (0..n).map(|_| nginx.outcome(path)).collect::<Tally>().to_string()
}

/// Whom `n` requests are sent to first, whoever answers in the end. Nothing else asks for that path.
pub(crate) fn first_tries(nginx: &Nginx, path: &str, n: usize, backends: &[Backend]) -> Tally {
    (0..n).for_each(|_| drop(nginx.get(path)));
    let first = |line: &String| {
        let address = line.split(['|', ',']).nth(2)?;
        let backend = backends.iter().find(|b| b.address().to_string() == address);
        Some(backend.map_or(address, Backend::name).to_owned())
    };
    nginx.access(path, n).iter().filter_map(first).collect()
}

/// Waits until six requests in a row are answered by exactly these, as `a b`.
#[track_caller]
pub(crate) fn until_served_by(nginx: &Nginx, path: &str, names: &str) -> Duration {
    wait::until_eq("who answers", SOON, names, || {
        (0..6).map(|_| nginx.outcome(path)).collect::<Tally>().outcomes()
    })
}

/// Sees that changes are followed: `b` comes beside `a`, and goes.
#[track_caller]
pub(crate) fn until_followed(consul: &Agent, nginx: &Nginx, service: &str, b: &Backend) {
    let id = register_one(consul, service, b);
    until_served_by(nginx, "/", "a b");
    consul.deregister(&id);
    until_served_by(nginx, "/", "a");
}

/// Waits until the status page lists exactly these addresses, as `a:1 b:2`.
#[track_caller]
pub(crate) fn until_peers(nginx: &Nginx, service: &str, backends: &[&Backend]) -> Duration {
    wait::until_eq("peers in status", SOON, &addresses(backends), || nginx.peers(service))
}

/// Addresses of backends, sorted, joined by a space.
pub(crate) fn addresses(backends: &[&Backend]) -> String {
    let mut names: Vec<String> = backends.iter().map(|b| b.address().to_string()).collect();
    names.sort_unstable();
    names.join(" ")
}
