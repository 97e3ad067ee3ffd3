//! Whom vLLM's certificate is trusted through: a file that is watched, else the system's.

use crate::reloadable::Reloadable;
use rollora_vllm::{CaBundle, Endpoint, ServerName, Timeouts, TlsConfig, VllmClient};
use std::path::{Path, PathBuf};
use tokio::sync::watch;

/// What is said of TLS on the command line.
#[derive(Debug)]
pub(crate) struct TlsSettings {
    /// Whether vLLM speaks it.
    enabled: bool,
    server_name: Option<ServerName>,
    authorities: Reloadable<CaBundle>,
}

impl TlsSettings {
    /// A file of certificates turns TLS on.
    pub(crate) fn open(on: bool, file: Option<PathBuf>, server_name: Option<ServerName>) -> Result<Self, String> {
        let what = "vLLM's CA";
        let on = on || file.is_some();
        if server_name.is_some() && !on {
            return Err("--vllm-server-name: there is no certificate without TLS: give --vllm-tls too".to_owned());
        }
        let authorities = if let Some(file) = file {
            Reloadable::open(what, file, read_authorities).map_err(|problem| format!("--vllm-ca-file: {problem}"))?
        } else {
            if on {
                check_system_roots().map_err(|problem| format!("--vllm-tls: {problem}"))?;
            }
            Reloadable::fixed(what, None)
        };
        Ok(Self { enabled: on, server_name, authorities })
    }

    /// The file's content.
    pub(crate) fn authorities(&self) -> &Reloadable<CaBundle> {
        &self.authorities
    }

    /// As it is at this moment; none without TLS.
    pub(crate) fn subscribe(&self) -> TlsReceiver {
        TlsReceiver {
            enabled: self.enabled,
            server_name: self.server_name.clone(),
            authorities: self.authorities.value(),
        }
    }
}

/// What is trusted at each moment.
#[derive(Debug, Clone)]
pub(crate) struct TlsReceiver {
    enabled: bool,
    server_name: Option<ServerName>,
    authorities: watch::Receiver<Option<CaBundle>>,
}

impl TlsReceiver {
    /// Until the file's content is another one.
    pub(crate) async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.authorities.changed().await
    }

    /// What is trusted now; none without TLS.
    pub(crate) fn current(&mut self) -> Option<TlsConfig> {
        let authorities = self.authorities.borrow_and_update().clone();
        self.enabled.then(|| TlsConfig { ca_bundle: authorities, server_name: self.server_name.clone() })
    }
}

/// Better at the start than when a connection is made: the system may trust nobody.
fn check_system_roots() -> Result<(), String> {
    let anybody = Endpoint::parse("https://vllm").map_err(|error| error.to_string())?;
    VllmClient::new(anybody, Timeouts::default()).map(drop).map_err(|_| {
        "this system has no CA certificates to trust: give --vllm-ca-file the one that signed vLLM's".to_owned()
    })
}

fn read_authorities(path: &Path) -> Result<CaBundle, String> {
    let place = path.display();
    let pem = std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("{place}: there is no such file: put it there"),
        _ => format!("{place} cannot be read: {error}"),
    })?;
    CaBundle::parse(&pem).map_err(|error| format!("{place}: {error}"))
}
