//! Passes what nginx-sys found out about the nginx sources on as `cfg`s.

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
    let features = std::env::var("DEP_NGINX_FEATURES").unwrap_or_default();
    let has = |feature| features.split(',').any(|f| f.trim() == feature);
    if has("http_ssl") {
        println!("cargo::rustc-cfg=nginx_ssl");
    }
    if has("pcre") {
        println!("cargo::rustc-cfg=nginx_pcre");
    }
    let version = std::env::var("DEP_NGINX_VERSION_NUMBER").unwrap_or_default();
    let is_since = |since| version.parse::<u64>().is_ok_and(|v| v >= since);
    if is_since(KEEPALIVE_ANYWHERE) {
        println!("cargo::rustc-cfg=nginx_keepalive_anywhere");
    }
    if is_since(PEERS_CONFIG) {
        println!("cargo::rustc-cfg=nginx_peers_config");
    }
    // Rust's thread-local destructors must not run in unmapped code after dlclose().
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
