//! An instance that leaves and returns goes on where it was, however it leaves: requests in flight
//! count until they end, and failures for `fail_timeout`.

use std::sync::Arc;

use nginx_consul_e2e::http::Connection;
use nginx_consul_e2e::{Agent, Backend, Config, Instance, Manner, Nginx, Tally, wait};

use crate::support::{SERVER, SOON, tally, unique, until_peers};

const UPGRADE: [(&str, &str); 2] = [("Upgrade", "websocket"), ("Connection", "Upgrade")];

/// Instances `a` and `b`, each with a websocket for at most six clients.
struct Stage {
    consul: Arc<Agent>,
    service: String,
    backends: Vec<Backend>,
    nginx: Nginx,
}

impl Stage {
    /// `lines` are more of the upstream's; `selection` is that of `consul_dynamic`.
    fn start(selection: &str, lines: &str) -> Stage {
        let (consul, service) = (Agent::shared(), unique("web"));
        let backends = Backend::start_all(&["a", "b"]);
        for backend in &backends {
            consul.register(&instance(&service, backend).tags(&["live"]));
        }
        let text = "consul_server %%CONSUL%%; upstream api {
             consul_dynamic %%SELECTION%% max_conns=6 max_fails=1 fail_timeout=60s;
             consul_balance least_conn; %%LINES%% }";
        let nginx = Config::http(&format!("{text}\n{SERVER}"))
            .set("SELECTION", selection)
            .set("LINES", lines)
            .set("CONSUL", consul.url())
            .set("SERVICE", &service)
            .file(
                "server.conf",
                "proxy_http_version 1.1; proxy_read_timeout 1h;
                 proxy_set_header Upgrade $http_upgrade;
                 proxy_set_header Connection $http_connection;",
            )
            .start();
        Stage { consul, service, backends, nginx }
    }

    fn path(&self) -> String {
        format!("/?s={}", self.service)
    }

    fn a(&self) -> String {
        id(&self.service, &self.backends[0])
    }

    /// Waits until instances are there as `a`, `b` or `ab`.
    fn until(&self, names: &str) {
        let listed = |backend: &&Backend| names.contains(backend.name());
        let listed: Vec<&Backend> = self.backends.iter().filter(listed).collect();
        until_peers(&self.nginx, &self.service, &listed);
    }

    /// Opens six websockets; who has them.
    fn open(&self, open: &mut Vec<Connection>) -> String {
        let one = |_| {
            let mut client = Connection::open(self.nginx.address()).expect("a connection");
            let answer = client.request("GET", &self.path(), &UPGRADE, b"").expect("an answer");
            open.push(client);
            match answer.header("x-backend") {
                Some(name) if answer.status == 101 => name.to_owned(),
                _ => answer.outcome(),
            }
        };
        (0..6).map(one).collect::<Tally>().to_string()
    }

    /// Sees that nothing is forgotten while `flap` has `a` leave and return.
    fn remembers(mut self, flap: impl Fn(&mut Stage)) {
        let mut open = Vec::new();
        assert_eq!(self.open(&mut open), "a: 3, b: 3");
        flap(&mut self);
        assert_eq!(self.open(&mut open), "a: 3, b: 3", "what a has in flight was forgotten");
        flap(&mut self);
        assert_eq!(self.open(&mut open), "502: 6", "each of them has max_conns");
        drop(open);
        wait::until_eq("all are served again", SOON, "a b", || {
            (0..6).map(|_| self.nginx.outcome(&self.path())).collect::<Tally>().outcomes()
        });
        self.backends[0].set(Manner::Reset);
        assert_eq!(tally(&self.nginx, &self.path(), 6), "b: 6");
        let failed = self.backends[0].requests();
        for _ in 0..3 {
            flap(&mut self);
            assert_eq!(tally(&self.nginx, &self.path(), 6), "b: 6");
        }
        assert_eq!(self.backends[0].requests() - failed, 0, "requests to one that has failed");
    }
}

fn id(service: &str, backend: &Backend) -> String {
    format!("{service}-{}", backend.name())
}

