//! TLS certificate of the server, reloaded from its two files when they change.
//!
//! Invariant: a certificate that cannot be used never replaces a valid one. The previous one stays active; the log and
//! the metric `up` report the failure.

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

/// Interval between two reads of the files. Certificates are renewed long before they expire, so this is often enough.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Paths of the certificate and its private key, both PEM files.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    /// Certificate chain, with the server's certificate first.
    pub certificate: PathBuf,
    /// Private key of the server's certificate.
    pub key: PathBuf,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read, or does not exist.
    #[error("cannot read {}, the file of --tls-cert or --tls-key", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the file system.
        source: io::Error,
    },
    /// A file is not PEM, or contains no certificate or key.
    #[error("{} is not a PEM file with a certificate or private key", path.display())]
    Pem {
        /// Path of the file.
        path: PathBuf,
        /// Error of the PEM parser.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not match, or the type of the key is not supported.
    #[error("the certificate of --tls-cert and the private key of --tls-key cannot be used")]
    Unusable(#[from] rustls::Error),
}

/// The active certificate, and what is needed to reload it.
#[derive(Debug)]
pub(crate) struct CertificateReloader {
    files: CertificateFiles,
    /// Contents of both files at the last read; empty after a failed read.
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
    /// Loads the certificate for the first time and registers its metrics.
    pub(crate) fn load(files: CertificateFiles, registry: &mut Registry) -> Result<Self, CertificateError> {
        let contents = read_files(&files)?;
        let key = parse_certified_key(&files, &contents)?;
        let resolver = Arc::new(CertificateResolver(ArcSwap::from_pointee(key)));
        let (up, loads) = (Gauge::default(), Counter::default());
        let registry = registry.sub_registry_with_prefix("rollora_ext_proc_certificate");
        registry.register(
            "up",
            "1 if the certificate files are valid, 0 while the previous certificate stays in use",
            up.clone(),
        );
        registry.register("loads", "Certificates loaded, including the first one", loads.clone());
        up.set(1);
        loads.inc();
        Ok(Self { files, last_contents: contents, resolver, up, loads })
    }

    /// Returns an acceptor that always uses the active certificate.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, CertificateError> {
        let versions = ServerConfig::builder_with_provider(crypto_provider()).with_safe_default_protocol_versions()?;
        let mut config = versions.with_no_client_auth().with_cert_resolver(Arc::clone(&self.resolver) as _);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Polls the files until the task is dropped.
    pub(crate) async fn run(mut self) -> Infallible {
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            self.reload_if_changed();
        }
    }

    fn reload_if_changed(&mut self) {
        let error = match read_files(&self.files) {
            Ok(contents) if contents == self.last_contents => return,
            Ok(contents) => {
                let certified = parse_certified_key(&self.files, &contents);
                self.last_contents = contents;
                match certified {
                    Ok(certified) => {
                        self.resolver.0.store(Arc::new(certified));
                        self.up.set(1);
                        self.loads.inc();
                        tracing::info!(certificate = %self.files.certificate.display(), "certificate renewed");
                        return;
                    }
                    Err(error) => error,
                }
            }
            // Log each outage once.
            Err(_) if self.last_contents.iter().all(Vec::is_empty) => return,
            Err(error) => {
                self.last_contents = Default::default();
                error
            }
        };
        self.up.set(0);
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        tracing::error!("the new certificate cannot be used, the previous one stays active: {error}{cause}");
    }
}

fn read_files(files: &CertificateFiles) -> Result<[Vec<u8>; 2], CertificateError> {
    let read = |path: &Path| fs::read(path).map_err(|source| CertificateError::Read { path: path.to_owned(), source });
    Ok([read(&files.certificate)?, read(&files.key)?])
}

fn parse_certified_key(
    files: &CertificateFiles,
    [certificate, key]: &[Vec<u8>; 2],
) -> Result<CertifiedKey, CertificateError> {
    let pem_error = |path: &Path| {
        let path = path.to_owned();
        move |source| CertificateError::Pem { path, source }
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.map_err(pem_error(&files.certificate))?;
    if chain.is_empty() {
        return Err(pem_error(&files.certificate)(rustls::pki_types::pem::Error::NoItemsFound));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(pem_error(&files.key))?;
    Ok(CertifiedKey::from_der(chain, key, &crypto_provider())?)
}

fn crypto_provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
