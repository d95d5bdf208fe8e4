//! A Consul with many services, an nginx that follows them, and what they use.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use nginx_consul_e2e::consul::{self, Agent};
use nginx_consul_e2e::http::Connection;
use nginx_consul_e2e::nginx::{self, Config, Nginx};
use nginx_consul_e2e::proxy::Proxy;
use nginx_consul_e2e::{ports, process};
use serde_json::{Value, json};

/// Instances of each service.
pub(super) const INSTANCES: usize = 5;
/// Consul takes at most 64 operations in a transaction: two for each instance, and the node.
const PER_TRANSACTION: usize = 30;

/// Where the agent is, as nginx sees it. To one of 127.0.0.0/8 connections come from many addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Agents {
    /// 127.0.0.1
    Local,
    /// ::1: all connections come from one address
    Remote,
}

/// The scene.
pub(super) struct Scene {
    pub(super) services: usize,
    pub(super) nginx: Nginx,
    pub(super) proxy: Proxy,
    pub(super) consul: Agent,
    /// From starting nginx until it serves, with an answer for every service.
    pub(super) first_sync: Duration,
    port: u16,
    _backend: Nginx,
}

impl Scene {
    /// Starts all and registers the services.
    pub(super) fn start(services: usize, connections: usize, agent: Agents) -> Scene {
        let port = ports::free();
        let backend = format!(
            "daemon off;\nworker_processes 1;\npid nginx.pid;\nerror_log error.log notice;\n\
             worker_rlimit_nofile 16384;\nevents {{ worker_connections 8192; }}\n\
             http {{\naccess_log off;\n\
             client_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\n\
             uwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\n\
             server {{ listen 127.0.0.1:%%PORT%%; return 200 ok; }}\n\
             server {{ listen 0.0.0.0:{port} backlog=4096; return 200 \"$server_addr\\n\"; }}\n}}\n"
        );
        let backend = Config::whole(&backend).without_module().start();
        let consul = consul::Options::dev().start();
        let all: Vec<(usize, usize)> =
            (0..services).flat_map(|s| (0..INSTANCES).map(move |i| (s, i))).collect();
        for part in all.chunks(PER_TRANSACTION) {
            let node = json!({ "Node": { "Verb": "set",
                "Node": { "Node": "bench", "Address": "127.0.0.1" } } });
            let each = part.iter().flat_map(|&(service, instance)| {
                let address = address(service, instance, false);
                [
                    json!({ "Service": { "Verb": "set", "Node": "bench",
                        "Service": description(service, instance, address, port) } }),
                    json!({ "Check": { "Verb": "set", "Check": check(service, instance, true) } }),
                ]
            });
            let operations: Vec<Value> = std::iter::once(node).chain(each).collect();
            consul.put("/v1/txn", &operations.into());
        }
        let proxy = match agent {
            Agents::Local => Proxy::start(consul.address()),
            Agents::Remote => Proxy::start_on(Ipv6Addr::LOCALHOST, consul.address()),
        };
        let start = Instant::now();
        let nginx =
            Config::whole(&configuration(services, connections, &proxy.url())).workers(2).start();
        let first_sync = start.elapsed();
        assert!(nginx.logged("initial fetch failed").is_empty(), "{}", nginx.tail());
        Scene { services, nginx, proxy, consul, first_sync, port, _backend: backend }
    }

    /// Turns an instance's check.
    pub(super) fn set_health(&self, service: usize, instance: usize, passes: bool) {
        let body = json!({ "Node": "bench", "Address": "127.0.0.1", "SkipNodeUpdate": true,
            "Check": check(service, instance, passes) });
        self.consul.put("/v1/catalog/register", &body);
    }

    /// Gives an instance its second address, or its first again.
    pub(super) fn set_address(&self, service: usize, instance: usize, second: bool) {
        let address = address(service, instance, second);
        let body = json!({ "Node": "bench", "Address": "127.0.0.1", "SkipNodeUpdate": true,
            "Service": description(service, instance, address, self.port) });
        self.consul.put("/v1/catalog/register", &body);
    }

    /// So far: requests to Consul, bytes from it, and the CPU time of the agent and of worker 0's
    /// threads but for the event loop, in percent of a second.
    pub(super) fn used(&self) -> [f64; 4] {
        let worker = self.nginx.worker_zero();
        let main = process::cpu_ticks_of(&format!("{worker}/task/{worker}"));
        let watch = process::cpu_ticks(worker).saturating_sub(main);
        [
            self.proxy.requests("").len() as f64,
            self.proxy.bytes() as f64,
            process::cpu_ticks(self.consul.pid()) as f64,
            watch as f64,
        ]
    }

