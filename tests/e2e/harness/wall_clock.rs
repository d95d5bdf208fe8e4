//! A wall clock that a test sets while nginx runs; the monotonic clock goes on. Debian's libfaketime
//! makes both.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::{Config, Nginx, wait};

/// What nginx's processes need of the environment, which nginx would drop.
const VARIABLES: [&str; 5] = [
    "LD_PRELOAD",
    "FAKETIME_TIMESTAMP_FILE",
    "FAKETIME_NO_CACHE",
    // Else nginx's timers would be those of a broken kernel.
    "FAKETIME_DONT_FAKE_MONOTONIC",
    "NO_FAKE_STAT",
];

/// How soon nginx shows the time that was set.
const SOON: Duration = Duration::from_secs(5);

/// The wall clock of one nginx or several.
#[derive(Debug)]
pub struct WallClock {
    folder: TempDir,
}

impl Default for WallClock {
    /// One that is right.
    ///
    /// # Panics
    /// If there is no place for its file.
    fn default() -> WallClock {
        let folder = tempfile::tempdir().expect("a folder");
        // Workers run as another user.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("open");
        let clock = WallClock { folder };
        clock.write(0);
        clock
    }
}

impl WallClock {
    /// Has nginx show this time: its `server`s that include `server*.conf` say which, at `/msec`.
    ///
    /// # Panics
    /// If libfaketime is not installed.
    pub fn of(&self, config: Config) -> Config {
        let values = [library(), self.file()].map(|path| path.display().to_string());
        let values = values.into_iter().chain(["1", "1", "1"].map(str::to_owned));
        let config = config.file("server-msec.conf", "location = /msec { return 200 $msec; }");
        VARIABLES.iter().zip(values).fold(config, |config, (name, value)| {
            config.main(&format!("env {name};\n")).environment(name, value)
        })
    }

    /// Sets it to so many seconds from the right time.
    pub fn set(&self, seconds: i64) {
        self.write(seconds);
    }

    /// Sets it to so many seconds from the right time, and waits until nginx, and our module in it,
    /// show that.
    ///
    /// # Panics
    /// If they don't.
    pub fn step(&self, nginx: &Nginx, seconds: i64) {
        self.set(seconds);
        wait::until("nginx's wall clock is set", SOON, || {
            let of_nginx = nginx.outcome("/msec").parse().expect("nginx's time, in seconds");
            let of_module = nginx.status()["time_ms"].as_f64().expect("our time") / 1000.0;
            let right = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs_f64();
            let is_set = |time: f64| (time - right - seconds as f64).abs() < 60.0;
            is_set(of_nginx) && is_set(of_module)
        });
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }

    fn write(&self, seconds: i64) {
        let part = self.folder.path().join("part");
        fs::write(&part, format!("{seconds:+}\n")).expect("a file");
        fs::rename(part, self.file()).expect("the file");
    }
}

/// libfaketime, for programs with threads.
fn library() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").expect("/usr/lib").flatten();
    let in_folder = |folder: fs::DirEntry| folder.path().join("faketime/libfaketimeMT.so.1");
    let found = folders.map(in_folder).find(|path| path.exists());
    found.expect("no libfaketime: scripts/deps test installs it")
}
