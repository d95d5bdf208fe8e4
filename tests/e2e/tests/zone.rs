//! The shared memory: of another size, full, and with room again.

use std::net::Ipv4Addr;
use std::time::Duration;

use nginx_consul_e2e::fake_consul::instance;
use nginx_consul_e2e::{Agent, Backend, Config, FakeConsul, Load, Nginx, load, wait};
use serde_json::Value;

use crate::support::{
    SERVER, SOON, register_one, scripted, tally, unique, until_followed, until_served_by,
};

/// `n` instances at as many addresses.
fn many(n: u32, network: u8) -> Value {
    let one = |n: u32| {
        let [_, _, high, low] = n.to_be_bytes();
        instance(&format!("i-{network}-{n}"), (Ipv4Addr::new(127, network, high, low), 80).into())
    };
    (0..n).map(one).collect()
}

fn count(nginx: &Nginx, service: &str) -> usize {
    let status = nginx.status();
    let services = status["services"].as_array().cloned().unwrap_or_default();
    let found = services.iter().find(|s| s["service"] == service);
    found.and_then(|s| s["peers"].as_array()).map_or(0, Vec::len)
}

#[test]
fn a_reload_with_another_zone_size_serves_at_once_and_on() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let text = format!(
        "consul_zone consul 1m; consul_server %%CONSUL%%;
         upstream api {{ consul_dynamic %%SERVICE%%; }} {SERVER}"
    );
    let mut nginx =
        Config::http(&text).set("CONSUL", consul.url()).set("SERVICE", &service).start();
    until_served_by(&nginx, "/", "a");
    let load = Load::start(nginx.address(), "/", 2, false);
    let size = |nginx: &Nginx| nginx.status()["zone"]["size"].as_u64();
    let mut now = "1m";
    for next in ["3m", "512k", "2m"] {
        let before = size(&nginx);
        nginx.rewrite(|text| text.replace(&format!("consul {now};"), &format!("consul {next};")));
        now = next;
        nginx.reload();
        wait::until("the new zone", SOON, || size(&nginx) != before);
        until_followed(&consul, &nginx, &service, &backends[1]);
    }
    let seen = load.finish();
    assert_eq!(load::failures(&seen, &["a", "b"]), "", "of {} requests", seen.total());
}

#[test]
fn the_memory_of_a_removed_upstream_is_there_for_the_next() {
    let consul = FakeConsul::start();
    let backend = Backend::start("a");
    consul.publish_one("web", 7, &backend);
    // Each of them takes more than half of the zone's instances.
    for n in 0..4_u8 {
        consul.publish(&format!("big{n}"), 7, &many(160, 20 + n));
    }
    let text = format!(
        "consul_zone consul 256k; consul_server %%CONSUL%%;
         upstream api {{ consul_dynamic web; }} upstream other {{ consul_dynamic big0; }} {SERVER}"
    );
    let mut nginx = Config::http(&text).set("CONSUL", consul.url()).start();
    until_served_by(&nginx, "/", "a");
    wait::until_eq("peers of big0", SOON, &160, || count(&nginx, "big0"));
    for n in 0..3 {
        let (old, new) = (format!("big{n}"), format!("big{}", n + 1));
        nginx.rewrite(|text| text.replace(&old, &new));
        nginx.reload();
        wait::until_eq(&format!("peers of {new}"), SOON, &160, || count(&nginx, &new));
        assert_eq!(count(&nginx, &old), 0, "{old} is gone");
        assert_eq!(tally(&nginx, "/", 2), "a: 2");
    }
}

#[test]
fn what_found_no_room_is_taken_when_another_service_makes_room() {
    let consul = FakeConsul::start();
    let backend = Backend::start("a");
    consul.publish_one("web", 7, &backend);
    consul.publish("other", 7, &many(160, 40));
    consul.publish("big", 7, &many(10, 41));
    let text = format!(
        "consul_zone consul 256k; consul_server %%CONSUL%%; consul_retry 50ms 500ms;
         upstream api {{ consul_dynamic web; }} upstream one {{ consul_dynamic other; }}
         upstream two {{ consul_dynamic big; }} {SERVER}"
    );
    let nginx = Config::http(&text).set("CONSUL", consul.url()).start();
    wait::until_eq("peers of other", SOON, &160, || count(&nginx, "other"));
    consul.publish("big", 8, &many(160, 41));
    nginx.wait_for_log("consul_zone");
    assert_eq!(count(&nginx, "big"), 10, "its last good set is kept");
    consul.publish("other", 8, &many(5, 40));
    wait::until_eq("peers of big, which Consul has no news of", SOON, &160, || {
        count(&nginx, "big")
    });
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
}

#[test]
fn a_full_zone_costs_one_service_its_news_and_no_other_anything() {
    let (consul, backends) = scripted();
    consul.publish("big", 7, &many(20, 30));
    let text = format!(
        "consul_zone consul 256k; consul_server %%CONSUL%%; consul_retry 50ms 200ms;
         upstream api {{ consul_dynamic web; }} upstream other {{ consul_dynamic big; }} {SERVER}"
    );
    let nginx = Config::http(&text).set("CONSUL", consul.url()).start();
    until_served_by(&nginx, "/", "a");
    wait::until_eq("peers of big", SOON, &20, || count(&nginx, "big"));
    let load = Load::start_paced(nginx.address(), "/", 1, true, Duration::from_millis(1));
    consul.publish("big", 8, &many(5000, 30));
    let line = nginx.wait_for_log("consul_zone");
    assert!(line.contains("\"big\""), "{line}");
    assert_eq!(count(&nginx, "big"), 20, "its last good set is kept");
    consul.publish_one("web", 9, &backends[1]);
    until_served_by(&nginx, "/", "b");
    // With room again it recovers.
    consul.publish("big", 10, &many(30, 31));
    wait::until_eq("peers of big", SOON, &30, || count(&nginx, "big"));
    wait::until("no error any more", SOON, || nginx.service("big")["last_error"].is_null());
    assert_eq!(load::failures(&load.finish(), &["a", "b"]), "");
}
