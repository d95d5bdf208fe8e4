//! TLS, against a server with the test certificates.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::*;
use crate::consul::tls::TlsOptions;

const CA: &[u8] = include_bytes!("../../../testdata/tls/ca.pem");
const CLIENT: (&[u8], &[u8]) = (
    include_bytes!("../../../testdata/tls/client.pem"),
    include_bytes!("../../../testdata/tls/client.key"),
);
const SERVER: (&[u8], &[u8]) = (
    include_bytes!("../../../testdata/tls/server.pem"),
    include_bytes!("../../../testdata/tls/server.key"),
);

/// A server that wants a client certificate of the test CA.
fn server(connections: Vec<Vec<Act>>) -> String {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CA).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(SERVER.0).unwrap()],
            PrivateKeyDer::from_pem_slice(SERVER.1).unwrap(),
        )
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let accept = move || {
        let session = ServerConnection::new(Arc::clone(&config)).unwrap();
        StreamOwned::new(session, listener.accept().unwrap().0)
    };
    serve(accept, connections);
    url
}

fn options() -> TlsOptions {
    let client = Some((CLIENT.0.to_vec(), CLIENT.1.to_vec()));
    TlsOptions { trusted: Some(CA.to_vec()), client, ..TlsOptions::default() }
}

fn with(options: TlsOptions, url: &str) -> Arc<Endpoint> {
    Arc::new(Endpoint { tls: Tls::new(options).unwrap(), ..endpoint(url) })
}

#[test]
fn both_sides_show_certificates_and_the_connection_is_reused() {
    let endpoint = with(options(), &server(vec![vec![small("[]"), small("[]")]]));
    let mut client = client();
    ask(&mut client, &endpoint, None).unwrap();
    ask(&mut client, &endpoint, Some(7)).expect("the same connection");
}

#[test]
fn an_unknown_authority_is_refused_unless_verification_is_off() {
    let error = |options, acts| {
        let endpoint = with(options, &server(vec![acts]));
        ask(&mut client(), &endpoint, None).map_err(|error| error.to_string())
    };
    let other = TlsOptions { trusted: Some(SERVER.0.to_vec()), ..options() };
    let text = error(other.clone(), vec![Act::Hang]).unwrap_err();
    assert!(text.starts_with("tls handshake failed (invalid peer certificate"), "{text}");
    error(TlsOptions { verify: false, ..other }, vec![small("[]")]).unwrap();
}

#[test]
fn the_name_must_fit_and_can_be_given() {
    let named = |name: &str, acts| {
        let options = TlsOptions { name: Some(name.to_owned()), ..options() };
        let endpoint = with(options, &server(vec![acts]));
        ask(&mut client(), &endpoint, None).map_err(|error| error.to_string())
    };
    named("consul.test", vec![small("[]")]).unwrap();
    let text = named("other.test", vec![Act::Hang]).unwrap_err();
    assert!(text.contains("certificate not valid for name"), "{text}");
}

#[test]
fn bad_settings_are_refused_with_a_clear_text() {
    let error = |options| Tls::new(options).unwrap_err().to_string();
    let none = TlsOptions { trusted: Some(b"nothing".to_vec()), ..TlsOptions::default() };
    assert_eq!(
        error(none),
        "no usable certificate in the trusted certificates (no PEM section found)"
    );
    let key = TlsOptions { client: Some((CLIENT.0.to_vec(), b"".to_vec())), ..options() };
    assert!(error(key).starts_with("no usable client certificate key ("));
    let client = Some((CLIENT.0.to_vec(), SERVER.1.to_vec()));
    let foreign = error(TlsOptions { client, ..options() });
    assert!(foreign.starts_with("no usable client certificate key ("), "{foreign}");
    let client = Some((b"".to_vec(), CLIENT.1.to_vec()));
    let text = error(TlsOptions { client, ..options() });
    assert_eq!(text, "no usable client certificate (no PEM section found)");
    let name = TlsOptions { name: Some("a b".to_owned()), ..options() };
    assert_eq!(error(name), "invalid server name \"a b\"");
}
