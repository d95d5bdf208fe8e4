//! Passes what nginx-sys found out about the nginx sources on as `cfg`s.

/// Since 1.29.7 nginx wraps keepalive around a block's method itself, wherever the line stands.
const KEEPALIVE_ANYWHERE: u64 = 1_029_007;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(nginx_ssl)");
    println!("cargo::rustc-check-cfg=cfg(nginx_keepalive_anywhere)");
    let features = std::env::var("DEP_NGINX_FEATURES").unwrap_or_default();
    if features.split(',').any(|f| f.trim() == "http_ssl") {
        println!("cargo::rustc-cfg=nginx_ssl");
    }
    let version = std::env::var("DEP_NGINX_VERSION_NUMBER").unwrap_or_default();
    if version.parse::<u64>().is_ok_and(|v| v >= KEEPALIVE_ANYWHERE) {
        println!("cargo::rustc-cfg=nginx_keepalive_anywhere");
    }
    // Rust's thread-local destructors must not run in unmapped code after dlclose().
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
