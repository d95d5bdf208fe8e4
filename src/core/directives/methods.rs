//! Load balancing methods of other modules in the `upstream` that `consul_dynamic` stands in.

use std::net::Ipv4Addr;

use super::words::Parsed;

/// What a directive is for load balancing.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// A method that nginx ships and that keeps its state with the peers, so that an upstream may
    /// have many sets of them.
    OfPeers,
    /// One that keeps state in the upstream; and the `consul_balance` that does the same.
    OfUpstream(String),
    /// nginx's `sticky`, which wraps the method before it; and, if it keeps state in the upstream,
    /// the `consul_balance` that does the same.
    Sticky(Option<&'static str>),
    /// nginx's `keepalive`, which wraps the method before it.
    Keepalive,
    /// A directive that nginx doesn't ship.
    Foreign,
}

impl Kind {
    /// As the sources of nginx 1.22 to 1.31 have it.
    fn of(module: &str, words: &[&str]) -> Kind {
        let module = module.strip_prefix("ngx_http_upstream_").unwrap_or_default();
        match (module, words) {
            ("least_conn_module", ["least_conn", ..])
            | ("least_time_module", ["least_time", ..])
            | ("ip_hash_module", ["ip_hash", ..])
            | ("hash_module", ["hash", _]) => Kind::OfPeers,
            // The points of the ring.
            ("hash_module", ["hash", key, ..]) => {
                Kind::OfUpstream(format!("hash {key} consistent"))
            }
            // The ranges of the peers' weights.
            ("random_module", ["random", rest @ ..]) => Kind::OfUpstream(match rest {
                ["two", method, ..] if method.starts_with("least_time") => "least_time".into(),
                ["two", ..] => "least_conn".into(),
                _ => "random".into(),
            }),
            // The instance of each session.
            ("sticky_module", ["sticky", "learn", ..]) => Kind::Sticky(Some("hash key consistent")),
            ("sticky_module", ["sticky", ..]) => Kind::Sticky(None),
            ("keepalive_module", ["keepalive", ..]) => Kind::Keepalive,
            _ => Kind::Foreign,
        }
    }

    /// Whether it replaces the method before it, as all do but those that wrap it.
    fn replaces(&self) -> bool {
        matches!(self, Kind::OfPeers | Kind::OfUpstream(_))
    }

    /// The `consul_balance` that does the same as a method that keeps state in the upstream.
    fn instead(&self) -> Option<&str> {
        match self {
            Kind::OfUpstream(method) => Some(method),
            Kind::Sticky(method) => *method,
            _ => None,
        }
    }
}

/// A directive that nginx has read.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The directive, from its name on.
    pub words: Vec<String>,
    /// Where it stands, as `file:line`.
    pub place: String,
    /// Its module, and the file of that.
    pub module: (&'a str, &'a str),
    /// It has set the upstream's `init_upstream`.
    pub has_set_method: bool,
}

/// A directive that is about load balancing.
#[derive(Debug)]
struct Directive {
    kind: Kind,
    /// Its words.
    text: String,
    place: String,
    has_set_method: bool,
    /// The directive and its module, for errors and log lines.
    shown: String,
}

/// Directives of other modules in one `upstream`.
#[derive(Debug, Default)]
pub struct Directives {
    methods: Vec<Directive>,
    placeholders: Vec<(String, String)>,
}

impl Directives {
    /// Notes a directive if it is about load balancing or a `server` line that looks like a
    /// placeholder.
    pub fn note(&mut self, seen: Seen<'_>) {
        let words: Vec<&str> = seen.words.iter().map(String::as_str).collect();
        let Some(name) = words.first() else { return };
        if *name == "server" {
            if let Some(address) = placeholder(&words) {
                self.placeholders.push((address.to_owned(), seen.place));
            }
            return;
        }
        let (module, file) = seen.module;
        let kind = Kind::of(module, &words);
        // The second of two lines of one method sets the same function.
        let has_set_method = seen.has_set_method || kind.replaces();
        if has_set_method || kind != Kind::Foreign {
            let shown = format!("\"{name}\" in {} of {module} ({file})", seen.place);
            let (text, place) = (words.join(" "), seen.place);
            self.methods.push(Directive { kind, text, place, has_set_method, shown });
        }
    }