    /// Memory of worker 0 and of another worker, MiB; what they share is divided between them.
    pub(super) fn memory(&self) -> [f64; 2] {
        let zero = self.nginx.worker_zero();
        let other = self.nginx.workers().into_iter().find(|&pid| pid != zero).expect("another");
        [zero, other].map(|pid| {
            let file = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("its memory");
            let line = file.lines().find(|line| line.starts_with("Pss:")).expect("Pss");
            let kib: f64 =
                line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("KiB");
            kib / 1024.0
        })
    }

    /// KiB of the zone for each service.
    pub(super) fn zone_per_service(&self) -> f64 {
        let used = |nginx: &Nginx| nginx.status()["zone"]["used"].as_f64().expect("zone.used");
        let one = Config::whole(&configuration(1, 64, &self.consul.url())).workers(2).start();
        (used(&self.nginx) - used(&one)) / 1024.0 / (self.services as f64 - 1.0)
    }

    /// How many services are followed in which mode.
    pub(super) fn modes(&self) -> String {
        let status = self.nginx.status();
        let services = status["services"].as_array().expect("services");
        let mut counts = std::collections::BTreeMap::<String, usize>::new();
        for service in services {
            let mode = service["mode"].as_str().unwrap_or("?");
            let delay =
                service["delay_ms"].as_u64().map_or(String::new(), |ms| format!(" {ms} ms"));
            *counts.entry(format!("{mode}{delay}")).or_default() += 1;
        }
        let mut text = String::new();
        for (mode, count) in counts {
            let _ = write!(text, "{}{count} {mode}", if text.is_empty() { "" } else { ", " });
        }
        text
    }

    /// A connection to a worker with this pid.
    pub(super) fn connection_to(&self, worker: u32) -> Connection {
        let wanted = worker.to_string();
        loop {
            let mut connection = Connection::open(self.nginx.address()).expect("a connection");
            let answer = connection.get("/pid").expect("a pid");
            if answer.body.trim() == wanted {
                return connection;
            }
        }
    }
}

/// Where an instance listens: it has two addresses, for moves.
pub(super) fn address(service: usize, instance: usize, second: bool) -> Ipv4Addr {
    let block = 1 + instance + if second { INSTANCES } else { 0 };
    let [high, low] = [1 + service / 250, 1 + service % 250];
    let byte = |n: usize| u8::try_from(n).expect("few services");
    Ipv4Addr::new(127, byte(block), byte(high), byte(low))
}

fn description(service: usize, instance: usize, address: Ipv4Addr, port: u16) -> Value {
    let address = SocketAddr::from((address, port));
    json!({ "ID": format!("s{service}-{instance}"), "Service": format!("s{service}"),
        "Address": address.ip().to_string(), "Port": address.port(), "Tags": ["v1"] })
}

fn check(service: usize, instance: usize, passes: bool) -> Value {
    json!({ "Node": "bench", "CheckID": format!("service:s{service}-{instance}"),
        "Name": "http", "ServiceID": format!("s{service}-{instance}"),
        "Status": if passes { "passing" } else { "critical" } })
}

fn configuration(services: usize, connections: usize, consul: &str) -> String {
    let mut text = format!(
        "load_module {};\ndaemon off;\nworker_processes 2;\npid nginx.pid;\n\
         error_log error.log notice;\nworker_rlimit_nofile 16384;\n\
         events {{ worker_connections 8192; }}\nhttp {{\naccess_log off;\n\
         client_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\n\
         uwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\n\
         keepalive_requests 100000000;\nkeepalive_timeout 1h;\n\
         consul_server {consul};\nconsul_connections {connections};\n\
         consul_zone consul 64m;\nconsul_init_timeout 20s;\n",
        nginx::module().display()
    );
    for service in 0..services {
        let _ = writeln!(text, "upstream s{service} {{ consul_dynamic s{service}; }}");
    }
    text.push_str(
        "server {\nlisten 127.0.0.1:%%PORT%%;\nlocation = /consul { consul_status; }\n\
         location = /pid { return 200 $pid; }\n\
         location ~ ^/(?<name>s[0-9]+)$ { proxy_pass http://$name; }\n}\n}\n",
    );
    text
}
