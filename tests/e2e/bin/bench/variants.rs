//! The ways to balance that are compared, each as an nginx configuration.

use std::fmt::Write as _;

use clap::ValueEnum;
use nginx_consul_e2e::nginx;

use crate::stage::Stage;

/// Where the N list entries point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Setup {
    /// Nearly all weight on 8 of N, so that connections are reused and picking is what differs
    Hot,
    /// N addresses, so nearly each request opens a connection
    Distinct,
}

/// A way to balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// A method of nginx over `server` lines; "round_robin" is the one without a directive.
    Static(&'static str),
    /// The recipe: Lua decodes the list, and picks, for each request.
    LuaDecoding,
    /// The recipe with the decoded list kept by each worker.
    LuaCached,
    /// Ours, with this `consul_balance`.
    Ours(&'static str),
    /// A method of nginx over Consul's instances.
    Over(&'static str),
}

/// Clients have few keys, so that few of N servers are asked and connections to them are kept.
const HASH: &str = "hash $arg_key";
const CONSISTENT: &str = "hash $arg_key consistent";
/// As each group of variants has them.
const STOCK_METHODS: [&str; 6] =
    ["least_conn", "random", "random two least_conn", "ip_hash", HASH, CONSISTENT];
const OUR_METHODS: [&str; 6] =
    ["round_robin", "random", "least_conn", "least_time", HASH, CONSISTENT];

impl Variant {
    /// What the others are compared with.
    pub(crate) const BASE: Variant = Variant::Static("round_robin");

    /// All, the base first.
    pub(crate) fn all() -> Vec<Variant> {
        let mut all = vec![Variant::BASE];
        all.extend(STOCK_METHODS.map(Variant::Static));
        all.extend([Variant::LuaDecoding, Variant::LuaCached]);
        all.extend(OUR_METHODS.map(Variant::Ours));
        all.extend(STOCK_METHODS.map(Variant::Over));
        all
    }

    /// Its name on the command line, "group:method".
    pub(crate) fn name(self) -> String {
        let (group, method) = match self {
            Variant::Static(method) => ("static", method),
            Variant::LuaDecoding => ("lua", "decoding"),
            Variant::LuaCached => ("lua", "cached"),
            Variant::Ours(method) => ("ours", method),
            Variant::Over(method) => ("over", method),
        };
        format!("{group}:{}", method.replace(" $arg_key", "").replace(' ', "_"))
    }

    /// Whether `name` means it: its whole name, its group or its method.
    pub(crate) fn is_named(self, name: &str) -> bool {
        let own = self.name();
        own == name || own.split(':').any(|part| part == name)
    }

    /// Its name in the tables.
    pub(crate) fn title(self) -> String {
        match self {
            Variant::Static("round_robin") => "static, round robin".to_owned(),
            Variant::Static(method) => format!("static, `{}`", shown(method)),
            Variant::LuaDecoding => "Lua recipe".to_owned(),
            Variant::LuaCached => "Lua recipe, decoded list kept".to_owned(),
            Variant::Ours(method) => format!("**ours, `{}`**", shown(method)),
            Variant::Over(method) => format!("nginx's `{}` over Consul", shown(method)),
        }
    }

    /// The same method over `server` lines.
    pub(crate) fn static_twin(self) -> Option<Variant> {
        match self {
            Variant::Over(method) => Some(Variant::Static(method)),
            _ => None,
        }
    }

    /// Whether it is the recipe.
    pub(crate) fn is_lua(self) -> bool {
        matches!(self, Variant::LuaDecoding | Variant::LuaCached)
    }

    /// Whether our module is in it.
    pub(crate) fn is_dynamic(self) -> bool {
        matches!(self, Variant::Ours(_) | Variant::Over(_))
    }

    /// Whether it is measured in this setup.
    pub(crate) fn has(self, setup: Setup) -> bool {
        setup == Setup::Hot || !self.is_lua()
    }

    /// Whether the cost of a request grows with the list so much that few are enough.
    pub(crate) fn is_slow(self) -> bool {
        self == Variant::LuaDecoding
    }

    /// Which addresses it has: where keys name the server, few are used of however many.
    fn setup(self, wanted: Setup) -> Setup {
        match self {
            Variant::Static(m) | Variant::Ours(m) | Variant::Over(m) if m.contains("hash") => {
                Setup::Distinct
            }
            _ => wanted,
        }
    }

    /// The service that its instances are of.
    pub(crate) fn service(self, stage: &Stage, setup: Setup, length: usize) -> String {
        stage.service(self.setup(setup), length)
    }

    /// The configuration, without what differs between runs under valgrind and others.
    pub(crate) fn configuration(
        self,
        stage: &Stage,
        setup: Setup,
        length: usize,
        poll_seconds: u32,
    ) -> String {
        let service = self.service(stage, setup, length);
        let (modules, http) = match self {
            Variant::Static(method) => {
                let lines = stage.server_lines(self.setup(setup), length);
                let method = match method {
                    "round_robin" => String::new(),
                    method => format!("{method};\n"),
                };
                (String::new(), upstream(&(method + &lines)))
            }
            Variant::LuaDecoding | Variant::LuaCached => {
                let cached = self == Variant::LuaCached;
                (lua_modules(), lua(stage, length, poll_seconds, cached))
            }
            Variant::Ours(method) => ours(
                &stage.consul_url(),
                &format!("consul_dynamic {service};\nconsul_balance {method};\n"),
            ),
            Variant::Over(method) => {
                ours(&stage.consul_url(), &format!("{method};\nconsul_dynamic {service};\n"))
            }
        };
        whole(&modules, &http)
    }
}

/// A method's directive without the key.
fn shown(method: &str) -> String {
    method.replace("$arg_key", "key")
}

/// A configuration in which our module follows `service` of the Consul at `url`.
pub(crate) fn following(url: &str, service: &str) -> String {
    let (modules, http) = ours(url, &format!("consul_dynamic {service};\n"));
    whole(&modules, &http)
}

/// A configuration whose upstream has these lines.
pub(crate) fn of_lines(lines: &str) -> String {
    whole("", &upstream(lines))
}

fn whole(modules: &str, http: &str) -> String {
    let dynamic = http.contains("consul_server");
    let status = if dynamic { "location = /consul { consul_status; }" } else { "" };
    format!(
        "{modules}daemon off;\nworker_processes 1;\npid nginx.pid;\nerror_log error.log notice;\n\
             worker_rlimit_nofile 16384;\nevents {{ worker_connections 8192; }}\n\
             http {{\naccess_log off;\nkeepalive_requests 100000000;\n\
             client_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\n\
             uwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\n{http}\n\
             server {{ listen 127.0.0.1:%%PORT%%; {status} \
             location = /pid {{ return 200 $pid; }} location / {{ proxy_pass http://peers; \
             proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n}}\n"
    )
}

/// What to load, and what to put into `http`.
fn ours(server: &str, block: &str) -> (String, String) {
    let http = format!(
        "consul_server {server};\nconsul_zone consul 64m;\nconsul_init_timeout 60s;\n{}",
        upstream(block)
    );
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
