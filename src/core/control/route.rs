//! Paths and methods.

use super::Refusal;
use crate::text::quote;

/// The method of a request, as far as it matters.
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

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// What is in force.
    Root,
    /// The services there are.
    Services,
    /// One of them.
    Service(String),
    /// Its set stays as it is.
    Freeze(String),
    /// Its set follows Consul again.
    Thaw(String),
    /// Consul is asked now.
    Resync(String),
    /// Its instances.
    Instances(String),
    /// One of them, by its service id or its address.
    Instance(String, String),
    /// Something is ordered of it; which of them, by [`Action::name`](crate::table::Action::name).
    Order(String, String, &'static str),
    /// What was ordered of it is lifted.
    Lift(String, String),
}

/// What can be ordered of an instance.
const ACTIONS: [&str; 4] = ["drain", "down", "up", "weight"];

/// Finds out what a request is about; `path` is what follows the location's name, decoded.
///
/// # Errors
///
/// There is no such path (404) or method (405).
pub fn route(verb: Verb, path: &[u8]) -> Result<Route, Refusal> {
    let not_found = || {
        let shown = quote(&String::from_utf8_lossy(path));
        let text = format!("there is no path \"{shown}\"; \"/\" says what there is");
        Refusal::new(404, "PathNotFound", text)
    };
    let path = std::str::from_utf8(path).map_err(|_| not_found())?;
    let path = path.trim_matches('/');
    let Some(rest) = path.strip_prefix("services") else {
        return if path.is_empty() { only(verb, Route::Root) } else { Err(not_found()) };
    };
    if rest.is_empty() {
        return only(verb, Route::Services);
    }
    let (service, rest) = rest.strip_prefix('/').map(first).ok_or_else(not_found)?;
    let service = service.to_owned();
    match first(rest) {
        ("", "") => only(verb, Route::Service(service)),
        ("freeze", "") => write(verb, Route::Freeze(service)),
        ("thaw", "") => write(verb, Route::Thaw(service)),
        ("resync", "") => write(verb, Route::Resync(service)),
        ("instances", "") => only(verb, Route::Instances(service)),
        ("instances", rest) => instance(verb, service, rest),
        _ => Err(not_found()),
    }
}

/// The first part of a path, and what follows it.
fn first(path: &str) -> (&str, &str) {
    path.split_once('/').unwrap_or((path, ""))
}

/// An id may contain slashes, so the action is looked for at the end.
fn instance(verb: Verb, service: String, rest: &str) -> Result<Route, Refusal> {
    let ordered = rest.rsplit_once('/').and_then(|(id, last)| {
        let action = ACTIONS.into_iter().find(|action| *action == last)?;
        Some((id.to_owned(), action))
    });
    match (ordered, verb) {
        (Some((id, action)), Verb::Write) => Ok(Route::Order(service, id, action)),
        (Some((id, _)), Verb::Delete) => Ok(Route::Lift(service, id)),
        (Some(_), _) => Err(method("DELETE, PATCH, POST")),
        (None, Verb::Read) => Ok(Route::Instance(service, rest.to_owned())),
        (None, Verb::Delete) => Ok(Route::Lift(service, rest.to_owned())),
        (None, _) => Err(method("DELETE, GET, HEAD")),
    }
}

fn only(verb: Verb, route: Route) -> Result<Route, Refusal> {
    if verb == Verb::Read { Ok(route) } else { Err(method("GET, HEAD")) }
}

fn write(verb: Verb, route: Route) -> Result<Route, Refusal> {
    if verb == Verb::Write { Ok(route) } else { Err(method("PATCH, POST")) }
}

fn method(allow: &'static str) -> Refusal {
    let text = format!("this path has {allow} only");
    Refusal { allow: Some(allow), ..Refusal::new(405, "MethodDisabled", text) }
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
                web(|web| Route::Order(web, "[::1]:80".into(), "weight")),
            ),
            (
                Verb::Write,
                "/services/web/instances/a/b/drain",
                web(|web| Route::Order(web, "a/b".into(), "drain")),
            ),
            (
                Verb::Delete,
                "/services/web/instances/web-1",
                web(|web| Route::Lift(web, "web-1".into())),
            ),
            (
                Verb::Delete,
                "/services/web/instances/web-1/drain",
                web(|web| Route::Lift(web, "web-1".into())),
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
            (Verb::Read, "/services/web/instances/a/drain", "DELETE, PATCH, POST"),
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
