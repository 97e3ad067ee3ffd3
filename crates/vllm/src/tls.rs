//! TLS to a vLLM server: verification of its certificate, and advice for failures.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::{
    CertificateError, ClientConfig, InvalidMessage, RootCertStore,
    pki_types::{CertificateDer, DnsName, PrivateKeyDer, pem::PemObject},
};
use std::{fmt, io, str::FromStr, sync::Arc};

/// How the certificate of a server is verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// CAs that may have signed the certificate; `None` for those that the system trusts.
    pub ca_bundle: Option<CaBundle>,
    /// DNS name in the certificate; `None` if it is the host of the endpoint.
    pub server_name: Option<ServerName>,
}

/// CA certificates that a server's certificate is verified against.
#[derive(Clone, PartialEq, Eq)]
pub struct CaBundle(Arc<[CertificateDer<'static>]>);

/// Why a CA file or a server name is not valid. The caller adds the name of the file or flag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsConfigError {
    /// The text is not valid PEM.
    #[error("not PEM ({0}): it must contain lines like -----BEGIN CERTIFICATE-----")]
    NotPem(String),
    /// The text contains no certificate.
    #[error("contains no certificate: it must contain the CA's certificate in PEM, -----BEGIN CERTIFICATE-----")]
    Empty,
    /// The text contains a private key, which is a secret that the client does not need.
    #[error("contains a private key: it must contain only the CA's certificate")]
    PrivateKey,
    /// A certificate cannot be parsed.
    #[error("certificate number {number} in it cannot be used ({detail}): write the CA's certificate again")]
    Certificate {
        /// Position of the certificate, from 1.
        number: usize,
        /// Error of the TLS library.
        detail: String,
    },
    /// The text is not a DNS name that a certificate can contain.
    #[error("`{0}` is not a DNS name: write the name in vLLM's certificate, like vllm.models.svc")]
    Name(String),
}

impl CaBundle {
    /// Parses every certificate of a PEM file. Fails if it contains none, or a private key.
    pub fn parse(pem: &[u8]) -> Result<Self, TlsConfigError> {
        if PrivateKeyDer::from_pem_slice(pem).is_ok() {
            return Err(TlsConfigError::PrivateKey);
        }
        let certificates: Result<Arc<[_]>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let bundle = Self(certificates.map_err(|error| TlsConfigError::NotPem(error.to_string()))?);
        bundle.root_store()?;
        if bundle.0.is_empty() { Err(TlsConfigError::Empty) } else { Ok(bundle) }
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

    /// Returns a client configuration that trusts only these CAs.
    pub(crate) fn client_config(&self) -> Result<ClientConfig, String> {
        client_config(self.root_store().map_err(|error| error.to_string())?).map_err(|error| error.to_string())
    }
}

impl fmt::Debug for CaBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaBundle({})", self.0.len())
    }
}

/// Returns a configuration without trusted CAs, for endpoints with plain HTTP. It is never used, but without it reqwest
/// would read the system's CA certificates and keep them in memory.
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
        // `DnsName` accepts four numbers, which are an IP address.
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

/// Resolver that returns the addresses of one host for every name.
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

/// Returns advice for the TLS error among the sources of `error`; `None` if there is none.
pub(crate) fn tls_error_advice(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(describe_tls_error(error));
        }
        // `source` of an I/O error that wraps another error skips the wrapped one.
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
                "its certificate has expired: renew vLLM's certificate"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet: check the clocks, or replace vLLM's certificate"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name: set the expected server name, or use the name in the certificate \
                 as vLLM's host"
            }
            _ if format!("{error:?}").contains("CaUsedAsEndEntity") => {
                "its certificate is a CA certificate: use one that this CA signed, with CA:FALSE"
            }
            _ => "its certificate cannot be trusted",
        },
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "it does not speak TLS: use plain HTTP, or start vLLM with --ssl-certfile and --ssl-keyfile"
        }
        rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired) => {
            "it requires a client certificate, which is not supported: start vLLM without --ssl-cert-reqs"
        }
        _ => "check vLLM's log",
    };
    format!("{advice} ({error})")
}

#[cfg(test)]
mod tests;
