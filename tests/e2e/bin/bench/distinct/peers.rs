//! One nginx that is all instances, and a Consul that has them.

use std::net::{Ipv4Addr, SocketAddr};

use nginx_consul_e2e::fake_consul::instance;
use nginx_consul_e2e::nginx::Config;
use nginx_consul_e2e::{FakeConsul, Nginx, http, ports};
use serde_json::Value;

use crate::stage;

pub(super) struct Peers {
    consul: FakeConsul,
    backend: Nginx,
    /// It serves on every loopback address.
    port: u16,
}

impl Peers {
    pub(super) fn start(numbers: &[usize]) -> Peers {
        let port = ports::free();
        let text = format!(
            "daemon off;\nworker_processes 1;\n{}pid nginx.pid;\nerror_log error.log notice;\n\
             worker_rlimit_nofile 16384;\nevents {{ worker_connections 16000; }}\n\
             http {{\naccess_log off;\nkeepalive_requests 100000000;\nkeepalive_timeout 1h;\n\
             client_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\n\
             uwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\n\
             server {{ listen 127.0.0.1:%%PORT%%; return 200 \"$connection\"; }}\n\
             server {{ listen 0.0.0.0:{port} backlog=4096; return 200 \"ok\\n\"; }}\n}}\n",
            stage::affinity("10")
        );
        let backend = Config::whole(&text).without_module().start();
        let peers = Peers { consul: FakeConsul::start(), backend, port };
        for &number in numbers.iter().chain([&3]) {
            let set = (0..number).map(|n| instance(&format!("web-{n:05}"), peers.address(n)));
            peers.consul.publish(&service(number), 7, &Value::Array(set.collect()));
        }
        peers
    }

    /// Where the `n`-th is.
    pub(super) fn address(&self, n: usize) -> SocketAddr {
        let [_, b, c, d] = u32::try_from(n + 1).expect("few addresses").to_be_bytes();
        (Ipv4Addr::new(127, 1 + b, c, d), self.port).into()
    }

    pub(super) fn consul_url(&self) -> String {
        self.consul.url()
    }

    /// Connections that it ever had.
    pub(super) fn connections(&self) -> u64 {
        let answer = http::get(self.backend.address(), "/").expect("its counter");
        answer.body.trim().parse().expect("a number")
    }
}

/// The service that has so many instances.
pub(super) fn service(number: usize) -> String {
    format!("web-{number}")
}
