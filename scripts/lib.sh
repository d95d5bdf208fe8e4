# Shared by the verbs of this folder; sourced, not run.
# Sets ROOT (the checkout) and TARGET (cargo's target directory), and changes to ROOT.
set -Eeuo pipefail
# Nothing ends without a word.
trap 'echo "$(basename "$0"): failed: $BASH_COMMAND" >&2' ERR
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
[[ $TARGET == /* ]] || TARGET=$ROOT/$TARGET
CACHE=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/nginx-consul
# nginx lives in sbin, which a plain user's PATH lacks; the last one is where scripts/deps
# puts the consul of a user who may not write to /usr/local/bin.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:$CACHE/bin
export PATH

say() { printf '%s\n' "$*"; }
warn() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
die() {
    warn "$@"
    exit 1
}

# Prints the usage of a verb: its leading comment lines.
usage() { sed -n '2,/^[^#]/{s/^##\{0,1\} \{0,1\}//p}' "$0" | sed '/^set /d'; }

# The nginx to build for and to test: TEST_NGINX_BINARY, else the one on PATH.
nginx_binary() {
    if [[ -n ${TEST_NGINX_BINARY:-} ]]; then
        [[ -x $TEST_NGINX_BINARY ]] || die "TEST_NGINX_BINARY=$TEST_NGINX_BINARY is no executable file"
        realpath "$TEST_NGINX_BINARY"
    else
        command -v nginx || die "no nginx on PATH: run scripts/deps, or set TEST_NGINX_BINARY"
    fi
}

# "1.22.1" from what `nginx -v` prints.
nginx_version() { "$1" -v 2>&1 | sed -n 's|^nginx version: [^/]*/\([0-9.]*\).*|\1|p'; }

# "1.22.1" from the nginx sources in directory $1.
nginx_source_version() {
    sed -n 's/^#define NGINX_VERSION  *"\([^"]*\)"/\1/p' "$1/src/core/nginx.h"
}

# Sets NGINX_SOURCE_DIR and NGINX_BUILD_DIR, which nginx-sys reads, to headers that match the
# nginx binary $1. Sources: NGINX_SOURCE_DIR, else Debian's nginx-dev. They are configured out of
# tree, once per version, unless NGINX_BUILD_DIR names a configured tree.
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

# What the tests and programs of tests/e2e read to find the two binaries under test.
export_binaries() {
    TEST_NGINX_BINARY=$(nginx_binary)
    NGINX_CONSUL_MODULE=$TARGET/release/libngx_http_consul_module.so
    export TEST_NGINX_BINARY NGINX_CONSUL_MODULE
}
