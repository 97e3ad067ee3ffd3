//! TLS to a server: whom it is trusted through, and what to do when it is not.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::{
    CertificateError, ClientConfig, InvalidMessage, RootCertStore,
    pki_types::{CertificateDer, DnsName, PrivateKeyDer, pem::PemObject},
};
use std::{fmt, io, str::FromStr, sync::Arc};

/// How a server shows that it is the one that is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// Who signs its certificate; none for those whom the system trusts.
    pub ca_bundle: Option<CaBundle>,
    /// The name in its certificate, where that is another than the host under which it is reached.
    pub server_name: Option<ServerName>,
}

/// Certificates of those who sign servers' certificates.
#[derive(Clone, PartialEq, Eq)]
pub struct CaBundle(Arc<[CertificateDer<'static>]>);

/// Why something cannot be trusted through.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsConfigError {
    /// Not PEM.
    #[error("no PEM ({0}): it has to hold lines like -----BEGIN CERTIFICATE-----")]
    NotPem(String),
    /// PEM of something else.
    #[error("no certificate in it: it has to hold the CA's certificate in PEM, -----BEGIN CERTIFICATE-----")]
    Empty,
    /// A secret that nobody needs here.
    #[error("a private key in it: only the CA's certificate belongs there")]
    PrivateKey,
    /// Bytes that are no certificate.
    #[error("certificate number {number} in it cannot be used ({detail}): write the CA's certificate again")]
    Certificate {
        /// Which, from 1.
        number: usize,
        /// What the TLS library said.
        detail: String,
    },
    /// A name that no certificate is for.
    #[error("`{0}` is no DNS name: write the name in vLLM's certificate, like vllm.models.svc")]
    Name(String),
}

impl CaBundle {
    /// Reads a PEM file's bytes: every certificate in it.
    pub fn parse(pem: &[u8]) -> Result<Self, TlsConfigError> {
        if PrivateKeyDer::from_pem_slice(pem).is_ok() {
            return Err(TlsConfigError::PrivateKey);
        }
        let certificates: Result<Arc<[_]>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let authorities = Self(certificates.map_err(|error| TlsConfigError::NotPem(error.to_string()))?);
        authorities.root_store()?;
        if authorities.0.is_empty() { Err(TlsConfigError::Empty) } else { Ok(authorities) }
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

    /// What a client trusts.
    pub(crate) fn client_config(&self) -> Result<ClientConfig, String> {
        client_config(self.root_store().map_err(|error| error.to_string())?).map_err(|error| error.to_string())
    }
}

impl fmt::Debug for CaBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorities({})", self.0.len())
    }
}

/// A configuration that trusts nobody, for servers that speak plain HTTP: it is never used, and without it the
/// system's CA certificates would be read and kept for nothing.
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

/// A DNS name in a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerName(String);

impl FromStr for ServerName {
    type Err = TlsConfigError;

    fn from_str(text: &str) -> Result<Self, TlsConfigError> {
        // Four numbers are a DNS name to some, and an address to everybody else.
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

/// Reaches one host, whatever it is called.
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

/// What to do about a failure of TLS that lies somewhere below `error`; none where there is none.
pub(crate) fn tls_error_advice(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(describe_tls_error(error));
        }
        // An I/O error that wraps another passes it over as its source.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = wrapped.map(|error| error as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    None
}

fn describe_tls_error(error: &rustls::Error) -> String {
    let advice = match error {
        rustls::Error::InvalidCertificate(error) => match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is signed by nobody who is trusted here: give the certificate of the CA that signed it"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired: give vLLM a new one"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet: compare the clocks, or give vLLM another one"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name: say which name is meant, or reach vLLM under the name that it has"
            }
            _ if format!("{error:?}").contains("CaUsedAsEndEntity") => {
                "its certificate is that of a CA: give vLLM one that is signed by it, with CA:FALSE"
            }
            _ => "its certificate cannot be trusted",
        },
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "what answers there speaks no TLS: leave TLS out, or give vLLM --ssl-certfile and --ssl-keyfile"
        }
        rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired) => {
            "it asks for a client's certificate, and none can be given: start vLLM without --ssl-cert-reqs"
        }
        _ => "look into vLLM's log",
    };
    format!("{advice} ({error})")
}

#[cfg(test)]
mod tests;
