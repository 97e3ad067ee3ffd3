//! The way to the API server: where it is, who we are there, how long an answer may take.
//!
//! Connecting asks nobody: a program starts also while the API server is away, and goes on when it is back.

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

/// How long connecting may take. Once connected, every call has a time limit of its own.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may refuse to take what is sent.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The most that is read at once, in bytes. Every connection keeps room for as much as it has ever read at once, and each
/// watch has one of its own.
const READ_BUFFER_BYTES: usize = 32 << 10;
/// How long a connection is kept for the next call.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Where the cluster's description comes from; everything is found out where nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectOptions {
    /// A kubeconfig; else those of `KUBECONFIG`, else `~/.kube/config`, else the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig; else its current one.
    pub context: Option<String>,
}

/// One cluster, as it is reached from here. Cheap to clone; clones share their connections.
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

/// Why there is no way to any cluster. Says what to mend.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A kubeconfig was meant, and it cannot be used.
    #[error("the kubeconfig {file} cannot be used: {why}: mend it, or name another one")]
    Kubeconfig {
        /// Which.
        file: String,
        /// Why not.
        why: String,
    },
    /// Nothing says where a cluster is.
    #[error(
        "no cluster is known here: set KUBECONFIG to a kubeconfig (there is none in the default place either: {kubeconfig}), \
         or run this in a pod with a service account ({pod})"
    )]
    NoConfig {
        /// Why no kubeconfig is used.
        kubeconfig: String,
        /// Why no service account is used.
        pod: String,
    },
    /// It is described, but no client can be made of it.
    #[error("{server} cannot be reached as it is described: {why}")]
    InvalidConfig {
        /// The API server.
        server: String,
        /// Why not.
        why: String,
    },
}

impl Cluster {
    /// Reads where the cluster is. `agent` is the program's name, as audit logs show it.
    pub async fn connect(access: &ConnectOptions, agent: &str) -> Result<Self, ConnectError> {
        let mut config = infer_config(access).await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.write_timeout = Some(WRITE_TIMEOUT);
        // Who asks decides when to ask again: a repetition down here would hide an outage from there.
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

    /// A cluster that is reached by this client.
    pub fn from_client(client: Client) -> Self {
        Self { client, server: "the API server".to_owned() }
    }

    /// The namespace of the kubeconfig's context, or of the pod.
    pub fn default_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    /// The API server's URL.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// kube's client.
    pub(crate) fn kube_client(&self) -> Client {
        self.client.clone()
    }
}

/// Calls go the way that kube would send them, but with connections that keep less.
fn build_client(config: Config) -> Result<Client, kube::Error> {
    if config.proxy_url.is_some() {
        // How to get through a proxy is known to kube alone.
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
    // Who names a file or a context means it: the pod's own account would be another cluster or another identity.
    let named = std::env::var("KUBECONFIG").ok().filter(|files| !files.is_empty());
    if named.is_some() || access.context.is_some() {
        let file = named.unwrap_or_else(|| "~/.kube/config".to_owned());
        return Err(ConnectError::Kubeconfig { file, why: error_chain(&kubeconfig) });
    }
    Config::incluster()
        .map_err(|pod| ConnectError::NoConfig { kubeconfig: error_chain(&kubeconfig), pod: error_chain(&pod) })
}

/// An error with its causes, each said once: outer errors often repeat the inner ones.
pub(crate) fn error_chain(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_words = inner.to_string();
        if !words.contains(&inner_words) {
            // Writing to a String does not fail.
            write!(words, ": {inner_words}").ok();
        }
        cause = inner.source();
    }
    words
}

#[cfg(test)]
mod tests;
