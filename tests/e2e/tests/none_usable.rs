//! No instance can be used.

use std::time::{Duration, Instant};

use nginx_consul_e2e::{Agent, Backend, Config, Manner, Tally, wait};

use crate::support::{
    SERVER, follow, gateway, register, register_one, tally, unique, until_served_by,
};

#[test]
fn a_service_without_instances_is_502_at_once() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let nginx = follow(&consul.url(), &service);
    let start = Instant::now();
    let seen: Tally = (0..100).map(|_| nginx.outcome("/")).collect();
    let span = start.elapsed();
    assert_eq!(seen.to_string(), "502: 100");
    assert!(span < Duration::from_secs(2), "100 refusals took {span:?}");
    // At most one line a second, and one names all there is to know.
    let text = format!("consul: no usable instance of service \"{service}\" in upstream \"api\"");
    let lines = nginx.logged(&text);
    let most = 1 + usize::try_from(span.as_secs()).unwrap_or(9) + 1;
    assert!((1..=most).contains(&lines.len()), "{} lines in {span:?}: {lines:#?}", lines.len());
    assert!(lines[0].contains("[error]"), "{}", lines[0]);
}

#[test]
fn the_line_is_repeated_after_a_second() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let nginx = follow(&consul.url(), &service);
    let lines = || nginx.logged("consul: no usable instance").len();
    assert_eq!(nginx.get("/").status, 502);
    assert_eq!(lines(), 1);
    let start = Instant::now();
    wait::until("the second line", Duration::from_secs(5), || {
        assert_eq!(nginx.get("/").status, 502);
        lines() == 2
    });
    assert!(start.elapsed() > Duration::from_millis(700), "after {:?}", start.elapsed());
}

#[test]
fn the_first_instance_to_appear_is_served_at_once() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    let nginx = follow(&consul.url(), &service);
    assert_eq!(nginx.get("/").status, 502);
    let start = Instant::now();
    register_one(&consul, &service, &backend);
    wait::until_eq("who answers", Duration::from_secs(5), "a", || nginx.outcome("/"));
    assert!(start.elapsed() < Duration::from_secs(1), "served after {:?}", start.elapsed());
}

#[test]
fn the_last_instance_to_leave_turns_answers_into_502_and_its_return_ends_that() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    let id = register_one(&consul, &service, &backend);
    let nginx = follow(&consul.url(), &service);
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
    consul.deregister(&id);
    until_served_by(&nginx, "/", "502");
    register_one(&consul, &service, &backend);
    until_served_by(&nginx, "/", "a");
}

#[test]
fn server_lines_are_the_fallback() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "fallback1", "fallback2"]);
    let nginx = gateway(
        &consul.url(),
        &service,
        "server %%F1%%; consul_dynamic %%SERVICE%%; server %%F2%% weight=3;",
    )
    .set("F1", backends[1].address())
    .set("F2", backends[2].address())
    .start();
    assert_eq!(tally(&nginx, "/", 8), "fallback1: 2, fallback2: 6");
    let id = register_one(&consul, &service, &backends[0]);
    until_served_by(&nginx, "/", "a");
    consul.set_check(&id, "critical");
    until_served_by(&nginx, "/", "fallback1 fallback2");
    consul.set_check(&id, "passing");
    until_served_by(&nginx, "/", "a");
}

#[test]
fn the_recipes_placeholder_is_never_used() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    let nginx =
        gateway(&consul.url(), &service, "server 0.0.0.1 down; consul_dynamic %%SERVICE%%;")
            .start();
    let start = Instant::now();
    assert_eq!(nginx.get("/").status, 502);
    assert!(start.elapsed() < Duration::from_millis(500), "tried for {:?}", start.elapsed());
    register_one(&consul, &service, &backend);
    until_served_by(&nginx, "/", "a");
    assert_eq!(nginx.logged("0.0.0.1"), Vec::<String>::new());
}

#[test]
fn a_peer_that_failed_too_often_leaves_the_others() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "fallback"]);
    register(&consul, &service, &backends[..1]);
    // All peers having failed is no reason to use the fallback or to give up for good.
    let nginx =
        gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%% max_fails=1 fail_timeout=1s;")
            .start();
    backends[0].set(Manner::Reset);
    assert_eq!(nginx.get("/").status, 502);
    backends[0].release();
    until_served_by(&nginx, "/", "a");
}

#[test]
fn a_variable_may_name_the_upstream() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let nginx = Config::http(&format!(
        "consul_server %%CONSUL%%; upstream api {{ consul_dynamic %%SERVICE%%; }}
         map $uri $name {{ default api; }} {}",
        SERVER.replace("http://api", "http://$name")
    ))
    .set("CONSUL", consul.url())
    .set("SERVICE", &service)
    .start();
    assert_eq!(tally(&nginx, "/", 4), "a: 2, b: 2");
}