    /// How many directives about load balancing were noted so far.
    pub fn count(&self) -> usize {
        self.methods.len()
    }

    /// `server` lines without `down` whose address no server can have: address and place.
    pub fn placeholders(&self) -> &[(String, String)] {
        &self.placeholders
    }

    /// Whether nginx's `keepalive` stands in the upstream; since 1.29.7 `keepalive 0` switches it
    /// off.
    pub fn has_keepalive(&self) -> bool {
        self.methods.iter().any(|d| d.kind == Kind::Keepalive && d.text != "keepalive 0")
    }

    /// The last directive after the first `before` that nginx doesn't ship, for people.
    pub fn wrapper(&self, before: usize) -> Option<&str> {
        let mut after = self.methods.get(before..)?.iter().rev();
        after.find(|directive| directive.kind == Kind::Foreign).map(|d| &*d.shown)
    }

    /// The lines of the method that has set `init_upstream` before `consul_dynamic`; `file` gives
    /// the file that the function is in. `by_request`: requests name the service.
    ///
    /// # Errors
    ///
    /// The method can't be used together with `consul_dynamic`; the text goes on from
    /// `"consul_dynamic" directive …`.
    pub fn method_before(&self, by_request: bool, file: impl FnOnce() -> String) -> Parsed<String> {
        let set: Vec<&Directive> = self.methods.iter().filter(|d| d.has_set_method).collect();
        if let Some(directive) = set.iter().find(|d| d.kind == Kind::Foreign) {
            return Err(cannot_be_with(directive));
        }
        if set.iter().any(|d| d.kind == Kind::Keepalive) {
            return Err("must stand before \"keepalive\"".into());
        }
        // nginx warns of those that are replaced.
        let from = set.iter().rposition(|directive| directive.kind.replaces()).unwrap_or(0);
        let set = set.get(from..).unwrap_or_default();
        let instead = set.iter().find_map(|directive| Some((directive, directive.kind.instead()?)));
        if let (true, Some((Directive { text, place, .. }, instead))) = (by_request, instead) {
            return Err(format!(
                "with a variable can't be used together with \"{text}\" in {place}, which keeps \
                 one table for the whole \"upstream\": use \"consul_balance {instead};\""
            ));
        }
        if set.is_empty() {
            let file = file();
            return Err(format!("can't be used together with a load balancing method of {file}"));
        }
        let lines: Vec<&str> = set.iter().map(|directive| &*directive.text).collect();
        Ok(lines.join("; "))
    }

    /// Checks the directives after the first `before`, which stand after `consul_dynamic`;
    /// `replaced_by` is the file of the function that has replaced ours, if one has.
    ///
    /// # Errors
    ///
    /// As of [`Directives::method_before`].
    pub fn check_after(&self, before: usize, replaced_by: Option<String>) -> Parsed {
        for directive in self.methods.get(before..).unwrap_or_default() {
            let is_lua = directive.text.starts_with("balancer_by_lua");
            match directive.kind {
                Kind::Keepalive => {}
                // Whether that picks peers of its own shows when requests come.
                Kind::Foreign if replaced_by.is_none() && !is_lua => {}
                Kind::Foreign => return Err(cannot_be_with(directive)),
                _ => {
                    let name = directive.text.split(' ').next().unwrap_or_default();
                    return Err(format!(
                        "is without effect, \"{name}\" in {} must stand before \"consul_dynamic\"",
                        directive.place
                    ));
                }
            }
        }
        replaced_by.map_or(Ok(()), |file| {
            Err(format!(
                "is without effect, a load balancing method of {file} takes the block away"
            ))
        })
    }
}

/// Goes on from `"consul_dynamic" directive …`.
fn cannot_be_with(directive: &Directive) -> String {
    let shown = &directive.shown;
    format!("can't be used together with the load balancing method {shown}: nginx doesn't ship it")
}

