//! The ways to balance that are compared, each as an nginx configuration.

use std::fmt::Write as _;

use nginx_consul_e2e::nginx;

use crate::stage::Stage;

/// Where the N list entries point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    /// At few sockets, so that connections are reused and picking is what differs.
    Hot,
    /// Each at an address of its own.
    Distinct,
}

impl Setup {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Setup::Hot => "hot",
            Setup::Distinct => "distinct",
        }
    }
}

/// A way to balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Stock round robin over `server` lines.
    Static,
    /// Stock `random` over `server` lines.
    Random,
    /// The recipe: Lua decodes the list, and picks, for each request.
    LuaSeed,
    /// The recipe with the decoded list kept by each worker.
    LuaCached,
    /// Ours, with this `consul_balance`.
    Ours(&'static str),
}

impl Variant {
    /// All, the one to compare with first.
    pub(crate) const ALL: [Variant; 7] = [
        Variant::Static,
        Variant::Random,
        Variant::LuaSeed,
        Variant::LuaCached,
        Variant::Ours("round_robin"),
        Variant::Ours("random"),
        Variant::Ours("least_conn"),
    ];

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Variant::Static => "static",
            Variant::Random => "random",
            Variant::LuaSeed => "lua-seed",
            Variant::LuaCached => "lua-cached",
            Variant::Ours("random") => "consul-random",
            Variant::Ours(method) => method,
        }
    }

    /// Its name in the tables.
    pub(crate) fn title(self) -> String {
        match self {
            Variant::Static => "static, stock round robin".to_owned(),
            Variant::Random => "static, stock `random`".to_owned(),
            Variant::LuaSeed => "Lua recipe".to_owned(),
            Variant::LuaCached => "Lua recipe, decoded list kept".to_owned(),
            Variant::Ours(method) => format!("**ours, `{method}`**"),
        }
    }

    /// Whether it is measured in this setup.
    pub(crate) fn has(self, setup: Setup) -> bool {
        setup == Setup::Hot || !matches!(self, Variant::LuaSeed | Variant::LuaCached)
    }

    /// Whether the cost of a request grows with the list so much that few are enough.
    pub(crate) fn is_slow(self) -> bool {
        self == Variant::LuaSeed
    }

    /// The configuration, without what differs between runs under valgrind and others.
    pub(crate) fn configuration(
        self,
        stage: &Stage,
        setup: Setup,
        length: usize,
        poll_seconds: u32,
    ) -> String {
        let (modules, http) = match self {
            Variant::Static => (String::new(), upstream(&stage.server_lines(setup, length))),
            Variant::Random => {
                let lines = stage.server_lines(setup, length);
                (String::new(), upstream(&format!("random;\n{lines}")))
            }
            Variant::LuaSeed | Variant::LuaCached => {
                let cached = self == Variant::LuaCached;
                (lua_modules(), lua(stage, length, poll_seconds, cached))
            }
            Variant::Ours(method) => ours(stage, &stage.service(setup, length), method),
        };
        whole(&modules, &http)
    }
}

/// A configuration in which our module follows `service`.
pub(crate) fn following(stage: &Stage, service: &str) -> String {
    let (modules, http) = ours(stage, service, "round_robin");
    whole(&modules, &http)
}

fn whole(modules: &str, http: &str) -> String {
    format!(
        "{modules}daemon off;\nworker_processes 1;\npid nginx.pid;\nerror_log error.log notice;\n\
             worker_rlimit_nofile 16384;\nevents {{ worker_connections 8192; }}\n\
             http {{\naccess_log off;\nkeepalive_requests 100000000;\n\
             client_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\n\
             uwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\n{http}\n\
             server {{ listen 127.0.0.1:%%PORT%%; location / {{ proxy_pass http://peers; \
             proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n}}\n"
    )
}

/// What to load, and what to put into `http`.
fn ours(stage: &Stage, service: &str, method: &str) -> (String, String) {
    let block = format!("consul_dynamic {service};\nconsul_balance {method};\n");
    let http = format!("consul_server {};\n{}", stage.consul_url(), upstream(&block));
    (format!("load_module {};\n", nginx::module().display()), http)
}

fn upstream(block: &str) -> String {
    format!("upstream peers {{\n{block}keepalive 64;\nkeepalive_requests 100000000;\n}}")
}

/// Debian's Lua for nginx.
fn lua_modules() -> String {
    let mut lines = String::new();
    for module in ["ndk_http_module.so", "ngx_http_lua_module.so"] {
        let _ = writeln!(lines, "load_module /usr/lib/nginx/modules/{module};");
    }
    lines
}

fn lua(stage: &Stage, length: usize, poll_seconds: u32, cached: bool) -> String {
    let pick = if cached { "pick_cached" } else { "pick_decoding" };
    let url =
        format!("{}/v1/health/service/{}?passing", stage.consul_url(), stage.lua_service(length));
    let block =
        format!("server 0.0.0.1 down;\nbalancer_by_lua_block {{ require(\"recipe\").{pick}() }}\n");
    format!(
        "lua_package_path '{}/?.lua;/usr/share/lua/5.1/?.lua;;';\n\
         lua_package_cpath '/usr/lib/x86_64-linux-gnu/lua/5.1/?.so;;';\n\
         lua_shared_dict consul 20m;\n\
         init_by_lua_block {{ require(\"recipe\").start(\"{url}\", {poll_seconds}) }}\n\
         init_worker_by_lua_block {{ require(\"recipe\").start_worker() }}\n{}",
        stage.recipe_folder().display(),
        upstream(&block)
    )
}
