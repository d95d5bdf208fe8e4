//! What is asked beside the watch's own question: of the first server, and of the token.

use super::*;

fn request<'a>(endpoint: &'a Arc<Endpoint>, query: &'a Query, server: usize) -> Request<'a> {
    let timeout = (server == 0).then_some(Duration::from_millis(200));
    let fetch = Fetch::read(server, Duration::from_secs(60));
    Request { endpoint, query, view: View::Full, fetch, timeout }
}

fn blocking(request: Request<'_>) -> Request<'_> {
    Request { fetch: Fetch { index: Some(7), ..request.fetch }, ..request }
}

#[test]
fn a_probe_leaves_the_connection_in_use_alone_and_is_soon_given_up() {
    let (first, _first_seen) = tcp(vec![vec![Act::Hang], vec![small("[1]"), small("[2]")]]);
    let (second, _second_seen) = tcp(vec![vec![small("[]"), small("[3]")]]);
    let mut both = endpoint(&first);
    both.servers.push(second.parse().unwrap());
    let (mut client, both, query) = (client(), Arc::new(both), Query::default());
    client.get(request(&both, &query, 1)).unwrap();
    let start = Instant::now();
    let silent = client.get(request(&both, &query, 0)).unwrap_err();
    assert!(matches!(silent, Error::Silent(_)), "{silent}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    // Each server answers over a connection that it has already: another would hang.
    assert_eq!(client.get(blocking(request(&both, &query, 1))).unwrap().body, b"[3]");
    assert_eq!(client.get(request(&both, &query, 0)).unwrap().body, b"[1]");
    assert_eq!(
        client.get(Request { timeout: None, ..blocking(request(&both, &query, 0)) }).unwrap().body,
        b"[2]"
    );
}

fn state_of_token(answer: String) -> Result<TokenState, Error> {
    let (url, seen) = tcp(vec![vec![Act::Send(answer.into_bytes())]]);
    let secret = Some(Token::value("s3cret").unwrap());
    let endpoint = Arc::new(Endpoint { token: secret, ..endpoint(&url) });
    let query = Query { datacenter: Some("dc2".to_owned()), ..Query::default() };
    let state = client().token_state(&endpoint, 0, &query);
    let head = seen.recv().unwrap().to_lowercase();
    assert!(head.starts_with("get /v1/acl/token/self?dc=dc2 http/1.1|"), "{head}");
    assert!(head.contains("|x-consul-token: s3cret"), "{head}");
    state
}

fn status(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
}

#[test]
fn a_token_is_has_rights_by_any_of_its_links() {
    for has_rights in [
        r#"{"Policies":[{"Name":"gateway"}]}"#,
        r#"{"Policies":null,"Roles":[{"Name":"gateway"}]}"#,
        r#"{"ServiceIdentities":[{"ServiceName":"web"}]}"#,
        r#"{"NodeIdentities":[{"NodeName":"n"}]}"#,
        r#"{"TemplatedPolicies":[{"TemplateName":"builtin/service"}]}"#,
        r#"{"Rules":"service \"\" { policy = \"read\" }","Legacy":true}"#,
    ] {
        assert_eq!(
            state_of_token(status("200 OK", "", has_rights)).unwrap(),
            TokenState::HasRights
        );
    }
    for powerless in [r#"{"AccessorID":"a","Policies":[],"Roles":null}"#, "{}", "[]"] {
        let plain = state_of_token(status("200 OK", "", powerless)).unwrap();
        assert_eq!(plain, TokenState::NoRights);
        let open = status("200 OK", "X-Consul-Default-Acl-Policy: allow\r\n", powerless);
        assert_eq!(state_of_token(open).unwrap(), TokenState::HasRights, "all may read");
    }
}

#[test]
fn an_unknown_token_is_an_error_and_acls_that_are_off_are_none() {
    let off = status("401 Unauthorized", "", "ACL support disabled");
    assert_eq!(state_of_token(off).unwrap(), TokenState::Disabled);
    let unknown = state_of_token(status("403 Forbidden", "", "ACL not found")).unwrap_err();
    assert!(matches!(unknown, Error::Status { status: 403, .. }), "{unknown}");
    let html = state_of_token(status("200 OK", "", "<html>")).unwrap_err();
    assert!(html.to_string().contains("not JSON"), "{html}");
}
