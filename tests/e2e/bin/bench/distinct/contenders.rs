//! Who is compared.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use nginx_consul_e2e::nginx::{self, Config};
use nginx_consul_e2e::process::Process;
use nginx_consul_e2e::{Nginx, ports, wait};
use rustix::process::Signal;
use tempfile::TempDir;

use super::peers::{Peers, service};
use crate::stage;

/// A way to proxy with one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    /// nginx over `server` lines with `keepalive` of so many connections.
    Static(usize),
    HaProxy,
    /// `consul_keepalive` of so many.
    Ours(usize),
    /// nginx's `keepalive` over Consul.
    Over(usize),
}

impl Contender {
    /// Those whose CPU time is compared; the first is the measure of the others.
    pub(super) const ALL: [Contender; 4] =
        [Contender::Static(64), Contender::Static(8000), Contender::HaProxy, Contender::Ours(8000)];

    pub(super) fn title(self) -> String {
        match self {
            Contender::Static(n) => format!("static, `keepalive {n}`"),
            Contender::HaProxy => "HAProxy".to_owned(),
            Contender::Ours(n) => format!("**ours, `consul_keepalive {n}`**"),
            Contender::Over(n) => format!("ours, `keepalive {n}`"),
        }
    }

    /// The configuration of nginx.
    pub(super) fn configuration(self, peers: &Peers, number: usize) -> String {
        let forever = "keepalive_requests 100000000;";
        let (module, block) = match self {
            Contender::Static(n) => {
                let mut lines = String::new();
                for peer in 0..number {
                    let _ = writeln!(lines, "server {};", peers.address(peer));
                }
                (false, format!("{lines}keepalive {n};\n{forever}"))
            }
            Contender::Ours(n) => (true, keeping(number, n)),
            Contender::Over(n) => {
                (true, format!("consul_dynamic {};\nkeepalive {n};\n{forever}", service(number)))
            }
            Contender::HaProxy => (false, String::new()),
        };
        let load = format!("load_module {};\n", nginx::module().display());
        let consul = format!(
            "consul_server {};\nconsul_zone consul 64m;\nconsul_init_timeout 60s;\n",
            peers.consul_url()
        );
        format!(
            "{}daemon off;\nworker_processes 1;\npid nginx.pid;\nerror_log error.log notice;\n\
             worker_rlimit_nofile 16384;\nevents {{ worker_connections 16000; }}\n\
             http {{\naccess_log off;\n{forever}\n\
             client_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\n\
             uwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\n{}upstream peers {{\n{block}\n}}\n\
             server {{ listen 127.0.0.1:%%PORT%%; location = /pid {{ return 200 $pid; }} \
             location / {{ proxy_pass http://peers; \
             proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n}}\n",
            if module { &load } else { "" },
            if module { &consul } else { "" },
        )
    }
}

fn keeping(number: usize, connections: usize) -> String {
    let dynamic = service(number);
    format!("consul_dynamic {dynamic};\nconsul_keepalive {connections} requests=100000000;\n")
}

/// A running one, on the first CPU where there are two.
pub(super) enum Running {
    Nginx(Box<Nginx>),
    HaProxy { process: Process, address: SocketAddr, _folder: TempDir },
}

impl Running {
    pub(super) fn start(contender: Contender, peers: &Peers, number: usize) -> Running {
        if contender == Contender::HaProxy {
            return Running::haproxy(peers, number);
        }
        let text = contender.configuration(peers, number);
        Running::Nginx(Box::new(Config::whole(&(stage::affinity("01") + &text)).start()))
    }

    /// With a pool of connections for each server, as large as it takes.
    fn haproxy(peers: &Peers, number: usize) -> Running {
        let folder = tempfile::tempdir().expect("a folder");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()));
        let pin = if stage::has_two_cpus() { "cpu-map auto:1/1 0\n" } else { "" };
        let mut text = format!(
            "global\nnbthread 1\nmaxconn 8000\n{pin}\
             tune.pool-high-fd-ratio 95\ntune.pool-low-fd-ratio 90\n\
             defaults\nmode http\ntimeout connect 5s\ntimeout client 60s\ntimeout server 60s\n\
             http-reuse always\n\
             frontend front\nbind {address}\ndefault_backend peers\n\
             backend peers\nbalance roundrobin\n"
        );
        for peer in 0..number {
            let _ = writeln!(text, "server s{peer} {}", peers.address(peer));
        }
        let file = folder.path().join("haproxy.cfg");
        fs::write(&file, text).expect("haproxy.cfg");
        let log = fs::File::create(folder.path().join("haproxy.log")).expect("a log");
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = Process::spawn(command.stderr(log));
        wait::until("HAProxy listens", Duration::from_secs(20), || {
            let said = || fs::read_to_string(folder.path().join("haproxy.log"));
            assert!(process.exited().is_none(), "HAProxy ended: {:?}", said());
            TcpStream::connect(address).is_ok()
        });
        Running::HaProxy { process, address, _folder: folder }
    }

    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Running::Nginx(nginx) => nginx.address(),
            Running::HaProxy { address, .. } => *address,
        }
    }

    /// The process that does the work.
    pub(super) fn pid(&self) -> u32 {
        match self {
            Running::Nginx(nginx) => nginx.workers()[0],
            Running::HaProxy { process, .. } => process.pid(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Running::HaProxy { process, .. } = self {
            process.signal(Signal::TERM);
            process.wait(Duration::from_secs(5));
        }
    }
}