/// The address of a `server` line without `down`, if it is one of 0.0.0.0/8. Connections to 0.0.0.0
/// itself go to this host.
fn placeholder<'a>(words: &[&'a str]) -> Option<&'a str> {
    let [_, address, parameters @ ..] = words else { return None };
    let host: Ipv4Addr = address.split(':').next()?.parse().ok()?;
    let is_unused = host.octets()[0] == 0 && !host.is_unspecified();
    (is_unused && !parameters.contains(&"down")).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directives of an upstream: module (without its prefix), words, and whether it has set the
    /// method.
    fn directives(lines: &[(&str, &str, bool)]) -> Directives {
        let mut directives = Directives::default();
        for (number, (module, words, has_set_method)) in lines.iter().enumerate() {
            let module = format!("ngx_http_upstream_{module}_module");
            directives.note(Seen {
                words: words.split(' ').map(str::to_owned).collect(),
                place: format!("n.conf:{}", number + 1),
                module: (&module, "nginx"),
                has_set_method: *has_set_method,
            });
        }
        directives
    }

    fn before(lines: &[(&str, &str, bool)], by_request: bool) -> Parsed<String> {
        directives(lines).method_before(by_request, || "some.so".into())
    }

    #[test]
    fn the_method_is_the_last_with_what_wraps_it() {
        let lines = [
            ("ip_hash", "ip_hash", true),
            ("least_conn", "least_conn", true),
            ("sticky", "sticky cookie id", true),
        ];
        assert_eq!(before(&lines, true).unwrap(), "least_conn; sticky cookie id");
    }

    #[test]
    fn a_method_that_keeps_one_table_is_refused_where_requests_name_services() {
        for (module, words, instead) in [
            ("random", "random", "random"),
            ("random", "random two", "least_conn"),
            ("random", "random two least_time=header", "least_time"),
            ("hash", "hash $uri consistent", "hash $uri consistent"),
            ("sticky", "sticky learn create=$a", "hash key consistent"),
        ] {
            let error = before(&[(module, words, true)], true).unwrap_err();
            assert!(error.ends_with(&format!("use \"consul_balance {instead};\"")), "{error}");
            assert_eq!(before(&[(module, words, true)], false).unwrap(), words);
        }
        assert_eq!(before(&[("hash", "hash $uri", true)], true).unwrap(), "hash $uri");
    }

    #[test]
    fn methods_that_nginx_does_not_ship_are_refused() {
        let error = before(&[("fair", "fair", true)], false).unwrap_err();
        assert!(error.contains("\"fair\" in n.conf:1 of ngx_http_upstream_fair_module"), "{error}");
        let error = before(&[], false).unwrap_err();
        assert_eq!(error, "can't be used together with a load balancing method of some.so");
        let error = before(&[("keepalive", "keepalive 8", true)], false).unwrap_err();
        assert_eq!(error, "must stand before \"keepalive\"");
    }

    #[test]
    fn after_consul_dynamic_stands_what_wraps() {
        let check =
            |line, took: Option<&str>| directives(&[line]).check_after(0, took.map(str::to_owned));
        assert_eq!(check(("keepalive", "keepalive 8", true), None), Ok(()));
        assert_eq!(check(("jitter", "jitter", true), None), Ok(()));
        for (line, took) in [
            (("least_conn", "least_conn", true), None),
            (("fair", "fair", true), Some("fair.so")),
            (("lua", "balancer_by_lua_block", true), None),
        ] {
            assert!(check(line, took).is_err(), "{line:?}");
        }
        let error = directives(&[]).check_after(0, Some("x.so".into())).unwrap_err();
        assert_eq!(
            error,
            "is without effect, a load balancing method of x.so takes the block away"
        );
    }

    #[test]
    fn a_placeholder_that_is_not_down_is_noted() {
        let of = |line: &str| directives(&[("core", line, false)]).placeholders().to_vec();
        assert_eq!(of("server 0.0.0.1"), [("0.0.0.1".into(), "n.conf:1".into())]);
        assert_eq!(of("server 0.0.0.1:80 weight=2").len(), 1);
        for line in ["server 0.0.0.1 down", "server 0.0.0.0", "server 10.0.0.1", "server name:1"] {
            assert_eq!(of(line), [], "{line}");
        }
    }

    #[test]
    fn keepalive_0_is_none() {
        assert!(directives(&[("keepalive", "keepalive 8", true)]).has_keepalive());
        assert!(!directives(&[("keepalive", "keepalive 0", true)]).has_keepalive());
    }
}
