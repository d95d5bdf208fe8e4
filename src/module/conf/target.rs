//! Makes the watcher's targets from an upstream's settings.

use std::sync::Arc;

use nginx_consul_core::address::AddressFilter;
use nginx_consul_core::consul::server::without_credentials;
use nginx_consul_core::model::{MetaKeys, Query, Selection};
use nginx_consul_core::watch::{Endpoint, Policy, Server, Target, Timing, Tls, TlsOptions, Token};

use super::args::Parsed;
use super::settings::Settings;
use super::srv::DynamicConf;

/// Makes targets; those with the same settings share an endpoint, and so connections.
#[derive(Default)]
pub(super) struct TargetMaker {
    endpoints: Vec<Arc<Endpoint>>,
    /// The keys of `Service.Meta` that variables need.
    meta: MetaKeys,
    /// Read when the first upstream needs it.
    environment: Option<Environment>,
}

/// What Consul's own environment variables say
/// (<https://developer.hashicorp.com/consul/commands#environment-variables>). Read in the master,
/// because workers lose their environment.
struct Environment {
    server: Server,
    token: Option<Token>,
}

impl TargetMaker {
    pub(super) fn new(meta: MetaKeys) -> TargetMaker {
        TargetMaker { meta, ..TargetMaker::default() }
    }

    /// The targets of an upstream, one for each datacenter. The error names the directive.
    pub(super) fn targets(
        &mut self,
        settings: Settings,
        dynamic: &DynamicConf,
    ) -> Parsed<Vec<Target>> {
        let target = self.target(settings, dynamic)?;
        if dynamic.says.datacenters.is_empty() {
            return Ok(vec![target]);
        }
        let of = |datacenter: &String| {
            let query = Query { datacenter: Some(datacenter.clone()), ..target.query.clone() };
            Target { query, ..target.clone() }
        };
        Ok(dynamic.says.datacenters.iter().map(of).collect())
    }

    fn target(&mut self, settings: Settings, dynamic: &DynamicConf) -> Parsed<Target> {
        let at = |e: String| format!("{e} for \"consul_dynamic\" in {}", dynamic.place);
        let (retry_min, retry_max) = settings.retry();
        let timing = Timing {
            wait: settings.wait(),
            retry_min,
            retry_max,
            max_stale: settings.max_stale(),
            resolve: settings.resolve(),
            poll: settings.poll(),
        };
        let policy = Policy { on_empty: settings.on_empty(), max_removal: settings.max_removal() };
        let addresses = AddressFilter { allow: settings.allow(), deny: settings.deny() };
        Ok(Target {
            query: Query { meta: self.meta.clone(), ..dynamic.says.query.clone() },
            selection: Selection { addresses, ..dynamic.says.selection.clone() },
            endpoint: self.endpoint(settings).map_err(at)?,
            timing,
            policy,
        })
    }

    fn endpoint(&mut self, mut settings: Settings) -> Parsed<Arc<Endpoint>> {
        if settings.servers.is_none() || settings.token.is_none() {
            let environment = match &mut self.environment {
                Some(known) => known,
                unknown => unknown.insert(Environment::read()?),
            };
            settings.servers.get_or_insert_with(|| vec![environment.server.clone()]);
            settings.token = settings.token.or_else(|| environment.token.clone());
        }
        let (connect_timeout, max_body) = (settings.connect_timeout(), settings.max_body() as u64);
        let endpoint = Endpoint {
            tls: self.tls(&mut settings)?,
            servers: settings.servers.unwrap_or_default(),
            token: settings.token,
            connect_timeout,
            max_body,
        };
        if let Some(known) = self.endpoints.iter().find(|known| ***known == endpoint) {
            return Ok(Arc::clone(known));
        }
        let endpoint = Arc::new(endpoint);
        self.endpoints.push(Arc::clone(&endpoint));
        Ok(endpoint)
    }

    /// Reading certificates is slow, so equal options share the result.
    fn tls(&self, settings: &mut Settings) -> Parsed<Tls> {
        let client = match (settings.ssl_certificate.take(), settings.ssl_key.take()) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err("no \"consul_ssl_certificate_key\" is defined".into()),
            (None, Some(_)) => return Err("no \"consul_ssl_certificate\" is defined".into()),
        };
        let options = TlsOptions {
            trusted: settings.ssl_trusted.take(),
            client,
            verify: settings.ssl_verify(),
            name: settings.ssl_name.take(),
        };
        if let Some(known) = self.endpoints.iter().find(|known| *known.tls.options() == options) {
            return Ok(known.tls.clone());
        }
        if options == TlsOptions::default() {
            return Ok(Tls::default());
        }
        Tls::new(options).map_err(|e| format!("\"consul_ssl_*\" directives: {e}"))
    }
}

impl Environment {
    fn read() -> Parsed<Environment> {
        let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let url = variable("CONSUL_HTTP_ADDR").unwrap_or_else(|| "http://127.0.0.1:8500".into());
        let server = url.parse().map_err(|e| {
            let url = without_credentials(&url);
            format!("invalid URL \"{url}\" in CONSUL_HTTP_ADDR: {e}")
        })?;
        let token = match variable("CONSUL_HTTP_TOKEN_FILE") {
            Some(path) => Some((Token::file(path.as_ref()), "CONSUL_HTTP_TOKEN_FILE")),
            None => variable("CONSUL_HTTP_TOKEN").map(|v| (Token::value(&v), "CONSUL_HTTP_TOKEN")),
        };
        let token = token
            .map(|(token, source)| token.map_err(|e| format!("invalid token in {source}: {e}")));
        Ok(Environment { server, token: token.transpose()? })
    }
}
