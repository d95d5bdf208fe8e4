//! TLS to Consul: which certificates are trusted, and which one the client sends.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::file;

/// Longest file of certificates or of a key, in bytes: the largest bundles have about 1 MiB.
pub const MAX_PEM: u64 = 8 << 20;

/// Bundles of trusted certificates of Debian and Alpine, of Fedora, and of the BSDs.
const SYSTEM_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// What the `consul_ssl_*` directives say; files are given by their PEM content.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TlsOptions {
    /// `consul_ssl_trusted_certificate`; the system's bundle if `None`.
    pub trusted: Option<Vec<u8>>,
    /// `consul_ssl_certificate` (a chain) and `consul_ssl_certificate_key`.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
    /// `consul_ssl_verify`.
    pub verify: bool,
    /// `consul_ssl_name`: name to verify and to send by SNI, instead of the URL's host.
    pub name: Option<String>,
}

impl Default for TlsOptions {
    fn default() -> Self {
        TlsOptions { trusted: None, client: None, verify: true, name: None }
    }
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the key.
        f.debug_struct("TlsOptions")
            .field("verify", &self.verify)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Why TLS settings were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// The trusted file has no certificate in PEM form, or a broken one.
    #[error("no usable certificate in the trusted certificates ({0})")]
    Trusted(String),
    /// No bundle of the system found, and none given.
    #[error("no trusted certificates on this system, set consul_ssl_trusted_certificate")]
    NoSystemBundle,
    /// The client certificate is not PEM.
    #[error("no usable client certificate ({0})")]
    Certificate(String),
    /// The key is not PEM, encrypted, or belongs to another certificate.
    #[error("no usable client certificate key ({0})")]
    Key(String),
    /// Not a host name or IP address.
    #[error("invalid server name \"{0}\"")]
    Name(String),
}

/// Validated TLS settings; clones share them.
#[derive(Clone, Default)]
pub struct Tls(Arc<Inner>);

#[derive(Default)]
struct Inner {
    options: TlsOptions,
    config: OnceLock<Result<Arc<ClientConfig>, TlsError>>,
}

impl Tls {
    /// Checks the settings. [`Tls::default`] is the system's certificates, read at the first
    /// connection that needs them.
    ///
    /// # Errors
    ///
    /// Names the part that cannot be used.
    pub fn new(options: TlsOptions) -> Result<Self, TlsError> {
        if let Some(name) = &options.name {
            server_name(name)?;
        }
        let tls = Tls(Arc::new(Inner { options, config: OnceLock::new() }));
        tls.config()?;
        Ok(tls)
    }

    /// What it was made from.
    pub fn options(&self) -> &TlsOptions {
        &self.0.options
    }

    /// One configuration for all connections: it holds every trusted certificate.
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        self.0.config.get_or_init(|| build(&self.0.options)).clone()
    }

    /// The name that the certificate of `host` must have.
    pub(crate) fn name_for(&self, host: &str) -> Result<ServerName<'static>, TlsError> {
        server_name(self.0.options.name.as_deref().unwrap_or(host))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.options.fmt(f)
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.options == other.0.options
    }
}

impl Eq for Tls {}

impl Hash for Tls {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.options.hash(state);
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned())
        .map_err(|_| TlsError::Name(name.escape_debug().to_string()))
}

fn build(options: &TlsOptions) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Trusted(error.to_string()))?;
    let builder = if options.verify {
        builder.with_root_certificates(roots(options.trusted.as_deref())?)
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(NoVerifier(provider)))
    };
    let mut config = match &options.client {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| TlsError::Certificate(error.to_string()))?;
            if chain.is_empty() {
                return Err(TlsError::Certificate("no PEM section found".to_owned()));
            }
            let key = PrivateKeyDer::from_pem_slice(key)
                .map_err(|error| TlsError::Key(error.to_string()))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| TlsError::Key(error.to_string()))?
        }
    };
    // Without ALPN Consul answers with HTTP/1.1; the client has no h2.
    config.alpn_protocols.clear();
    Ok(Arc::new(config))
}

fn roots(trusted: Option<&[u8]>) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    if let Some(pem) = trusted {
        for certificate in CertificateDer::pem_slice_iter(pem) {
            certificate
                .map_err(|error| error.to_string())
                .and_then(|der| store.add(der).map_err(|error| error.to_string()))
                .map_err(TlsError::Trusted)?;
        }
        if store.is_empty() {
            return Err(TlsError::Trusted("no PEM section found".to_owned()));
        }
        return Ok(store);
    }
    let bundle = SYSTEM_BUNDLES.iter().find_map(|path| file::read(Path::new(path), MAX_PEM).ok());
    let bundle = bundle.ok_or(TlsError::NoSystemBundle)?;
    // A bundle may hold what this library cannot read; the rest of it is good.
    store.add_parsable_certificates(CertificateDer::pem_slice_iter(&bundle).flatten());
    if store.is_empty() { Err(TlsError::NoSystemBundle) } else { Ok(store) }
}

/// `consul_ssl_verify off`: accepts any certificate; the signatures of the handshake are verified.
#[derive(Debug)]
struct NoVerifier(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerifier {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
