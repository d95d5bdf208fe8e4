//! C code of the tests' own.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nginx_consul_e2e::nginx::workspace;

use crate::conf_errors::nginx_version;

/// Compiles a shared library, and has it named so.
#[track_caller]
pub(crate) fn library(name: &str, source: &str, flags: &[String]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (file, library) = (folder.join(format!("{name}.c")), folder.join(format!("{name}.so")));
    // Another run may use the library: it is replaced, not written.
    let part = folder.join(format!("{name}.{}.so", std::process::id()));
    fs::write(&file, source).expect("the source");
    let options = ["-shared", "-fPIC", "-O1", "-g", "-Wall", "-Werror"].map(str::to_owned);
    compile(&part, &file, &[&options, flags].concat());
    fs::rename(&part, &library).expect("the library");
    library
}

/// Makes `output` of the C code in a file.
#[track_caller]
pub(crate) fn compile(output: &Path, source: &Path, flags: &[String]) {
    let mut compiler = Command::new("cc");
    let made = compiler.arg("-o").args([output, source]).args(flags).output();
    let made = made.expect("cc runs: scripts/deps build installs it");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// What finds the headers of the nginx under test: those that our module was built with.
pub(crate) fn headers() -> Vec<String> {
    let (major, minor, patch) = nginx_version();
    let source = env::var_os("NGINX_SOURCE_DIR")
        .map_or_else(|| PathBuf::from("/usr/share/nginx/src"), PathBuf::from);
    let build = env::var_os("NGINX_BUILD_DIR").map_or_else(
        || workspace().join(format!("target/nginx-{major}.{minor}.{patch}/objs")),
        PathBuf::from,
    );
    // Some versions lack some of them.
    let folders = [
        "core",
        "event",
        "event/modules",
        "event/quic",
        "os/unix",
        "http",
        "http/modules",
        "http/v2",
        "http/v3",
    ];
    let folders = folders.map(|folder| source.join("src").join(folder)).into_iter().chain([build]);
    folders.map(|folder| format!("-I{}", folder.display())).collect()
}
