//! Client configuration for the API server: address, credentials, timeouts.
//!
//! Connecting sends no request: a program also starts while the API server is down, and continues once it is back.

use http::header::{HeaderValue, USER_AGENT};
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt as _},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use std::{error::Error, fmt::Write as _, path::PathBuf, time::Duration};
use tower::{BoxError, ServiceBuilder};

/// Timeout for establishing a connection. Every call has its own timeout in addition.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for a connection that accepts no bytes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of bytes that one read returns. A connection keeps a buffer as large as its largest read, and each
/// watch has its own connection.
const READ_BUFFER_BYTES: usize = 32 << 10;
/// Time for which an idle connection is kept for the next call.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Source of the cluster configuration; unset fields are inferred.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Kubeconfig file; default: the files of `KUBECONFIG`, then `~/.kube/config`, then the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; default: its current context.
    pub context: Option<String>,
}

/// Client for one cluster. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    server: String,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Reason why no cluster can be accessed, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A kubeconfig was named but is not usable.
    #[error("the kubeconfig {file} cannot be used: {why}: fix it, or name another one")]
    Kubeconfig {
        /// Path of the kubeconfig, or the value of `KUBECONFIG`.
        file: String,
        /// Cause of the failure, as text.
        why: String,
    },
    /// Neither a kubeconfig nor a service account was found.
    #[error(
        "no cluster configuration found: set KUBECONFIG to a kubeconfig (the default one is not usable: {kubeconfig}), \
         or run this in a pod with a service account ({pod})"
    )]
    NoConfig {
        /// Why the default kubeconfig is not usable.
        kubeconfig: String,
        /// Why the pod's service account is not usable.
        pod: String,
    },
    /// A configuration was found, but no client can be built from it.
    #[error("cannot build a client for the API server {server} from its configuration: {why}")]
    InvalidConfig {
        /// URL of the API server.
        server: String,
        /// Cause of the failure, as text.
        why: String,
    },
}

impl Cluster {
    /// Infers the configuration and builds a client. `agent` is the program name for the user agent and audit logs.
    ///
    /// # Errors
    /// [`ConnectError`] if no usable configuration is found.
    pub async fn connect(access: &ConnectOptions, agent: &str) -> Result<Self, ConnectError> {
        let mut config = infer_config(access).await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.write_timeout = Some(WRITE_TIMEOUT);
        // Callers decide about retries: a retry at this level would hide an outage from them.
        config.default_retry = false;
        let agent = format!("{agent}/{}", env!("CARGO_PKG_VERSION"));
        config.headers.extend(HeaderValue::from_str(&agent).ok().map(|agent| (USER_AGENT, agent)));
        let server = config.cluster_url.to_string();
        let proxy = config.proxy_url.as_ref().map(ToString::to_string);
        let client = build_client(config).map_err(|error| ConnectError::InvalidConfig {
            server: server.clone(),
            why: match proxy {
                Some(proxy) => format!(
                    "{error}; its proxy is {proxy}: unset HTTPS_PROXY, name the server in NO_PROXY, or remove \
                     proxy-url from the kubeconfig"
                ),
                None => error_chain(&error),
            },
        })?;
        Ok(Self { client, server })
    }

    /// Wraps an existing client, whose server URL is not known.
    pub fn from_client(client: Client) -> Self {
        Self { client, server: "the API server".to_owned() }
    }

    /// Returns the namespace of the kubeconfig's context, or of the pod.
    pub fn default_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    /// Returns the URL of the API server.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Returns kube's client, which shares its connections.
    pub(crate) fn kube_client(&self) -> Client {
        self.client.clone()
    }
}

/// Builds the same stack of layers as kube, but with smaller buffers and shorter idle times.
fn build_client(config: Config) -> Result<Client, kube::Error> {
    if config.proxy_url.is_some() {
        // Only kube knows how to connect through a proxy.
        return Client::try_from(config);
    }
    let mut connector = TimeoutConnector::new(config.rustls_https_connector()?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    let calls: legacy::Client<_, Body> = legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_timer(TokioTimer::new())
        .http1_max_buf_size(READ_BUFFER_BYTES)
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(calls);
    Ok(Client::new(service, config.default_namespace))
}

async fn infer_config(access: &ConnectOptions) -> Result<Config, ConnectError> {
    let options = KubeConfigOptions { context: access.context.clone(), ..KubeConfigOptions::default() };
    if let Some(file) = &access.kubeconfig {
        let named = |error: &KubeconfigError| ConnectError::Kubeconfig {
            file: file.display().to_string(),
            why: error_chain(error),
        };
        let kubeconfig = Kubeconfig::read_from(file).map_err(|error| named(&error))?;
        return Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| named(&error));
    }
    let kubeconfig = match Config::from_kubeconfig(&options).await {
        Ok(config) => return Ok(config),
        Err(error) => error,
    };
    // A file or context that was named explicitly must not fall back to the pod's own account, which may mean another
    // cluster or another identity.
    let named = std::env::var("KUBECONFIG").ok().filter(|files| !files.is_empty());
    if named.is_some() || access.context.is_some() {
        let file = named.unwrap_or_else(|| "~/.kube/config".to_owned());
        return Err(ConnectError::Kubeconfig { file, why: error_chain(&kubeconfig) });
    }
    Config::incluster()
        .map_err(|pod| ConnectError::NoConfig { kubeconfig: error_chain(&kubeconfig), pod: error_chain(&pod) })
}

/// Formats an error with its causes, without those that an outer error already contains.
pub(crate) fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            // Writing to a String does not fail.
            write!(text, ": {inner_text}").ok();
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests;
