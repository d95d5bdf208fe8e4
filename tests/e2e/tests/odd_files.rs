//! Files that are something else than they should be, or become it while nginx runs.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nginx_consul_e2e::{Agent, Backend, FakeConsul, Instance, Nginx, wait};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

use crate::state::place;
use crate::support::{SOON, gateway, register_one, unique, until_followed, until_served_by};

/// Puts a FIFO at this path, in place of what is there.
fn make_fifo(path: &Path) {
    let _ = fs::remove_file(path);
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    mknodat(CWD, path, FileType::Fifo, mode, 0).expect("a FIFO");
}

#[test]
fn a_configuration_with_an_odd_file_is_refused_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let fifo = folder.path().join("fifo");
    make_fifo(&fifo);
    let large = folder.path().join("large");
    fs::write(&large, vec![b' '; 9 << 20]).expect("a large file");
    for (directive, path, error) in [
        ("consul_token_file", &*fifo, "it is not a regular file"),
        ("consul_token_file", Path::new("/dev/zero"), "it is not a regular file"),
        ("consul_token_file", folder.path(), "is a directory"),
        ("consul_token_file", &large, "it is longer than 65536 bytes"),
        ("consul_ssl_trusted_certificate", &fifo, "it is not a regular file"),
        ("consul_ssl_certificate", Path::new("/dev/zero"), "it is not a regular file"),
        ("consul_ssl_certificate_key", &large, "it is longer than 8388608 bytes"),
    ] {
        let upstream = format!("consul_dynamic web; {directive} {};", path.display());
        let config = gateway("http://127.0.0.1:1", "web", &upstream).started_by(&["timeout", "5"]);
        let checked = config.check();
        assert!(!checked.passed && checked.output.contains(error), "{}", checked.output);
    }
}

#[test]
fn a_token_file_that_becomes_a_fifo_or_endless_keeps_the_last_token() {
    let (consul, backend) = (FakeConsul::start(), Backend::start("a"));
    consul.publish_one("web", 7, &backend);
    let upstream = "consul_dynamic web; consul_token_file token; consul_wait 1s;";
    let nginx = gateway(&consul.url(), "web", upstream).file("token", "first").start();
    let path = nginx.prefix().join("token");
    // As Kubernetes and Vault's agent replace it.
    fs::write(nginx.prefix().join("next"), "second").expect("a token");
    let until_asked_with = |token: &str| {
        let seen = consul.queries().len();
        wait::until("another request", SOON, || consul.queries().len() > seen + 1);
        let last = consul.queries().pop().and_then(|query| query.token);
        assert_eq!(last.as_deref(), Some(token));
    };
    until_asked_with("first");
    let replace_by_link = |target: &str| {
        let link = nginx.prefix().join("link");
        std::os::unix::fs::symlink(target, &link).expect("a link");
        fs::rename(&link, &path).expect("another token");
    };
    replace_by_link("next");
    until_asked_with("second");
    make_fifo(&path);
    until_asked_with("second");
    fs::remove_file(&path).expect("the FIFO");
    replace_by_link("/dev/zero");
    until_asked_with("second");
    fs::remove_file(&path).expect("the link");
    fs::write(&path, "third").expect("a token");
    until_asked_with("third");
}

#[test]
fn a_directory_at_the_path_of_the_state_file_stops_nothing() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let (_folder, path) = place();
    fs::create_dir_all(&path).expect("a directory");
    let parent = path.parent().expect("a parent");
    fs::set_permissions(parent, Permissions::from_mode(0o777)).expect("an open directory");
    fs::write(path.join("precious"), "").expect("a file");
    let config = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;")
        .more(&format!("consul_state {};", path.display()));
    let said = format!("\"{}\" of consul_state is a directory: nothing", path.display());
    let checked = config.clone().check();
    assert!(checked.passed, "{}", checked.output);
    let warned = checked.output.lines().any(|l| l.contains("[warn]") && l.contains(&said));
    assert!(warned, "{}", checked.output);
    let nginx = config.start();
    assert!(nginx.wait_for_log(&said).contains("[warn]"));
    until_served_by(&nginx, "/", "a");
    until_followed(&consul, &nginx, &service, &backends[1]);
    wait::until("the error is in the status", SOON, || {
        nginx.status()["state"]["error"].as_str().is_some_and(|error| error.contains("directory"))
    });
    assert!(path.join("precious").exists());
}

/// The ids of the instances that have an override.
fn overridden(nginx: &Nginx) -> Vec<String> {
    let listed: Value = serde_json::from_str(&nginx.get("/api/").body).expect("JSON");
    let ids = listed["overrides"].as_array().into_iter().flatten().map(|held| held["id"].as_str());
    ids.map(|id| id.unwrap_or_default().to_owned()).collect()
}

#[test]
fn of_more_overrides_than_fit_the_newest_are_taken() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    let ids: Vec<String> = (0..20).map(|n| format!("{service}-{n:02}")).collect();
    for (id, number) in ids.iter().zip(1..) {
        let address = format!("127.0.1.{number}");
        consul.register(&Instance::new(&service, id, backend.address()).address(&address));
    }
    let (_folder, path) = place();
    let start = |size: &str| {
        gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;")
            .file("server.conf", "location /api { consul_api; }")
            .more(&format!("consul_zone consul {size}; consul_state {};", path.display()))
            .start()
    };
    let mut nginx = start("10m");
    for id in &ids {
        let path = format!("/api/services/{service}/instances/{id}/down");
        assert_eq!(nginx.send_json("POST", &path, "").status, 200);
    }
    nginx.quit();
    drop(nginx);
    let nginx = start("128k");
    let said = nginx.wait_for_log("overrides are not taken (there is no room for more than");
    let taken = overridden(&nginx);
    assert!(!taken.is_empty() && taken.len() < ids.len(), "{taken:?}");
    assert!(
        said.contains(&format!(" {} overrides are not taken", ids.len() - taken.len())),
        "{said}"
    );
    nginx.wait_for_log(&format!(" {} overrides of instances taken", taken.len()));
    assert_eq!(taken, ids[ids.len() - taken.len()..]);
}
