# Shared by the scripts of this folder; sourced, not run.
# Sets ROOT (the checkout) and TARGET (cargo's target directory), and changes to ROOT.
set -Eeuo pipefail
# No script fails without a message.
trap 'echo "$(basename "$0"): failed: $BASH_COMMAND" >&2' ERR
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
[[ $TARGET == /* ]] || TARGET=$ROOT/$TARGET
CACHE=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/nginx-consul
# nginx is in sbin, which an unprivileged user's PATH lacks; scripts/deps installs consul in the last
# directory if the user may not write to /usr/local/bin.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:$CACHE/bin
export PATH

say() { printf '%s\n' "$*"; }
warn() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
die() {
    warn "$@"
    exit 1
}

# Prints the usage of a script: its leading comment lines.
usage() { sed -n '2,/^[^#]/{s/^##\{0,1\} \{0,1\}//p}' "$0" | sed '/^set /d'; }

# Prints the nginx to build for and to test: TEST_NGINX_BINARY, else the one on PATH.
nginx_binary() {
    if [[ -n ${TEST_NGINX_BINARY:-} ]]; then
        [[ -x $TEST_NGINX_BINARY ]] || die "TEST_NGINX_BINARY=$TEST_NGINX_BINARY is no executable file"
        realpath "$TEST_NGINX_BINARY"
    else
        command -v nginx || die "no nginx on PATH: run scripts/deps, or set TEST_NGINX_BINARY"
    fi
}

# Prints "1.22.1" from the output of `nginx -v`.
nginx_version() { "$1" -v 2>&1 | sed -n 's|^nginx version: [^/]*/\([0-9.]*\).*|\1|p'; }

# Prints "1.22.1" from the nginx sources in directory $1.
nginx_source_version() {
    sed -n 's/^#define NGINX_VERSION  *"\([^"]*\)"/\1/p' "$1/src/core/nginx.h"
}

# Sets NGINX_SOURCE_DIR and NGINX_BUILD_DIR, which nginx-sys reads, to headers that match the nginx binary
# $1. Sources: NGINX_SOURCE_DIR, else Debian's nginx-dev. This configures them out of tree, once per
# version, unless NGINX_BUILD_DIR names a configured tree.
prepare_nginx() {
    local binary=$1 version headers stamp
    version=$(nginx_version "$binary")
    [[ -n $version ]] || die "$binary -v names no nginx version"
    if [[ -z ${NGINX_SOURCE_DIR:-} && -n ${NGINX_BUILD_DIR:-} ]]; then
        NGINX_SOURCE_DIR=$(dirname "$NGINX_BUILD_DIR")
    fi
    : "${NGINX_SOURCE_DIR:=/usr/share/nginx/src}"
    [[ -f $NGINX_SOURCE_DIR/src/core/nginx.h ]] ||
        die "no nginx sources in $NGINX_SOURCE_DIR: run scripts/deps build, or set NGINX_SOURCE_DIR"
    headers=$(nginx_source_version "$NGINX_SOURCE_DIR")
    [[ $headers == "$version" ]] || die "$binary is nginx $version, but the sources in" \
        "$NGINX_SOURCE_DIR are nginx $headers: nginx loads only modules built for its own version." \
        "Set NGINX_SOURCE_DIR to sources of $version, or TEST_NGINX_BINARY to an nginx $headers"
    if [[ -z ${NGINX_BUILD_DIR:-} ]]; then
        NGINX_BUILD_DIR=$TARGET/nginx-$version/objs
        mkdir -p "$NGINX_BUILD_DIR"
        # Debian may patch headers without a new version number.
        stamp="$NGINX_SOURCE_DIR $(cat "$NGINX_SOURCE_DIR"/src/*/*.h | cksum)"
        (
            flock 9
            [[ $(cat "$NGINX_BUILD_DIR/.configured" 2>/dev/null) == "$stamp" ]] || configure_nginx "$version"
            echo "$stamp" >"$NGINX_BUILD_DIR/.configured"
        ) 9>"$TARGET/nginx-$version/lock"
    fi
    export NGINX_SOURCE_DIR NGINX_BUILD_DIR
}

# Runs nginx's configure in the sources with its output in NGINX_BUILD_DIR.
configure_nginx() {
    local log=$NGINX_BUILD_DIR/configure.log NGX_CONF_FLAGS configure=./configure
    say "build: configuring the headers of nginx $1 in $NGINX_BUILD_DIR"
    # --with-compat is what makes one module fit every distribution's build of a version.
    NGX_CONF_FLAGS=(--with-compat --with-threads --with-http_ssl_module)
    (
        cd "$NGINX_SOURCE_DIR"
        [[ -x $configure ]] || configure=auto/configure
        # Debian's own flags, from nginx-dev.
        if [[ -f conf_flags ]]; then . ./conf_flags; fi
        "$configure" "${NGX_CONF_FLAGS[@]}" --builddir="$NGINX_BUILD_DIR"
    ) >"$log" 2>&1 9>&- || {
        tail -20 "$log" >&2
        die "configure of $NGINX_SOURCE_DIR failed, its output is in $log"
    }
}

# Exports the variables from which the programs of tests/e2e find the two binaries under test.
export_binaries() {
    TEST_NGINX_BINARY=$(nginx_binary)
    NGINX_CONSUL_MODULE=$TARGET/release/libngx_http_consul_module.so
    export TEST_NGINX_BINARY NGINX_CONSUL_MODULE
}

# Builds the end-to-end tests and prints the path of their program.
test_program() {
    cargo test -p nginx-consul-e2e --test main --no-run --message-format json |
        sed -n '/"kind":\["test"\]/s/.*"executable":"\([^"]*\)".*/\1/p'
}

# The Consul-facing tests, as filters of test names: they run plain and dressed, and with each consul of
# scripts/matrix --consul.
CONSUL_FACING=(discovery:: failures:: first_answers:: validation:: invariants:: lifecycle:: logs:: many::
    on_demand:: outages:: params:: removal:: ready:: secured:: sources:: status:: tiers:: trouble::
    upheaval::)

DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# Prints the archive of this machine's Debian: the first source whose suite is its own release.
debian_archive() {
    local codename
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # Both formats of apt's sources become lines "uri suite... component..."; either may be absent.
    {
        sed -n 's/^deb  *\(\[[^]]*\] *\)\{0,1\}//p' /etc/apt/sources.list /etc/apt/sources.list.d/*.list || true
        awk -v RS= -F'\n' '{ uris = suites = comps = ""
            for (i = 1; i <= NF; i++) {
                if (sub(/^URIs: */, "", $i)) uris = $i
                else if (sub(/^Suites: */, "", $i)) suites = $i
                else if (sub(/^Components: */, "", $i)) comps = $i }
            split(uris, u, " "); print u[1], suites, comps }' /etc/apt/sources.list.d/*.sources || true
    } 2>/dev/null | awk -v codename="$codename" '{ suite = main = 0
            for (i = 2; i <= NF; i++) { suite += $i == codename; main += $i == "main" }
            if (suite && main) { print $1; exit } }'
}

