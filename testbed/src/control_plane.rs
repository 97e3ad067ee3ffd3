//! A real Kubernetes API server on its etcd, on loopback, with RBAC: what the programs of a cluster talk to.
//!
//! There is nothing else of a control plane: no controller manager, so namespaces end only when they are empty,
//! nothing is garbage-collected, no ServiceAccount is made for a namespace, and nobody turns a Deployment into pods.
//! What only costs time here is off: most of the admission plugins, priority and fairness, and the API groups that no
//! part of the bed has a use for.
//!
//! Both are ended with SIGKILL: asked to end, an API server holds its port for a minute.

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

/// How long a start may take on a machine that does much else: it takes two seconds on one that does not.
const START_TIMEOUT: Duration = Duration::from_mins(2);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// An API server and its etcd; they end when it is dropped, and with this process however that ends.
#[derive(Debug)]
pub struct ControlPlane {
    // In the order in which they end.
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
    /// Starts one of its own, without any custom resource, and waits until it is ready.
    pub async fn start() -> Result<Self> {
        // One of the parts may have installed it before.
        rustls::crypto::ring::default_provider().install_default().ok();
        let ports = ControlPlanePorts {
            api_server: ReservedPort::reserve()?,
            etcd: ReservedPort::reserve()?,
            etcd_peers: ReservedPort::reserve()?,
        };
        let folder = SelfCleaningDir::create()?;
        let identity = AuthFiles::create(folder.path(), ports.api_server.number())?;
        std::fs::write(folder.path().join("audit.yaml"), audit::AUDIT_POLICY)?;
        let mut etcd = Command::new(CONTROL_PLANE.program("etcd")?);
        etcd.args(flags::etcd_flags(folder.path(), ports.etcd.address(), ports.etcd_peers.address()));
        let etcd = ChildProcess::start("etcd", etcd, folder.path())?;
        let mut plane =
            Self { api_server: None, etcd, ports, auth: identity, namespace_count: AtomicU32::new(0), folder };
        plane.start_api_server().await?;
        Ok(plane)
    }

    /// The one that all beds of this process share, with our custom resource and upstream's in both groups. Each bed
    /// has a namespace of its own, see [`ControlPlane::namespace`].
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        let start = async || {
            let plane = Self::start().await?;
            plane.install_crds(&[rollora_crds()?, upstream_crds()?].concat()).await?;
            anyhow::Ok(plane)
        };
        SHARED.get_or_try_init(start).await
    }

    /// Starts the API server (again) on what etcd holds, and waits until it is ready. As in any cluster, custom
    /// resources may answer 429 for a moment longer.
    pub async fn start_api_server(&mut self) -> Result<()> {
        self.kill_api_server();
        let mut command = Command::new(CONTROL_PLANE.program("kube-apiserver")?);
        command.args(flags::api_server_flags(self.folder.path(), &self.ports));
        // It lives for minutes and holds little: memory is cheaper here than collecting it.
        command.env("GOGC", "400");
        self.api_server = Some(ChildProcess::start("kube-apiserver", command, self.folder.path())?);
        self.wait_ready().await
    }

    /// Ends the API server as a power cut does; what it held stays in etcd.
    pub fn kill_api_server(&mut self) {
        if let Some(process) = self.api_server.take() {
            process.kill();
        }
    }

    /// From now on the API server takes connections and answers none, until [`ControlPlane::thaw_api_server`].
    pub fn freeze_api_server(&self) {
        self.signal(Signal::STOP);
        // Its threads stand still one by one. Whoever ended meanwhile stands still too.
        let id = self.api_server.as_ref().and_then(|process| Pid::from_raw(process.id().cast_signed()));
        if let Some(id) = id {
            let until = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(id), until).ok();
        }
    }

    /// The API server goes on where it stood.
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
            // Its certificate is there as soon as it listens.
            if client.is_none() && tokio::net::TcpStream::connect(self.ports.api_server.address()).await.is_ok() {
                self.auth.save_ca_certificate()?;
                client = Some(self.admin_client().await?);
            }
            if let Some(client) = &client {
                let question = http::Request::get("/readyz").body(Vec::new())?;
                if client.request_text(question).await.is_ok() {
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

    /// Its base URL.
    pub fn url(&self) -> String {
        self.auth.url()
    }

    /// Where its etcd answers, without any TLS.
    pub fn etcd_address(&self) -> std::net::SocketAddr {
        self.ports.etcd.address()
    }

    /// The certificate of its authority, in a file.
    pub fn ca_certificate(&self) -> std::path::PathBuf {
        self.auth.ca_certificate()
    }

    /// A client that may do everything. It belongs to the runtime that it is made in.
    pub async fn admin_client(&self) -> Result<Client> {
        self.auth.client(&Credential::Token(self.auth.admin_token().to_owned())).await
    }

    /// A client of somebody else.
    pub async fn client(&self, credential: &Credential) -> Result<Client> {
        self.auth.client(credential).await
    }

    /// The text of a kubeconfig of somebody, with this namespace as the default.
    pub fn kubeconfig_for(&self, credential: &Credential, namespace: &str) -> String {
        self.auth.kubeconfig(credential, namespace)
    }

    /// A kubeconfig of the admin, in a file that is there as long as this is.
    pub fn admin_kubeconfig(&self) -> std::path::PathBuf {
        self.auth.admin_kubeconfig()
    }

    /// `kubectl` as the admin; its arguments are still missing.
    pub fn kubectl(&self) -> Result<Command> {
        let mut command = Command::new(CONTROL_PLANE.program("kubectl")?);
        command.env("KUBECONFIG", self.admin_kubeconfig());
        Ok(command)
    }

    /// A token of a service account, as a kubelet gets it for a pod. The API server lets none live shorter than ten
    /// minutes.
    pub async fn service_account_token(&self, namespace: &str, account: &str, lifetime: Duration) -> Result<String> {
        auth::request_token(&self.admin_client().await?, namespace, account, lifetime).await
    }

    /// A new namespace whose name begins with these words.
    pub async fn create_namespace(&self, words: &str) -> Result<String> {
        let name = format!("{words}-{}", self.namespace_count.fetch_add(1, Ordering::Relaxed));
        let namespace = Namespace {
            metadata: kube::core::ObjectMeta { name: Some(name.clone()), ..Default::default() },
            ..Default::default()
        };
        let namespaces = Api::<Namespace>::all(self.admin_client().await?);
        let made = namespaces.create(&PostParams::default(), &namespace).await;
        made.with_context(|| format!("cannot make the namespace {name}"))?;
        Ok(name)
    }

    /// Installs custom resources, and waits until they are served.
    pub async fn install_crds(&self, definitions: &[crds::CrdFile]) -> Result<()> {
        crds::install(&self.admin_client().await?, definitions).await
    }

    /// Takes a custom resource away with all of its objects, and waits until it is not served any more.
    pub async fn uninstall_crd(&self, definition: &crds::CrdFile) -> Result<()> {
        crds::uninstall(&self.admin_client().await?, definition).await
    }

    /// What was asked of the API server, from now on.
    pub fn audit_log(&self) -> AuditLog {
        AuditLog::from_end(&self.folder.path().join(audit::AUDIT_LOG))
    }

    /// The ends of both logs.
    pub fn logs(&self) -> String {
        let tails = ["etcd", "kube-apiserver"].map(|name| {
            let tail = crate::process::log_tail(&self.folder.path().join(format!("{name}.log")), 15);
            format!("{name}:\n{tail}")
        });
        tails.concat()
    }
}
