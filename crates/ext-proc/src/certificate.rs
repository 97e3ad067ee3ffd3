//! The server's certificate, as two files that somebody renews while it runs.
//!
//! Invariant: a certificate that cannot be used replaces none: the old one stays, and log and metric say so.

#[cfg(test)]
mod tests;

use arc_swap::ArcSwap;
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at. A renewed certificate is there long before the old one ends.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Where the certificate stands, both as PEM.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    /// The certificate, and those that vouch for it behind it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not PEM, or nothing of use stands in it.
    #[error("{} is no PEM with a certificate or a key in it", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// They do not belong together, or the key is of a kind that is not known.
    #[error("the certificate and its key cannot be used")]
    Unusable(#[from] rustls::Error),
}

/// The certificate in use.
#[derive(Debug)]
pub(crate) struct CertificateReloader {
    files: CertificateFiles,
    /// What stood in the files when they were looked at last.
    last_contents: [Vec<u8>; 2],
    resolver: Arc<CertificateResolver>,
    up: Gauge,
    loads: Counter,
}

#[derive(Debug)]
struct CertificateResolver(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for CertificateResolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl CertificateReloader {
    /// Reads it for the first time.
    pub(crate) fn load(files: CertificateFiles, registry: &mut Registry) -> Result<Self, CertificateError> {
        let seen = read_files(&files)?;
        let in_use = Arc::new(CertificateResolver(ArcSwap::from_pointee(parse_certified_key(&files, &seen)?)));
        let (up, loads) = (Gauge::default(), Counter::default());
        let registry = registry.sub_registry_with_prefix("rollora_ext_proc_certificate");
        registry.register("up", "1 while the certificate's files can be used, 0 while an old one is kept", up.clone());
        registry.register("loads", "How often a certificate was taken into use", loads.clone());
        up.set(1);
        loads.inc();
        Ok(Self { files, last_contents: seen, resolver: in_use, up, loads })
    }

    /// What connections are accepted with, now and after every renewal.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, CertificateError> {
        let versions = ServerConfig::builder_with_provider(crypto_provider()).with_safe_default_protocol_versions()?;
        let mut config = versions.with_no_client_auth().with_cert_resolver(Arc::clone(&self.resolver) as _);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Follows the files for ever.
    pub(crate) async fn run(mut self) -> Infallible {
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            self.reload_if_changed();
        }
    }

    fn reload_if_changed(&mut self) {
        let problem = match read_files(&self.files) {
            Ok(texts) if texts == self.last_contents => return,
            Ok(texts) => {
                let certified = parse_certified_key(&self.files, &texts);
                self.last_contents = texts;
                match certified {
                    Ok(certified) => {
                        self.resolver.0.store(Arc::new(certified));
                        self.up.set(1);
                        self.loads.inc();
                        tracing::info!(certificate = %self.files.certificate.display(), "certificate renewed");
                        return;
                    }
                    Err(problem) => problem,
                }
            }
            // Said once for each outage.
            Err(_) if self.last_contents.iter().all(Vec::is_empty) => return,
            Err(problem) => {
                self.last_contents = Default::default();
                problem
            }
        };
        self.up.set(0);
        let cause = std::error::Error::source(&problem).map(|cause| format!(": {cause}")).unwrap_or_default();
        tracing::error!("the new certificate cannot be used, the old one stays: {problem}{cause}");
    }
}

fn read_files(files: &CertificateFiles) -> Result<[Vec<u8>; 2], CertificateError> {
    let text = |path: &Path| fs::read(path).map_err(|source| CertificateError::Read { path: path.to_owned(), source });
    Ok([text(&files.certificate)?, text(&files.key)?])
}

fn parse_certified_key(
    files: &CertificateFiles,
    [certificate, key]: &[Vec<u8>; 2],
) -> Result<CertifiedKey, CertificateError> {
    let pem = |path: &Path| {
        let path = path.to_owned();
        move |source| CertificateError::Pem { path, source }
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.map_err(pem(&files.certificate))?;
    if chain.is_empty() {
        return Err(pem(&files.certificate)(rustls::pki_types::pem::Error::NoItemsFound));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(pem(&files.key))?;
    Ok(CertifiedKey::from_der(chain, key, &crypto_provider())?)
}

fn crypto_provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
