//! Passes what nginx-sys found out about the nginx sources on as `cfg`s, and finds out where the bit
//! fields of nginx's structs are.

use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "src/module/ffi/bits/probe.rs"]
mod probe;

/// Since 1.29.7 nginx wraps keepalive around a block's method itself, wherever the line stands.
const KEEPALIVE_ANYWHERE: u64 = 1_029_007;
/// Since 1.27.3 a list of peers has a number by which methods know their tables to be of it.
const PEERS_CONFIG: u64 = 1_027_003;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(nginx_ssl)");
    println!("cargo::rustc-check-cfg=cfg(nginx_pcre)");
    println!("cargo::rustc-check-cfg=cfg(nginx_keepalive_anywhere)");
    println!("cargo::rustc-check-cfg=cfg(nginx_peers_config)");
    let features = env::var("DEP_NGINX_FEATURES").unwrap_or_default();
    let has = |feature| features.split(',').any(|f| f.trim() == feature);
    if has("http_ssl") {
        println!("cargo::rustc-cfg=nginx_ssl");
    }
    if has("pcre") {
        println!("cargo::rustc-cfg=nginx_pcre");
    }
    let version = env::var("DEP_NGINX_VERSION_NUMBER").unwrap_or_default();
    let is_since = |since| version.parse::<u64>().is_ok_and(|v| v >= since);
    if is_since(KEEPALIVE_ANYWHERE) {
        println!("cargo::rustc-cfg=nginx_keepalive_anywhere");
    }
    if is_since(PEERS_CONFIG) {
        println!("cargo::rustc-cfg=nginx_peers_config");
    }
    write_bits();
    // Rust's thread-local destructors must not run in unmapped code after dlclose().
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}

/// Writes `bits.rs` for `ffi::bits`. The compiler is the target's, and what it makes is not run.
fn write_bits() {
    const FOLDER: &str = "src/module/ffi/bits";
    println!("cargo::rerun-if-changed={FOLDER}");
    let mut compiler = cc::Build::new();
    compiler.file(Path::new(FOLDER).join("list.c"));
    // What nginx-sys has for its own bindings.
    compiler.includes(env::split_paths(&env::var("DEP_NGINX_INCLUDE").unwrap_or_default()));
    for define in env::var("DEP_NGINX_CFLAGS").unwrap_or_default().split("-D").map(str::trim) {
        if !define.is_empty() {
            compiler.flag(format!("-D{define}"));
        }
    }
    // Code that is not generated before linking would have no bytes to read.
    compiler.flag_if_supported("-fno-lto").debug(false).warnings(false);
    let objects = compiler.try_compile_intermediates();
    let objects = objects.unwrap_or_else(|e| panic!("{FOLDER}/list.c does not compile: {e}"));
    let object = fs::read(&objects[0]).expect("the object file");
    let is_little_endian = env::var("CARGO_CFG_TARGET_ENDIAN").is_ok_and(|e| e == "little");
    let code = probe::read(&object).and_then(|fields| probe::constants(&fields, is_little_endian));
    let code = code.unwrap_or_else(|e| panic!("{FOLDER}/list.c: {e}"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("bits.rs"), code).expect("OUT_DIR can be written to");
}
