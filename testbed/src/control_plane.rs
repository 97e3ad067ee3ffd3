//! A real Kubernetes API server with its etcd, on loopback, with RBAC.
//!
//! No other part of a control plane runs. Without a controller manager, a namespace can be deleted only when it is
//! empty, nothing is garbage-collected, a new namespace gets no default ServiceAccount, and Deployments create no pods.
//! Features that only cost time are disabled: most admission plugins, priority and fairness, and the API groups that
//! the testbed does not use.
//!
//! Both processes are stopped with SIGKILL: after SIGTERM an API server holds its port for a minute.

mod audit;
mod auth;
mod crds;
mod flags;
mod temp_dir;

pub use audit::{AuditEvent, AuditLog, AuthorizationDecision};
pub use auth::Credential;
pub(super) use auth::request_token;
pub use crds::{CrdFile, ROLLOUT_CRD, UPSTREAM_CRDS, UpstreamCrds, rollora_crds, upstream_crds};

use super::tools::CONTROL_PLANE;
use crate::{clock, ports::ReservedPort, process::ChildProcess};
use anyhow::{Context as _, Result, bail};
use auth::AuthFiles;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, api::PostParams};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use std::{
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use temp_dir::SelfCleaningDir;
use tokio::sync::OnceCell;

/// Upper bound for a start on a machine under load; on an idle machine it takes two seconds.
const START_TIMEOUT: Duration = Duration::from_mins(2);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// An API server and its etcd. Both processes end when this is dropped or when this process ends, however it ends.
#[derive(Debug)]
pub struct ControlPlane {
    // Fields are dropped in this order: the API server ends before etcd.
    api_server: Option<ChildProcess>,
    etcd: ChildProcess,
    ports: ControlPlanePorts,
    auth: AuthFiles,
    namespace_count: AtomicU32,
    folder: SelfCleaningDir,
}

#[derive(Debug)]
struct ControlPlanePorts {
    api_server: ReservedPort,
    etcd: ReservedPort,
    etcd_peers: ReservedPort,
}

impl ControlPlane {
    /// Starts a separate control plane without any CRD, and waits until it is ready.
    pub async fn start() -> Result<Self> {
        // An error means that another component has installed the provider already.
        rustls::crypto::ring::default_provider().install_default().ok();
        let ports = ControlPlanePorts {
            api_server: ReservedPort::reserve()?,
            etcd: ReservedPort::reserve()?,
            etcd_peers: ReservedPort::reserve()?,
        };
        let folder = SelfCleaningDir::create()?;
        let auth_files = AuthFiles::create(folder.path(), ports.api_server.number())?;
        std::fs::write(folder.path().join("audit.yaml"), audit::AUDIT_POLICY)?;
        let mut etcd = Command::new(CONTROL_PLANE.program("etcd")?);
        etcd.args(flags::etcd_flags(folder.path(), ports.etcd.address(), ports.etcd_peers.address()));
        let etcd = ChildProcess::start("etcd", etcd, folder.path())?;
        let mut plane =
            Self { api_server: None, etcd, ports, auth: auth_files, namespace_count: AtomicU32::new(0), folder };
        plane.start_api_server().await?;
        Ok(plane)
    }

    /// Returns the control plane that all testbeds of this process share, with Rollora's CRD and upstream's CRDs, the
    /// rewrite in both groups. Each testbed has a namespace of its own, see [`ControlPlane::create_namespace`].
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        let start = async || {
            let plane = Self::start().await?;
            plane.install_crds(&[rollora_crds()?, upstream_crds()?].concat()).await?;
            anyhow::Ok(plane)
        };
        SHARED.get_or_try_init(start).await
    }

    /// Starts or restarts the API server on the contents of etcd, and waits until it is ready. As in any cluster,
    /// custom resources may return 429 for a moment longer.
    pub async fn start_api_server(&mut self) -> Result<()> {
        self.kill_api_server();
        let mut command = Command::new(CONTROL_PLANE.program("kube-apiserver")?);
        command.args(flags::api_server_flags(self.folder.path(), &self.ports));
        // The process lives for minutes and holds little data, so memory is cheaper than garbage collection.
        command.env("GOGC", "400");
        self.api_server = Some(ChildProcess::start("kube-apiserver", command, self.folder.path())?);
        self.wait_ready().await
    }

    /// Kills the API server as a power cut would; its data stays in etcd.
    pub fn kill_api_server(&mut self) {
        if let Some(process) = self.api_server.take() {
            process.kill();
        }
    }

    /// Stops the API server (SIGSTOP): it accepts connections but does not respond until
    /// [`ControlPlane::thaw_api_server`].
    pub fn freeze_api_server(&self) {
        self.signal(Signal::STOP);
        // SIGSTOP stops the threads one by one, so wait for the whole process. A process that has exited counts too.
        let id = self.api_server.as_ref().and_then(|process| Pid::from_raw(process.id().cast_signed()));
        if let Some(id) = id {
            let until = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(id), until).ok();
        }
    }

    /// Resumes the API server after [`ControlPlane::freeze_api_server`].
    pub fn thaw_api_server(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.api_server {
            process.signal(signal);
        }
    }

    async fn wait_ready(&self) -> Result<()> {
        let start = clock::now();
        let mut client = None;
        loop {
            // The API server writes its certificate before it listens.
            if client.is_none() && tokio::net::TcpStream::connect(self.ports.api_server.address()).await.is_ok() {
                self.auth.save_ca_certificate()?;
                client = Some(self.admin_client().await?);
            }
            if let Some(client) = &client {
                let request = http::Request::get("/readyz").body(Vec::new())?;
                if client.request_text(request).await.is_ok() {
                    return Ok(());
                }
            }
            let ended = self.processes().find_map(|process| Some((process.name(), process.exit_reason()?)));
            if ended.is_some() || start.elapsed() > START_TIMEOUT {
                bail!("the API server is not ready after {:?} (ended: {ended:?})\n{}", start.elapsed(), self.logs());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    fn processes(&self) -> impl Iterator<Item = &ChildProcess> {
        self.api_server.iter().chain([&self.etcd])
    }

    /// Returns the base URL of the API server.
    pub fn url(&self) -> String {
        self.auth.url()
    }

    /// Returns the client address of etcd, which uses no TLS.
    pub fn etcd_address(&self) -> std::net::SocketAddr {
        self.ports.etcd.address()
    }

    /// Returns the file with the CA certificate of the API server.
    pub fn ca_certificate(&self) -> std::path::PathBuf {
        self.auth.ca_certificate()
    }

    /// Returns a client with all rights. It is bound to the runtime in which it is created.
    pub async fn admin_client(&self) -> Result<Client> {
        self.auth.client(&Credential::Token(self.auth.admin_token().to_owned())).await
    }

    /// Returns a client that authenticates with `credential`.
    pub async fn client(&self, credential: &Credential) -> Result<Client> {
        self.auth.client(credential).await
    }

    /// Returns the text of a kubeconfig for `credential`, with `namespace` as the default namespace.
    pub fn kubeconfig_for(&self, credential: &Credential, namespace: &str) -> String {
        self.auth.kubeconfig(credential, namespace)
    }

    /// Returns the file with the admin's kubeconfig; it exists as long as this control plane.
    pub fn admin_kubeconfig(&self) -> std::path::PathBuf {
        self.auth.admin_kubeconfig()
    }

    /// Returns a `kubectl` command with the admin's kubeconfig; the caller adds the arguments.
    pub fn kubectl(&self) -> Result<Command> {
        let mut command = Command::new(CONTROL_PLANE.program("kubectl")?);
        command.env("KUBECONFIG", self.admin_kubeconfig());
        Ok(command)
    }

    /// Requests a token of a service account, as a kubelet does for a pod. The API server grants no lifetime below ten
    /// minutes.
    pub async fn service_account_token(&self, namespace: &str, account: &str, lifetime: Duration) -> Result<String> {
        auth::request_token(&self.admin_client().await?, namespace, account, lifetime).await
    }

    /// Creates a namespace with a unique name that begins with `prefix`, and returns the name.
    pub async fn create_namespace(&self, prefix: &str) -> Result<String> {
        let name = format!("{prefix}-{}", self.namespace_count.fetch_add(1, Ordering::Relaxed));
        let namespace = Namespace {
            metadata: kube::core::ObjectMeta { name: Some(name.clone()), ..Default::default() },
            ..Default::default()
        };
        let namespaces = Api::<Namespace>::all(self.admin_client().await?);
        let created = namespaces.create(&PostParams::default(), &namespace).await;
        created.with_context(|| format!("cannot create the namespace {name}"))?;
        Ok(name)
    }

    /// Installs CRDs, and waits until their resources are served.
    pub async fn install_crds(&self, definitions: &[crds::CrdFile]) -> Result<()> {
        crds::install(&self.admin_client().await?, definitions).await
    }

    /// Deletes a CRD with all of its objects, and waits until its resource is no longer served.
    pub async fn uninstall_crd(&self, definition: &crds::CrdFile) -> Result<()> {
        crds::uninstall(&self.admin_client().await?, definition).await
    }

    /// Returns a view of the audit log that begins with the next request.
    pub fn audit_log(&self) -> AuditLog {
        AuditLog::from_end(&self.folder.path().join(audit::AUDIT_LOG))
    }

    /// Returns the last lines of both logs.
    pub fn logs(&self) -> String {
        let tails = ["etcd", "kube-apiserver"].map(|name| {
            let tail = crate::process::log_tail(&self.folder.path().join(format!("{name}.log")), 15);
            format!("{name}:\n{tail}")
        });
        tails.concat()
    }
}
