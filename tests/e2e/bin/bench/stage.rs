//! What all variants share: backends, a real Consul with the instances, and the recipe on disk.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use nginx_consul_e2e::consul::{self, Agent};
use nginx_consul_e2e::nginx::{self, Config, Nginx};
use nginx_consul_e2e::ports;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::options::Options;
use crate::variants::Setup;

/// Sockets that the entries of the hot setup share.
const SOCKETS: usize = 8;
/// Consul takes at most 64 operations in a transaction.
const OPERATIONS: usize = 60;
/// Weight of the peers that are the hot sockets. Two instances with one address are one peer to
/// the module, so its N entries of the hot setup are N addresses, nearly all weight on 8 of them.
const HEAVY: u16 = u16::MAX;

/// The stage.
pub(crate) struct Stage {
    consul: Agent,
    recipe: TempDir,
    /// Ports that serve on 127.0.0.1.
    ports: Vec<u16>,
    /// A port that serves on every loopback address.
    wide: u16,
    /// How often an instance was moved.
    moves: AtomicUsize,
    /// Dropped last: the others talk to it until they end.
    _backend: Nginx,
}

impl Stage {
    /// Starts backends and Consul, and registers what the lengths need.
    pub(crate) fn start(options: &Options) -> Stage {
        let ports: Vec<u16> = (0..SOCKETS).map(|_| ports::free()).collect();
        let wide = ports::free();
        let recipe = tempfile::tempdir().expect("a folder for the recipe");
        // Workers drop to an unprivileged user, who reads it.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(recipe.path(), open).expect("an open folder");
        fs::write(recipe.path().join("recipe.lua"), include_str!("recipe.lua"))
            .expect("recipe.lua");
        let stage = Stage {
            consul: consul::Options::dev().start(),
            recipe,
            _backend: Config::whole(&backend(&ports, wide)).without_module().start(),
            ports,
            wide,
            moves: AtomicUsize::new(0),
        };
        for length in options.lengths() {
            stage.register_list(&stage.lua_service(length), &stage.shared(length), |_| 1);
            stage.register(Setup::Hot, length);
            stage.register(Setup::Distinct, length);
        }
        stage
    }

    /// Registers the instances of a service, which may be there.
    pub(crate) fn register(&self, setup: Setup, length: usize) {
        let list = match setup {
            Setup::Hot => self.mixed(length),
            Setup::Distinct => self.distinct(length),
        };
        self.register_list(&self.service(setup, length), &list, |n| weight(setup, length, n));
    }

    /// Gives an instance of a service an address that none had.
    pub(crate) fn move_instance(&self, service: &str, entry: usize) {
        let address = self.address(1_000_000 + self.moves.fetch_add(1, Ordering::Relaxed));
        self.register_operations(vec![operation(service, entry, address, 1)]);
    }

    /// The agent.
    pub(crate) fn consul(&self) -> &Agent {
        &self.consul
    }

    /// Its URL.
    pub(crate) fn consul_url(&self) -> String {
        self.consul.url()
    }

    /// The folder with `recipe.lua`.
    pub(crate) fn recipe_folder(&self) -> &Path {
        self.recipe.path()
    }

    /// The service whose instances our module finds.
    pub(crate) fn service(&self, setup: Setup, length: usize) -> String {
        format!("{setup:?}-{length}").to_lowercase()
    }

    /// The service whose instances the recipe finds: N entries over the sockets.
    pub(crate) fn lua_service(&self, length: usize) -> String {
        format!("shared-{length}")
    }

    /// `server` lines with the same addresses.
    pub(crate) fn server_lines(&self, setup: Setup, length: usize) -> String {
        let addresses = match setup {
            Setup::Hot => self.mixed(length),
            Setup::Distinct => self.distinct(length),
        };
        addresses.iter().enumerate().fold(String::new(), |mut lines, (entry, address)| {
            let weight = weight(setup, length, entry);
            let _ = writeln!(lines, "server {address} weight={weight};");
            lines
        })
    }

