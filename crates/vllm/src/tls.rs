//! TLS settings of a connection to vLLM, and advice for failures of the handshake.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::{
    CertificateError, ClientConfig, InvalidMessage, RootCertStore,
    pki_types::{CertificateDer, DnsName, PrivateKeyDer, pem::PemObject},
};
use std::{fmt, io, str::FromStr, sync::Arc};

/// How the certificate of a server is verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// CA certificates to trust; `None` to trust the system's CA certificates.
    pub ca_bundle: Option<CaBundle>,
    /// Name in the server's certificate; `None` if it is the host of the endpoint's URL.
    pub server_name: Option<ServerName>,
}

/// CA certificates that a server's certificate is verified against.
#[derive(Clone, PartialEq, Eq)]
pub struct CaBundle(Arc<[CertificateDer<'static>]>);

/// Reason why a CA bundle or server name is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsConfigError {
    /// The file is not valid PEM.
    #[error("not valid PEM ({0}): give a file with the CA certificate in PEM, -----BEGIN CERTIFICATE-----")]
    NotPem(String),
    /// The file contains no certificate.
    #[error("contains no certificate: give a file with the CA certificate in PEM, -----BEGIN CERTIFICATE-----")]
    Empty,
    /// The file contains a private key, which is not needed and must stay secret.
    #[error("contains a private key: remove it from the file, only the CA certificate belongs there")]
    PrivateKey,
    /// A certificate in the file cannot be parsed.
    #[error("certificate number {number} in it is invalid ({detail}): export the CA certificate again")]
    Certificate {
        /// Position of the certificate in the file, counted from 1.
        number: usize,
        /// Error message of the TLS library.
        detail: String,
    },
    /// The server name is not a DNS name.
    #[error("`{0}` is not a DNS name: give the name in vLLM's certificate, like vllm.models.svc")]
    Name(String),
}

impl CaBundle {
    /// Parses all certificates of a PEM file.
    pub fn parse(pem: &[u8]) -> Result<Self, TlsConfigError> {
        if PrivateKeyDer::from_pem_slice(pem).is_ok() {
            return Err(TlsConfigError::PrivateKey);
        }
        let certificates: Result<Arc<[_]>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let ca_bundle = Self(certificates.map_err(|error| TlsConfigError::NotPem(error.to_string()))?);
        ca_bundle.root_store()?;
        if ca_bundle.0.is_empty() { Err(TlsConfigError::Empty) } else { Ok(ca_bundle) }
    }

    fn root_store(&self) -> Result<RootCertStore, TlsConfigError> {
        let mut store = RootCertStore::empty();
        for (index, certificate) in self.0.iter().enumerate() {
            store
                .add(certificate.clone())
                .map_err(|error| TlsConfigError::Certificate { number: index + 1, detail: error.to_string() })?;
        }
        Ok(store)
    }

    pub(crate) fn client_config(&self) -> Result<ClientConfig, String> {
        client_config(self.root_store().map_err(|error| error.to_string())?).map_err(|error| error.to_string())
    }
}

impl fmt::Debug for CaBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaBundle({})", self.0.len())
    }
}

/// Returns a configuration that trusts no certificate, for endpoints with plain HTTP. It is never used for a
/// connection; it only keeps reqwest from reading the system's CA certificates.
pub(crate) fn empty_trust_config() -> Result<ClientConfig, String> {
    client_config(RootCertStore::empty()).map_err(|error| error.to_string())
}

fn client_config(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// DNS name in a server's certificate, without wildcards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerName(String);

impl FromStr for ServerName {
    type Err = TlsConfigError;

    fn from_str(text: &str) -> Result<Self, TlsConfigError> {
        // `DnsName` accepts an IPv4 address as a name.
        let is_address = text.parse::<std::net::IpAddr>().is_ok();
        match DnsName::try_from(text) {
            Ok(_) if !is_address && !text.contains('*') => Ok(Self(text.to_owned())),
            _ => Err(TlsConfigError::Name(text.to_owned())),
        }
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Resolves every name to the addresses of one host.
#[derive(Debug)]
pub(crate) struct FixedHostResolver {
    pub(crate) host: String,
}

impl Resolve for FixedHostResolver {
    fn resolve(&self, _: Name) -> Resolving {
        let host = self.host.clone();
        Box::pin(async move {
            let addresses: Addrs = Box::new(tokio::net::lookup_host((host, 0)).await?);
            Ok(addresses)
        })
    }
}

/// Returns advice for the TLS error in the source chain of `error`; `None` if the chain contains no TLS error.
pub(crate) fn tls_error_advice(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(describe_tls_error(error));
        }
        // `io::Error::source` skips the wrapped error itself and returns that error's source.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = wrapped.map(|error| error as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    None
}

fn describe_tls_error(error: &rustls::Error) -> String {
    let advice = match error {
        rustls::Error::InvalidCertificate(error) => match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is not signed by a trusted CA: give the certificate of the CA that signed it"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired: give vLLM a new certificate"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet: compare the clocks, or give vLLM another certificate"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name: set that name as the server name, or connect to vLLM by it"
            }
            _ if format!("{error:?}").contains("CaUsedAsEndEntity") => {
                "its certificate is a CA certificate: give vLLM a certificate with CA:FALSE that this CA signed"
            }
            _ => "its certificate cannot be trusted",
        },
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the server does not speak TLS: turn TLS off, or start vLLM with --ssl-certfile and --ssl-keyfile"
        }
        rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired) => {
            "the server requires a client certificate, which is not supported: start vLLM without --ssl-cert-reqs"
        }
        _ => "check vLLM's log",
    };
    format!("{advice} ({error})")
}

#[cfg(test)]
mod tests;
