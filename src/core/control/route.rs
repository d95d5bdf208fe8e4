//! Paths and methods.

use super::response::Refusal;
use crate::model::Action;
use crate::text::quote;

/// The method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `GET` or `HEAD`.
    Read,
    /// `POST` or `PATCH`.
    Write,
    /// `DELETE`.
    Delete,
    /// Another one.
    Other,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// The paths, and the overrides in force.
    Root,
    /// All services.
    Services,
    /// A service.
    Service(String),
    /// Freeze the set of peers of a service.
    Freeze(String),
    /// Let the set follow Consul again.
    Thaw(String),
    /// Query Consul now.
    Resync(String),
    /// The instances of a service.
    Instances(String),
    /// An instance, by its service id or its address.
    Instance(String, String),
    /// Set an override of an instance.
    Set(String, String, Action),
    /// Remove the overrides of an instance.
    Remove(String, String),
}

/// All paths, for the answer to `GET /`.
pub const PATHS: [&str; 10] = [
    "GET /",
    "GET /services",
    "GET /services/{service}",
    "POST /services/{service}/freeze",
    "POST /services/{service}/thaw",
    "POST /services/{service}/resync",
    "GET /services/{service}/instances",
    "GET /services/{service}/instances/{id or address:port}",
    "POST /services/{service}/instances/{id or address:port}/{drain|down|up|weight}",
    "DELETE /services/{service}/instances/{id or address:port}",
];

/// What a request asks for; `path` is the decoded rest of the URI after the location's name.
///
/// # Errors
///
/// There is no such path (404) or method (405).
pub fn route(verb: Verb, path: &[u8]) -> Result<Route, Refusal> {
    const READ: &str = "GET, HEAD";
    const WRITE: &str = "PATCH, POST";
    const INSTANCE: &str = "DELETE, GET, HEAD";
    const OVERRIDE: &str = "DELETE, GET, HEAD, PATCH, POST";
    let not_found = || {
        let shown = quote(&String::from_utf8_lossy(path));
        let text = format!("there is no path \"{shown}\"; \"/\" says what there is");
        Refusal::new(404, "PathNotFound", text)
    };
    let path = std::str::from_utf8(path).map_err(|_| not_found())?.trim_matches('/');
    let parts: Vec<&str> = path.split('/').collect();
    let name = parts.get(1).copied().unwrap_or_default().to_owned();
    let (route, allow) = match parts[..] {
        [""] => (Route::Root, READ),
        ["services"] => (Route::Services, READ),
        ["services", _] => (Route::Service(name), READ),
        ["services", _, "freeze"] => (Route::Freeze(name), WRITE),
        ["services", _, "thaw"] => (Route::Thaw(name), WRITE),
        ["services", _, "resync"] => (Route::Resync(name), WRITE),
        ["services", _, "instances"] => (Route::Instances(name), READ),
        // An id may contain slashes, and end like an action: only what is written has one.
        ["services", _, "instances", ref id @ .., last] => {
            let action = last.parse().ok().filter(|a| *a != Action::Freeze && !id.is_empty());
            let whole = || parts[3..].join("/");
            let allow = if action.is_some() { OVERRIDE } else { INSTANCE };
            let route = match (action, verb) {
                (Some(action), Verb::Write) => Route::Set(name, id.join("/"), action),
                (_, Verb::Read) => Route::Instance(name, whole()),
                _ => Route::Remove(name, whole()),
            };
            (route, allow)
        }
        _ => return Err(not_found()),
    };
    let method = match verb {
        Verb::Read => "GET",
        Verb::Write => "POST",
        Verb::Delete => "DELETE",
        Verb::Other => "none",
    };
    if allow.contains(method) {
        return Ok(route);
    }
    let text = format!("this path has {allow} only");
    Err(Refusal { allow: Some(allow), ..Refusal::new(405, "MethodDisabled", text) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn web(make: impl Fn(String) -> Route) -> Result<Route, Refusal> {
        Ok(make("web".to_owned()))
    }

    #[test]
    fn every_path_leads_where_it_says() {
        for (verb, path, expected) in [
            (Verb::Read, "", Ok(Route::Root)),
            (Verb::Read, "/", Ok(Route::Root)),
            (Verb::Read, "/services/", Ok(Route::Services)),
            (Verb::Read, "services/web", web(Route::Service)),
            (Verb::Read, "/services/web/instances/", web(Route::Instances)),
            (Verb::Write, "/services/web/freeze", web(Route::Freeze)),
            (Verb::Write, "/services/web/thaw", web(Route::Thaw)),
            (Verb::Write, "/services/web/resync", web(Route::Resync)),
            (
                Verb::Write,
                "/services/web/instances/[::1]:80/weight",
                web(|web| Route::Set(web, "[::1]:80".into(), Action::Weight)),
            ),
            (
                Verb::Write,
                "/services/web/instances/a/b/drain",
                web(|web| Route::Set(web, "a/b".into(), Action::Drain)),
            ),
            (
                Verb::Delete,
                "/services/web/instances/web-1",
                web(|web| Route::Remove(web, "web-1".into())),
            ),
            (
                Verb::Delete,
                "/services/web/instances/web-1/drain",
                web(|web| Route::Remove(web, "web-1/drain".into())),
            ),
            (
                Verb::Read,
                "/services/web/instances/web-1/drain",
                web(|web| Route::Instance(web, "web-1/drain".into())),
            ),
            (
                Verb::Write,
                "/services/web/instances/web-1/drain/drain",
                web(|web| Route::Set(web, "web-1/drain".into(), Action::Drain)),
            ),
            (
                Verb::Read,
                "/services/web/instances/web-1",
                web(|web| Route::Instance(web, "web-1".into())),
            ),
        ] {
            assert_eq!(route(verb, path.as_bytes()), expected, "{verb:?} {path}");
        }
    }

    #[test]
    fn what_there_is_not_is_404_and_another_method_405() {
        for path in ["/x", "/servicesx", "/services/web/x", "/services/web/freeze/x"] {
            assert_eq!(route(Verb::Read, path.as_bytes()).unwrap_err().status, 404, "{path}");
        }
        assert_eq!(route(Verb::Read, b"/\xff\xfe").unwrap_err().status, 404);
        for (verb, path, allow) in [
            (Verb::Write, "/", "GET, HEAD"),
            (Verb::Read, "/services/web/freeze", "PATCH, POST"),
            (Verb::Delete, "/services/web", "GET, HEAD"),
            (Verb::Other, "/services/web/instances/a/drain", "DELETE, GET, HEAD, PATCH, POST"),
            (Verb::Write, "/services/web/instances/a", "DELETE, GET, HEAD"),
            (Verb::Other, "/services/web/instances/a", "DELETE, GET, HEAD"),
        ] {
            let refusal = route(verb, path.as_bytes()).unwrap_err();
            assert_eq!((refusal.status, refusal.allow), (405, Some(allow)), "{verb:?} {path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_is_too_odd(path in any::<Vec<u8>>()) {
            for verb in [Verb::Read, Verb::Write, Verb::Delete, Verb::Other] {
                let _ = route(verb, &path);
            }
        }
    }
}