    /// The `n`-th of as many addresses as anybody wants; each answers with its IP address.
    pub(crate) fn address(&self, n: usize) -> SocketAddr {
        let [_, b, c, d] = u32::try_from(n + 1).expect("few addresses").to_be_bytes();
        (std::net::Ipv4Addr::new(127, 1 + b, c, d), self.wide).into()
    }

    fn shared(&self, length: usize) -> Vec<SocketAddr> {
        (0..length).map(|n| ([127, 0, 0, 1], self.ports[n % SOCKETS]).into()).collect()
    }

    fn mixed(&self, length: usize) -> Vec<SocketAddr> {
        let mut addresses = self.shared(length.min(SOCKETS));
        addresses.extend((SOCKETS..length).map(|n| self.address(n)));
        addresses
    }

    fn distinct(&self, length: usize) -> Vec<SocketAddr> {
        (0..length).map(|n| self.address(n)).collect()
    }

    fn register_list(&self, service: &str, list: &[SocketAddr], weight: impl Fn(usize) -> u16) {
        let numbered: Vec<(usize, &SocketAddr)> = list.iter().enumerate().collect();
        for part in numbered.chunks(OPERATIONS) {
            let services =
                part.iter().map(|&(n, &address)| operation(service, n, address, weight(n)));
            self.register_operations(services.collect());
        }
    }

    fn register_operations(&self, services: Vec<Value>) {
        let node = json!({ "Node": { "Verb": "set",
            "Node": { "Node": "bench", "Address": "127.0.0.1" } } });
        let operations: Vec<Value> = std::iter::once(node).chain(services).collect();
        self.consul.put("/v1/txn", &operations.into());
    }
}

/// The operation that registers the instance.
fn operation(service: &str, entry: usize, address: SocketAddr, weight: u16) -> Value {
    json!({ "Service": { "Verb": "set", "Node": "bench", "Service": {
        "ID": format!("{service}-{entry:05}"), "Service": service,
        "Address": address.ip().to_string(), "Port": address.port(),
        "Weights": { "Passing": weight, "Warning": 1 } } } })
}

/// Weight of an entry of a list.
fn weight(setup: Setup, length: usize, entry: usize) -> u16 {
    if setup == Setup::Hot && entry < SOCKETS && length > SOCKETS { HEAVY } else { 1 }
}

/// "1.22.1".
pub(crate) fn nginx_version() -> String {
    let output = Command::new(nginx::binary()).arg("-v").output().expect("nginx -v");
    let text = String::from_utf8_lossy(&output.stderr);
    text.rsplit('/').next().unwrap_or_default().trim().to_owned()
}

/// An nginx that is all backends, on the second CPU where there is one.
fn backend(ports: &[u16], wide: u16) -> String {
    let listen = ports.iter().fold(String::new(), |mut lines, port| {
        let _ = write!(lines, "listen 127.0.0.1:{port}; ");
        lines
    });
    format!(
        "daemon off;\nworker_processes 1;\n{}pid nginx.pid;\nerror_log error.log notice;\n\
         worker_rlimit_nofile 16384;\nevents {{ worker_connections 8192; }}\n\
         http {{\naccess_log off;\nkeepalive_requests 100000000;\nkeepalive_timeout 1h;\n\
         client_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\n\
         uwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\n\
         server {{ {listen}listen 127.0.0.1:%%PORT%%; return 200 \"ok\\n\"; }}\n\
         server {{ listen 0.0.0.0:{wide} backlog=4096; return 200 \"$server_addr\\n\"; }}\n}}\n",
        affinity("10")
    )
}

/// `worker_cpu_affinity`, on machines with at least two CPUs.
pub(crate) fn affinity(mask: &str) -> String {
    if has_two_cpus() { format!("worker_cpu_affinity {mask};\n") } else { String::new() }
}

/// Whether proxy and backends can have a CPU each.
pub(crate) fn has_two_cpus() -> bool {
    std::thread::available_parallelism().is_ok_and(|n| n.get() >= 2)
}
