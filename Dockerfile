# nginx-consul on Debian 13: nginx, its headers and the Rust toolchain are all Debian's own.
#   docker build --target test .        builds and runs every test
#   docker build -t nginx-consul .      a small nginx with the module
# scripts/docker-proof runs the same lines in a debootstrap tree, without a container engine.

FROM debian:trixie AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates cargo rustc \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN scripts/deps build
RUN scripts/build

FROM build AS test
RUN scripts/deps test
RUN cargo test -p nginx-consul-core
RUN scripts/e2e

FROM debian:trixie-slim AS runtime
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates nginx \
    && rm -rf /var/lib/apt/lists/* \
    && ln -sf /dev/stdout /var/log/nginx/access.log \
    && ln -sf /dev/stderr /var/log/nginx/error.log
COPY --from=build /src/target/release/libngx_http_consul_module.so /usr/lib/nginx/modules/ngx_http_consul_module.so
# Mount another configuration over it; without consul_server the module asks $CONSUL_HTTP_ADDR.
COPY nginx-conf/minimal.conf /etc/nginx/nginx.conf
COPY nginx-conf/gateway.conf /usr/share/doc/nginx-consul/gateway.conf
RUN nginx -t
EXPOSE 8080
# SIGQUIT: nginx finishes the requests in flight.
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