fn instance(service: &str, backend: &Backend) -> Instance {
    Instance::new(service, &id(service, backend), backend.address())
}

#[test]
fn invariant_3_an_instance_whose_check_fails_and_passes_again_is_remembered() {
    Stage::start("%%SERVICE%%", "").remembers(|stage| {
        stage.consul.set_check(&stage.a(), "critical");
        stage.until("b");
        stage.consul.set_check(&stage.a(), "passing");
        stage.until("ab");
    });
}

#[test]
fn invariant_3_an_instance_that_loses_its_tag_and_gets_it_back_is_remembered() {
    Stage::start("%%SERVICE%% tag=live", "").remembers(|stage| {
        let instance = instance(&stage.service, &stage.backends[0]);
        stage.consul.register(&instance);
        stage.until("b");
        stage.consul.register(&instance.tags(&["live"]));
        stage.until("ab");
    });
}

#[test]
fn invariant_3_an_instance_that_was_in_maintenance_is_remembered() {
    Stage::start("%%SERVICE%%", "").remembers(|stage| {
        stage.consul.set_maintenance(&stage.a(), true);
        stage.until("b");
        stage.consul.set_maintenance(&stage.a(), false);
        stage.until("ab");
    });
}

#[test]
fn invariant_3_an_instance_that_is_deregistered_and_registered_is_remembered() {
    Stage::start("%%SERVICE%%", "").remembers(|stage| {
        stage.consul.deregister(&stage.a());
        stage.until("b");
        stage.consul.register(&instance(&stage.service, &stage.backends[0]));
        stage.until("ab");
    });
}

#[test]
fn invariant_3_instances_that_have_all_left_are_remembered() {
    for lines in ["consul_empty drop;", "consul_empty confirm=2; consul_retry 20ms 50ms;"] {
        Stage::start("%%SERVICE%%", lines).remembers(|stage| {
            for backend in &stage.backends {
                stage.consul.deregister(&id(&stage.service, backend));
            }
            stage.until("");
            for backend in &stage.backends {
                stage.consul.register(&instance(&stage.service, backend));
            }
            stage.until("ab");
        });
    }
}

#[test]
fn invariant_3_an_instance_that_returns_after_a_reload_is_remembered() {
    Stage::start("%%SERVICE%%", "").remembers(|stage| {
        stage.consul.set_check(&stage.a(), "critical");
        stage.until("b");
        stage.nginx.reload();
        stage.consul.set_check(&stage.a(), "passing");
        stage.until("ab");
    });
}

#[test]
fn invariant_3_instances_of_a_service_that_no_request_named_for_a_while_are_remembered() {
    Stage::start("$arg_s", "consul_idle 1s;").remembers(|stage| {
        wait::until("the service is dropped", SOON, || {
            let status = stage.nginx.status();
            status["on_demand"]["services"].as_array().is_some_and(Vec::is_empty)
        });
    });
}

#[test]
fn an_instance_that_returns_at_another_port_is_one_that_has_not_failed() {
    let stage = Stage::start("%%SERVICE%%", "");
    stage.backends[0].set(Manner::Reset);
    assert_eq!(tally(&stage.nginx, &stage.path(), 6), "b: 6");
    let moved = Backend::start("moved");
    let at = |backend: &Backend| Instance::new(&stage.service, &stage.a(), backend.address());
    stage.consul.deregister(&stage.a());
    stage.until("b");
    stage.consul.register(&at(&moved));
    until_peers(&stage.nginx, &stage.service, &[&moved, &stage.backends[1]]);
    let served = || (0..6).map(|_| stage.nginx.outcome(&stage.path())).collect::<Tally>();
    assert_eq!(served().outcomes(), "b moved");
    // Also if it moves without having left.
    moved.set(Manner::Reset);
    assert_eq!(served().to_string(), "b: 6");
    stage.backends[0].release();
    stage.consul.register(&at(&stage.backends[0]));
    stage.until("ab");
    assert_eq!(served().outcomes(), "a b");
}
