//! TLS to vLLM: the trusted CAs come from a watched file, or else from the system.

use crate::reloadable::Reloadable;
use rollora_vllm::{CaBundle, Endpoint, ServerName, Timeouts, TlsConfig, VllmClient};
use std::path::{Path, PathBuf};
use tokio::sync::watch;

/// The TLS flags of the command line.
#[derive(Debug)]
pub(crate) struct TlsSettings {
    enabled: bool,
    server_name: Option<ServerName>,
    authorities: Reloadable<CaBundle>,
}

impl TlsSettings {
    /// Opens the CA file, which implies TLS, or checks that the system has CAs.
    pub(crate) fn open(enabled: bool, file: Option<PathBuf>, server_name: Option<ServerName>) -> Result<Self, String> {
        let description = "vLLM's CA";
        let enabled = enabled || file.is_some();
        if server_name.is_some() && !enabled {
            return Err("--vllm-server-name: has no meaning without TLS: give --vllm-tls too".to_owned());
        }
        let authorities = if let Some(file) = file {
            Reloadable::open(description, file, read_authorities)
                .map_err(|problem| format!("--vllm-ca-file: {problem}"))?
        } else {
            if enabled {
                check_system_roots().map_err(|problem| format!("--vllm-tls: {problem}"))?;
            }
            Reloadable::fixed(description, None)
        };
        Ok(Self { enabled, server_name, authorities })
    }

    /// Returns the reloadable CAs, whose file the caller must watch.
    pub(crate) fn authorities(&self) -> &Reloadable<CaBundle> {
        &self.authorities
    }

    /// Returns a receiver of the TLS settings and their changes.
    pub(crate) fn subscribe(&self) -> TlsReceiver {
        TlsReceiver {
            enabled: self.enabled,
            server_name: self.server_name.clone(),
            authorities: self.authorities.value(),
        }
    }
}

/// The present TLS settings and their changes.
#[derive(Debug, Clone)]
pub(crate) struct TlsReceiver {
    enabled: bool,
    server_name: Option<ServerName>,
    authorities: watch::Receiver<Option<CaBundle>>,
}

impl TlsReceiver {
    /// Waits until the CAs have changed.
    pub(crate) async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.authorities.changed().await
    }

    /// Returns the present settings; `None` without TLS.
    pub(crate) fn current(&mut self) -> Option<TlsConfig> {
        let authorities = self.authorities.borrow_and_update().clone();
        self.enabled.then(|| TlsConfig { ca_bundle: authorities, server_name: self.server_name.clone() })
    }
}

/// Fails at the start instead of at the first connection, if the system has no CA certificates.
fn check_system_roots() -> Result<(), String> {
    let any_server = Endpoint::parse("https://vllm").map_err(|error| error.to_string())?;
    VllmClient::new(any_server, Timeouts::default()).map(drop).map_err(|_| {
        "this system has no CA certificates: give --vllm-ca-file with the one that signed vLLM's certificate".to_owned()
    })
}

fn read_authorities(path: &Path) -> Result<CaBundle, String> {
    let location = path.display();
    let pem = std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("{location}: no such file: create it"),
        _ => format!("{location} cannot be read: {error}"),
    })?;
    CaBundle::parse(&pem).map_err(|error| format!("{location}: {error}"))
}
