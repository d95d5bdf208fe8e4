//! The README's pictures of the dashboard: a real nginx that follows a real Consul, with services
//! that are well and services that are ill in different ways. `screenshot folder`.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::consul::Options;
use nginx_consul_e2e::{
    Agent, Backend, Browser, Config, Fault, Instance, Look, Manner, Nginx, Proxy, wait,
};

mod traffic;

/// Longest anything may take to be seen.
const PATIENCE: Duration = Duration::from_secs(20);
/// As long as the dashboard's sparklines look back, one look a second.
const LOOKS: Duration = Duration::from_secs(62);

const CONFIGURATION: &str = "consul_server %%CONSUL%%;
    consul_retry 250ms 8s;
    consul_state %%PREFIX%%/state/consul;
    upstream api { consul_dynamic api; consul_balance least_conn; }
    upstream checkout { consul_dynamic checkout max_fails=1 fail_timeout=600s; }
    upstream search { consul_server %%PROXY%%; consul_dynamic search; consul_balance least_time; }
    upstream payments { consul_dynamic payments; }
    upstream images { consul_dynamic images; server %%ORIGIN%%; }
    upstream sessions { consul_dynamic sessions; consul_balance hash $request_id consistent; }
    upstream mail { consul_dynamic mail; consul_balance random; }
    upstream accounts { consul_dynamic accounts; }
    server {
        listen 127.0.0.1:%%PORT%%;
        location ~ ^/(?<upstream>[a-z]+)/ {
            rewrite ^/[a-z]+(/.*) $1 break;
            proxy_pass http://$upstream;
            proxy_next_upstream error timeout;
        }
        location = /consul { consul_status; }
    }";

/// A service: its name, the weights of its instances, requests per second, milliseconds each.
type Cast = (&'static str, &'static [u16], f64, u32);

const CASTS: [Cast; 8] = [
    ("api", &[5, 3, 3, 2], 260.0, 12),
    ("checkout", &[1, 1, 1, 1, 1], 60.0, 8),
    ("search", &[2, 2, 1], 45.0, 20),
    ("payments", &[1, 1], 0.0, 5),
    ("images", &[1, 1], 90.0, 4),
    ("sessions", &[1, 1, 1, 1], 120.0, 3),
    ("mail", &[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], 24.0, 15),
    ("accounts", &[1, 1, 1], 33.0, 6),
];

struct Stage {
    nginx: Nginx,
    consul: Agent,
    proxy: Proxy,
    backends: Vec<(&'static str, Vec<Backend>)>,
    _origin: Backend,
}

fn main() {
    let folder = std::env::args().nth(1).expect("a folder to write to");
    let stage = set();
    let traffic = CASTS.map(|(name, _, rate, took)| {
        traffic::Traffic::start(stage.nginx.address(), format!("/{name}/wait/{took}"), rate)
    });
    let url = format!("http://{}/consul#every=1&open=api", stage.nginx.address());
    let mut browser = Browser::open(&url, Look { width: 1300, height: 1130, dark: false });
    let start = Instant::now();
    thread::sleep(LOOKS / 2);
    troubles(&stage);
    while start.elapsed() < LOOKS {
        wait::pause();
    }
    browser
        .until("all troubles show", "document.querySelectorAll('.why:not([hidden])').length >= 5");
    for (name, dark) in [("dashboard.png", false), ("dashboard-dark.png", true)] {
        browser.look(Look { width: 1300, height: 1130, dark });
        let path = Path::new(&folder).join(name);
        let picture = browser.screenshot();
        println!("{}: {} bytes", path.display(), picture.len());
        fs::write(&path, picture).expect("the picture");
    }
    assert_eq!(browser.complaints(), Vec::<String>::new());
    drop(traffic);
}

fn set() -> Stage {
    let consul = Options::dev().node("web-1").start();
    let proxy = Proxy::start(consul.address());
    let origin = Backend::start("origin");
    let mut backends = Vec::new();
    for (service, weights, ..) in CASTS {
        let own: Vec<Backend> = weights.iter().map(|_| Backend::start(service)).collect();
        for (n, (backend, &weight)) in own.iter().zip(weights).enumerate() {
            register(&consul, service, n, backend, weight);
        }
        backends.push((service, own));
    }
    let nginx = Config::http(CONFIGURATION)
        .set("CONSUL", consul.url())
        .set("PROXY", proxy.url())
        .set("ORIGIN", origin.address())
        .workers(2)
        .start();
    for (service, own) in &backends {
        wait::until("nginx knows them all", PATIENCE, || {
            nginx.service(service)["peers"].as_array().map_or(0, Vec::len) == own.len()
        });
    }
    Stage { nginx, consul, proxy, backends, _origin: origin }
}

fn register(consul: &Agent, service: &str, n: usize, backend: &Backend, weight: u16) {
    let version = if n % 3 == 0 { "v2" } else { "v1" };
    let mut instance = Instance::new(service, &id(service, n), backend.address());
    instance = instance.tags(&[version]).weights(weight, 1);
    if (service, n) == ("sessions", 2) {
        instance = instance.meta("nginx_down", "true");
    }
    consul.register(&instance);
}

fn id(service: &str, n: usize) -> String {
    format!("{service}-{}", n + 1)
}

/// One of each kind.
fn troubles(stage: &Stage) {
    for (service, own) in &stage.backends {
        match *service {
            "checkout" => own[1].set(Manner::Reset),
            "payments" | "images" => {
                (0..own.len()).for_each(|n| stage.consul.deregister(&id(service, n)));
            }
            "api" => stage.consul.set_check(&id("api", 3), "warning"),
            _ => {}
        }
    }
    stage.consul.set_check("accounts-3", "critical");
    thread::sleep(Duration::from_secs(6));
    stage.consul.set_check("accounts-3", "passing");
    stage.consul.set_check("api-4", "passing");
    stage.proxy.set(Fault::Refuse);
}