# Runs apt-get -qq $3… for Debian's release $1 only. Its files are in the absolute directory $2, which
# keeps the release out of the machine's package lists. No package counts as installed there, so apt
# downloads a package with all its dependencies. apt checks the signatures.
debian_apt() {
    local suite=$1 dir=$2 archive
    shift 2
    archive=$(debian_archive)
    [[ -n $archive ]] || die "no Debian archive in apt's sources to take packages of $suite from"
    [[ -f $DEBIAN_KEYRING ]] || die "no $DEBIAN_KEYRING: run scripts/deps matrix"
    local apt=(apt-get -qq -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=-
        -o Dir::State::Lists="$dir/lists" -o Dir::Cache="$dir/cache" -o Dir::State::status=/dev/null
        -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none -o Acquire::Retries=3)
    if [[ ! -f $dir/sources.list ]]; then
        mkdir -p "$dir"/{lists,cache/archives}/partial
        echo "deb [signed-by=$DEBIAN_KEYRING] $archive $suite main" >"$dir/sources.list"
        "${apt[@]}" update || return
    fi
    "${apt[@]}" "$@"
}

# Downloads the crate nginx-src, and prints the path of the sources of nginx 1.28 in it.
nginx_crate_sources() {
    local probe=$TARGET/nginx-src
    mkdir -p "$probe/src"
    : >"$probe/src/lib.rs"
    cat >"$probe/Cargo.toml" <<'TOML'
[package]
name = "probe"
version = "0.0.0"
edition = "2024"
[dependencies]
nginx-src = "=1.28.5"
[workspace]
TOML
    cargo metadata --format-version 1 --manifest-path "$probe/Cargo.toml" |
        python3 -c 'import json, os, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] == "nginx-src":
        print(os.path.join(os.path.dirname(package["manifest_path"]), "nginx"))'
}

# Builds nginx 1.28 in directory $1, once, with the options of configure that follow; the binary is
# $1/objs/nginx, and $1 are its sources.
build_nginx_1_28() {
    local dir=$1 log=$1.log
    shift
    [[ ! -x $dir/objs/nginx || $dir/objs/nginx -ot scripts/lib.sh ]] || return 0
    rm -rf "$dir"
    mkdir -p "$(dirname "$dir")"
    cp -r "$(nginx_crate_sources)" "$dir"
    chmod -R u+w "$dir"
    say "$(basename "$0"): building nginx $(nginx_source_version "$dir")"
    (
        cd "$dir"
        # `nginx -t` opens these paths unless the configuration names others.
        auto/configure --pid-path="$dir/nginx.pid" --http-log-path="$dir/access.log" --with-compat \
            --with-debug --with-threads --with-http_ssl_module --with-http_v2_module \
            --with-http_auth_request_module --with-http_stub_status_module "$@"
        make -j"$(nproc)"
    ) >"$log" 2>&1 || {
        tail -20 "$log" >&2
        die "the build of nginx failed, its output is in $log"
    }
}
