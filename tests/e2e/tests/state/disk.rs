//! The state file's disk is full, or its directory can't be written.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nginx_consul_e2e::{Agent, Backend, wait};

use super::{place, saved, until_saved, with_state};
use crate::support::{SOON, addresses, register_one, tally, unique, until_served_by};

/// Breaks saving and mends it again: the old file stays meanwhile, log and status say why.
fn breaks_and_recovers(path: &Path, why: &str, set_broken: impl Fn(bool)) {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register_one(&consul, &service, &backends[0]);
    let nginx = with_state(&consul.url(), &service, path, "consul_state %%STATE%%;").start();
    until_saved(path, &service, &[&backends[0]]);
    set_broken(true);
    register_one(&consul, &service, &backends[1]);
    let line = nginx.wait_for_log("can't be written");
    let name = path.display();
    assert!(line.contains("[error]") && line.contains(why), "{line}");
    assert!(line.contains(&format!("consul: state file \"{name}\"")), "{line}");
    let error = nginx.status()["state"]["error"].clone();
    assert!(error.as_str().is_some_and(|e| e.contains(why)), "{error}");
    until_served_by(&nginx, "/", "a b");
    // Tries again every second.
    wait::holds("it is said once", Duration::from_millis(2200), || {
        nginx.logged("can't be written").len() == 1
    });
    assert_eq!(saved(path, &service), addresses(&[&backends[0]]), "the old file");
    set_broken(false);
    until_saved(path, &service, &[&backends[0], &backends[1]]);
    nginx.wait_for_log("written again after");
    wait::until("no error in status", SOON, || nginx.status()["state"]["error"].is_null());
    register_one(&consul, &service, &backends[2]);
    until_saved(path, &service, &[&backends[0], &backends[1], &backends[2]]);
    assert_eq!(nginx.logged("written again").len(), 1);
}

/// [`breaks_and_recovers`] with the directory's mode.
fn breaks_by_mode(path: &Path) {
    let directory = path.parent().expect("its folder").to_owned();
    breaks_and_recovers(path, "Permission denied", |broken| {
        let mode = if broken { 0o500 } else { 0o700 };
        fs::set_permissions(&directory, Permissions::from_mode(mode)).expect("another mode");
    });
}

#[test]
fn a_directory_that_becomes_unwritable_keeps_the_old_file() {
    let (_folder, path) = place();
    breaks_by_mode(&path);
}

/// A tiny file system, unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    /// `None` where this process may not mount.
    fn mount(at: &Path) -> Option<Disk> {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs"]).arg(at);
        command.status().is_ok_and(|status| status.success()).then(|| Disk(at.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_keeps_the_old_file() {
    let (folder, path) = place();
    let Some(_disk) = Disk::mount(folder.path()) else {
        eprintln!("no right to mount a disk that could be full: another failure takes its place");
        return breaks_by_mode(&path);
    };
    let filler = folder.path().join("filler");
    breaks_and_recovers(&path, "No space left on device", |broken| {
        if broken {
            // As much as there is room for.
            let full = fs::write(&filler, vec![0; 1 << 20]);
            assert!(full.is_err(), "the disk took it all");
        } else {
            fs::remove_file(&filler).expect("the filler");
        }
    });
}

#[test]
fn a_directory_that_the_workers_cant_write_is_said_at_start_and_by_the_test() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let (folder, _) = place();
    // Of root, or of the only user there is, who may not write it either.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o555)).expect("another mode");
    let path = folder.path().join("consul");
    let config = with_state(&consul.url(), &service, &path, "consul_state %%STATE%%;");
    let said =
        format!("directory \"{}\" of consul_state can't be written by", folder.path().display());
    let checked = config.clone().check();
    assert!(checked.passed, "{}", checked.output);
    let warned = checked.output.lines().any(|l| l.contains("[warn]") && l.contains(&said));
    assert!(warned, "{}", checked.output);
    assert!(!checked.output.contains("can't be made"), "{}", checked.output);
    let nginx = config.start();
    let line = nginx.wait_for_log(&said);
    assert!(line.contains("[warn]") && line.contains("Permission denied"), "{line}");
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
    assert!(!path.exists());
}
