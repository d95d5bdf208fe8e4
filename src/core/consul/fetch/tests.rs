use super::*;

fn response(index: Option<u64>, content_type: &str, body: &str) -> Response {
    Response {
        index,
        content_type: Some(content_type.to_owned()),
        body: body.as_bytes().to_vec(),
        ..Response::default()
    }
}

fn good() -> Response {
    response(Some(7), "application/json", "[]")
}

fn rejected(response: &Response) -> (Reason, String) {
    let bound = Some(Duration::from_secs(5));
    let rejected = validate(response, &Query::default(), bound).unwrap_err();
    (rejected.reason(), rejected.to_string())
}

#[test]
fn accepts_json_with_an_index() {
    for content_type in ["application/json", "Application/JSON; charset=utf-8"] {
        assert_eq!(
            validate(&response(Some(7), content_type, "[]"), &Query::default(), None).unwrap().0,
            7
        );
    }
}

#[test]
fn the_index_is_at_least_1_and_within_reason() {
    assert_eq!(
        validate(&Response { index: Some(0), ..good() }, &Query::default(), None).unwrap().0,
        1
    );
    let most = i64::MAX as u64;
    assert_eq!(
        validate(&Response { index: Some(most), ..good() }, &Query::default(), None).unwrap().0,
        most
    );
    assert_eq!(rejected(&Response { index: Some(most + 1), ..good() }).0, Reason::Index);
}

#[test]
fn says_what_it_does_not_validate() {
    let (reason, text) = rejected(&Response { index: None, ..good() });
    assert_eq!((reason, &*text), (Reason::Index, "no valid X-Consul-Index in the answer"));
    let (reason, text) = rejected(&response(Some(1), "text/html", "[]"));
    assert_eq!(text, "the answer is not JSON (Content-Type \"text/html\")");
    assert_eq!(reason, Reason::ContentType);
    let none = Response { content_type: None, ..good() };
    assert_eq!(rejected(&none).1, "the answer is not JSON (Content-Type \"\")");
    for body in ["{}", "[", "", "[{}", "null"] {
        let (reason, text) = rejected(&response(Some(1), "application/json", body));
        assert!(text.starts_with("the answer is not a list of instances"), "{text}");
        assert_eq!(reason, Reason::Json);
    }
}

#[test]
fn an_answer_without_a_leader_or_with_instances_left_out_is_refused() {
    let led = Response { known_leader: Some(true), ..good() };
    assert!(validate(&led, &Query::default(), None).is_ok());
    assert_eq!(rejected(&Response { known_leader: Some(false), ..good() }).0, Reason::NoLeader);
    assert_eq!(rejected(&Response { filtered: true, ..good() }).0, Reason::Filtered);
}

#[test]
fn the_age_of_a_followers_or_a_caches_data_is_bounded() {
    let of = |contact: Option<u64>, age: Option<u64>| Response {
        last_contact: contact.map(Duration::from_millis),
        age: age.map(Duration::from_secs),
        ..good()
    };
    let bound = Some(Duration::from_secs(5));
    for fresh in [of(None, None), of(Some(5000), None), of(Some(0), Some(5))] {
        assert!(validate(&fresh, &Query::default(), bound).is_ok(), "{fresh:?}");
    }
    for stale in [of(Some(5001), None), of(Some(0), Some(6)), of(None, Some(6))] {
        assert_eq!(rejected(&stale).0, Reason::Stale, "{stale:?}");
        assert!(validate(&stale, &Query::default(), None).is_ok(), "off");
    }
    let text = rejected(&of(Some(5001), None)).1;
    assert_eq!(text, "the answer is 5001ms old, consul_max_stale is 5000ms");
}

#[test]
fn every_reason_has_a_word_of_its_own_and_a_counter() {
    let words: std::collections::HashSet<_> = Reason::ALL.iter().map(|r| r.word()).collect();
    assert_eq!(words.len(), Reason::ALL.len());
    for (place, reason) in Reason::ALL.iter().enumerate() {
        assert_eq!(*reason as usize, place);
    }
}
