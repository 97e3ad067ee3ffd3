//! The bed on the parts of a cluster: a namespace of its own on a real API server, the manifests that are shipped, pods
//! that the kubelet stand-in runs, and a real Envoy in front.
//!
//! What the bed itself plays: the Deployment controller ([`super::workloads`]), whoever tells Envoy which pods are Ready
//! ([`super::gateway`]), and the people with their `kubectl`.

mod deaths;
mod evidence;
mod server;

use super::{
    control_plane::{Audit, AuditEvent, ControlPlane},
    gateway::{self, Backend, Bodies, Gateway},
    kubelet::{Backoff, Container, Kubelet, Options},
    manifests::{self, Manifests},
    mirror::Mirror,
    picker::{self, Picker},
    pods,
    workloads::{self, Workloads},
};
use crate::{
    bed::{Bed, Place, Setup},
    clock,
    guide::{ADAPTERS, MODEL, POOL},
    http::{self, Address},
    process::program,
    rollora::{Spoken, run},
    rules::Routers,
    seen::{Seen, ServerSeen},
    server::{Kind, Server},
};
use anyhow::{Context as _, Result, ensure};
use futures_util::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use rollora_api::{
    names::{OPERATOR_KEY, ROUTER_POOL_LABEL, ROUTER_PORT, SIDECAR_PORT},
    rollout::RolloutResource,
};
use serde_json::{Value, json};
use server::{Kinds, PodServer};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::task::JoinSet;

/// The Deployments of the manifests.
const VLLM: &str = "vllm-qwen3-32b";
const OPERATOR: &str = "rollora-operator";
const EXT_PROC: &str = "rollora-ext-proc";
/// The key of the adapters ConfigMap that is the user's.
const KEY: &str = "configmap.yaml";
/// How long a part may take to appear, on a machine that does much else.
const START: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// What a bed is made of, besides what its [`Setup`] says.
pub struct Parts {
    /// Its own control plane, with everything installed that it needs; else the shared one.
    pub plane: Option<ControlPlane>,
    /// Which folders of `manifests/`.
    pub manifests: Vec<&'static str>,
    /// How long after a change of the ConfigMap a kubelet brings it to the pods that mount it.
    pub projection_delay: Duration,
    /// When the kubelet starts again what ended by itself.
    pub backoff: Backoff,
    /// What a user's overlay would change in the manifests.
    pub change: Change,
    /// How Envoy hands bodies to ext-proc.
    pub bodies: Bodies,
    /// Upstream's endpoint picker.
    pub picker: Option<Picker>,
    /// The address of a hub that the sidecars fetch from. Without one servers are given the hub's names: no test
    /// reaches the internet.
    pub hub: Option<String>,
}

/// Changes manifests.
pub type Change = Box<dyn Fn(&mut Manifests) -> Result<()> + Send + Sync>;

/// An operator for the namespace, two replicas of ext-proc, sidecars that read the mounted ConfigMap, at once.
impl Default for Parts {
    fn default() -> Self {
        Self {
            plane: None,
            manifests: vec!["operator-one-namespace", "ext-proc", "vllm"],
            projection_delay: Duration::ZERO,
            backoff: Backoff::default(),
            change: Box::new(|_| Ok(())),
            bodies: Bodies::default(),
            picker: None,
            hub: None,
        }
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parts({:?}, own control plane: {})", self.manifests, self.plane.is_some())
    }
}

/// The parts of a cluster.
pub struct Cluster {
    // In this order they end.
    gateway: Gateway,
    audit: Audit,
    _tasks: JoinSet<()>,
    kubelet: Kubelet,
    picker: Option<Picker>,
    servers: Vec<Server>,
    watched: Arc<Watched>,
    client: Client,
    namespace: String,
    kinds: Kinds,
    api_key: Option<String>,
    rollout: Mutex<String>,
    plane: Plane,
    folder: TempDir,
}

/// What the bed knows of the API server's objects.
#[derive(Debug)]
struct Watched {
    pods: Mirror<Pod>,
    maps: Mirror<ConfigMap>,
    rollouts: Mirror<RolloutResource>,
    workloads: Workloads,
}

#[derive(Debug)]
enum Plane {
    Shared(&'static ControlPlane),
    Own(Box<ControlPlane>),
}

impl Plane {
    fn get(&self) -> &ControlPlane {
        match self {
            Self::Shared(plane) => plane,
            Self::Own(plane) => plane,
        }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cluster({} in {})", self.namespace, self.folder.path().display())
    }
}

impl Cluster {
    /// Starts everything, of these parts.
    pub async fn start_with(setup: &Setup, parts: Parts) -> Result<Self> {
        let mut bed = Self::prepare(setup, parts).await?;
        bed.servers_answer(setup).await?;
        bed.gateway_is_ready().await?;
        Ok(bed)
    }

    /// Creates all objects, and begins to run what they say. Who wants to tell of the rest waits for it:
    /// [`Self::servers_answer`], and then [`Self::gateway_is_ready`].
    pub async fn prepare(setup: &Setup, parts: Parts) -> Result<Self> {
        let plane = match parts.plane {
            Some(plane) => Plane::Own(Box::new(plane)),
            None => Plane::Shared(ControlPlane::shared().await?),
        };
        let folder = tempfile::Builder::new().prefix("rollora-").tempdir().context("no temporary folder")?;
        let namespace = plane.get().namespace("bed").await?;
        let client = plane.get().admin().await?;
        let audit = plane.get().audit();

        let mut objects = Manifests::render(plane.get(), &parts.manifests, &namespace, folder.path())?;
        fit(&mut objects, setup, &namespace, parts.hub.as_deref())?;
        (parts.change)(&mut objects)?;
        if let Some(picker) = &parts.picker {
            picker.add_objects(&mut objects, &namespace);
        }
        objects.apply(&client).await?;

        let kinds = Kinds::new(&setup.servers);
        let mut programs = server::programs(&kinds)?;
        if parts.picker.is_some() {
            programs = Picker::add_to(programs)?;
        }
        let mut options = Options::new(plane.get(), &namespace, programs, folder.path().to_owned()).await?;
        options.projection_delay = parts.projection_delay;
        options.backoff = parts.backoff;
        let workloads = Workloads::of(&objects.objects, &options.node)?;
        let kubelet = Kubelet::start(options)?;

        let backends = backends(&objects, parts.picker.as_ref())?;
        let gateway = Gateway::start(&backends, parts.bodies, parts.picker.as_ref(), folder.path())?;
        let watched =
            Arc::new(Watched { pods: Mirror::new(), maps: Mirror::new(), rollouts: Mirror::new(), workloads });
        let mut tasks = JoinSet::new();
        watched.follow(&mut tasks, &client, &namespace);
        tasks.spawn({
            let (watched, folder) = (Arc::clone(&watched), gateway.folder().to_owned());
            async move { gateway::follow(backends, folder, &watched.pods).await }
        });
        let bed = Self {
            gateway,
            audit,
            _tasks: tasks,
            kubelet,
            picker: parts.picker,
            servers: Vec::new(),
            watched,
            client,
            namespace,
            kinds,
            api_key: setup.api_key.clone(),
            rollout: Mutex::default(),
            plane,
            folder,
        };
        bed.write_rollout(&setup.rollout.yaml()).await?;
        Ok(bed)
    }

    /// Waits until every server answers; they are known then.
    pub async fn servers_answer(&mut self, setup: &Setup) -> Result<()> {
        self.find_servers(setup).await?;
        try_join_all(self.servers.iter().map(Server::answers)).await.map(drop)
    }

    /// Waits until Envoy has its endpoints and listens.
    pub async fn gateway_is_ready(&self) -> Result<()> {
        self.gateway.ready().await?;
        if self.picker.as_ref().is_none_or(|picker| !picker.is_alone()) {
            self.reaches_ext_proc().await?;
        }
        if self.picker.is_some() {
            self.reaches(picker::DEPLOYMENT, picker::CLUSTER).await?;
        }
        Ok(())
    }

    /// Waits until every pod of the operator is Ready.
    pub async fn operator_is_ready(&self) -> Result<()> {
        let ready = |bed: &Self| {
            let pods = workloads::pods_of(OPERATOR, &bed.watched.pods);
            !pods.is_empty() && pods.iter().all(pods::is_ready)
        };
        self.wait("every pod of the operator is Ready", ready).await
    }

    /// Waits for the pods of vLLM, whose servers are then known.
    async fn find_servers(&mut self, setup: &Setup) -> Result<()> {
        let wanted = setup.servers.len();
        let there = |bed: &Self| workloads::pods_of(VLLM, &bed.watched.pods).len() == wanted;
        self.wait("there are as many pods of vLLM as wanted", there).await?;
        for pod in workloads::pods_of(VLLM, &self.watched.pods) {
            let server = self.server(&pod.name_any()).await?;
            self.servers.push(server);
        }
        Ok(())
    }

    async fn server(&self, pod: &str) -> Result<Server> {
        let container = self.kubelet.container(pod, "vllm").await?;
        // As on one machine: who restarts what died is the scenario.
        container.stays_down_when_it_ends(true);
        let address = (container.address(), server::PORT).into();
        let kind = self.kinds.of(pod);
        let keeper = Box::new(PodServer::new(container, self.kinds.clone()));
        Ok(Server::kept(pod, address, self.api_key.as_deref(), &kind, keeper))
    }

    async fn wait(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<()> {
        let start = clock::now();
        while !holds(self) {
            self.still_in_time(start, what).await?;
        }
        Ok(())
    }

    /// Waits until Envoy sends requests by way of every pod of ext-proc, and no other.
    pub async fn reaches_ext_proc(&self) -> Result<()> {
        self.reaches(EXT_PROC, EXT_PROC).await
    }

    async fn reaches(&self, deployment: &str, cluster: &str) -> Result<()> {
        let start = clock::now();
        loop {
            let pods = workloads::pods_of(deployment, &self.watched.pods);
            let wanted: BTreeSet<_> = pods.iter().filter_map(pods::address).map(IpAddr::V4).collect();
            if !wanted.is_empty() && wanted.len() == pods.len() && self.gateway.endpoints(cluster).await == wanted {
                return Ok(());
            }
            self.still_in_time(start, &format!("Envoy reaches every pod of {deployment}")).await?;
        }
    }

    async fn still_in_time(&self, start: Instant, what: &str) -> Result<()> {
        if start.elapsed() > START {
            let (objects, logs) = (self.objects().await, self.logs());
            anyhow::bail!("after {START:?} it is not so that {what}\n{objects}\n{logs}");
        }
        tokio::time::sleep(LOOK).await;
        Ok(())
    }

    /// A person deletes the pod of a server. Another one takes its place, and is waited for until it answers. The moment
    /// at which the old server was dead.
    pub async fn delete_server(&mut self, index: usize) -> Result<Instant> {
        let name = self.servers[index].name();
        let old = self.kubelet.container(&name, "vllm").await?;
        let new = self.delete_pod(VLLM, &name).await?;
        self.wait("the deleted server has ended", |_| !old.runs()).await?;
        let dead = clock::now();
        self.servers[index] = self.server(&new).await?;
        self.servers[index].answers().await?;
        Ok(dead)
    }

    /// A person deletes the pod of a replica of ext-proc; another one takes its place.
    pub async fn delete_ext_proc(&self, index: usize) -> Result<()> {
        let pods = workloads::pods_of(EXT_PROC, &self.watched.pods);
        let name = pods.get(index).map(Pod::name_any).context("there is no such replica")?;
        self.delete_pod(EXT_PROC, &name).await.map(drop)
    }

    /// A person deletes the pod of a Deployment; the name of the one that takes its place.
    async fn delete_pod(&self, deployment: &str, name: &str) -> Result<String> {
        let names = |bed: &Self| -> Vec<_> {
            workloads::pods_of(deployment, &bed.watched.pods).iter().map(Pod::name_any).collect()
        };
        let before = names(self);
        self.pods().delete(name, &DeleteParams::default()).await?;
        self.wait("another pod takes the place of the deleted one", |bed| {
            let now = names(bed);
            now.len() == before.len() && !now.iter().any(|pod| pod == name)
        })
        .await?;
        names(self).into_iter().find(|pod| !before.contains(pod)).context("no new pod")
    }

    /// From now on a Deployment has so many pods.
    pub fn scale(&self, deployment: &str, replicas: usize) {
        self.watched.workloads.scale(deployment, replicas);
    }

    /// The containers of this name in the pods of a Deployment.
    pub fn containers(&self, deployment: &str, name: &str) -> Vec<Container> {
        let pods = workloads::pods_of(deployment, &self.watched.pods);
        pods.iter().filter_map(|pod| self.kubelet.find(&pod.name_any(), name)).collect()
    }

    /// The sidecar beside a server.
    pub fn sidecar(&self, index: usize) -> Result<Container> {
        let pod = self.servers[index].name();
        self.kubelet.find(&pod, "rollora-sidecar").with_context(|| format!("no sidecar in {pod}"))
    }

    /// The replicas of ext-proc.
    pub fn ext_procs(&self) -> Vec<Container> {
        self.containers(EXT_PROC, "ext-proc")
    }

    /// The replicas of the operator.
    pub fn operators(&self) -> Vec<Container> {
        self.containers(OPERATOR, "operator")
    }

    /// The kubelet.
    pub fn kubelet(&self) -> &Kubelet {
        &self.kubelet
    }

    /// The API server.
    pub fn plane(&self) -> &ControlPlane {
        self.plane.get()
    }

    /// Ends the API server as a power cut does, where it is this bed's own.
    pub fn kill_api_server(&mut self) -> Result<()> {
        self.own_plane()?.kill_api_server();
        Ok(())
    }

    /// Starts it again on what etcd holds.
    pub async fn start_api_server(&mut self) -> Result<()> {
        self.own_plane()?.start_api_server().await
    }

    fn own_plane(&mut self) -> Result<&mut ControlPlane> {
        match &mut self.plane {
            Plane::Own(plane) => Ok(plane),
            Plane::Shared(_) => anyhow::bail!("other beds need this API server: give this one its own in Parts"),
        }
    }

    /// A client that may do everything.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The namespace of the bed.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Where Envoy says what it does.
    pub fn envoy_admin(&self) -> Address {
        self.gateway.admin()
    }

    /// Where the endpoint picker has its metrics.
    pub fn picker_metrics(&self) -> Result<Address> {
        self.picker.as_ref().map(Picker::metrics).context("there is no endpoint picker")
    }

    /// Applies an object that is written without its namespace.
    pub async fn apply(&self, mut object: Value) -> Result<()> {
        object["metadata"]["namespace"] = json!(self.namespace);
        manifests::apply(&self.client, &object).await
    }

    /// A kubeconfig of the admin with the namespace of the bed as the default, in a file.
    pub fn kubeconfig(&self) -> Result<std::path::PathBuf> {
        let path = self.folder.path().join("kubeconfig");
        if !path.is_file() {
            std::fs::copy(self.plane().admin_kubeconfig(), &path)?;
            let mut command = self.plane().kubectl()?;
            command.env("KUBECONFIG", &path);
            let set = command.args(["config", "set-context", "--current", "--namespace", &self.namespace]).output()?;
            ensure!(set.status.success(), "kubectl: {}", String::from_utf8_lossy(&set.stderr));
        }
        Ok(path)
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn server_seen(&self, server: &Server, endpoints: &BTreeSet<IpAddr>) -> ServerSeen {
        let name = server.name();
        let pod = self.watched.pods.get(&name);
        let ip = pod.as_ref().and_then(pods::address);
        let sidecar = async { http::get_json(&Address::Tcp((ip?, SIDECAR_PORT).into()), "/status").await.ok() };
        let (adapters, sidecar) = tokio::join!(server.adapters(), sidecar);
        ServerSeen {
            ready: ip.is_some_and(|ip| endpoints.contains(&IpAddr::V4(ip))),
            adapters: adapters.map_err(|error| format!("{error:#}")),
            sidecar,
            name,
        }
    }
}

impl Watched {
    /// Where those pods that execute rewrites for the pool say by which rules.
    fn routers(&self, which: impl Fn(&Pod) -> bool) -> Vec<Address> {
        let is_router = |pod: &Pod| pod.labels().get(ROUTER_POOL_LABEL).is_some_and(|pool| pool == POOL);
        let pods = self.pods.all();
        let addresses = pods.iter().filter(|pod| is_router(pod) && which(pod)).filter_map(pods::address);
        addresses.map(|ip: Ipv4Addr| Address::Tcp((ip, ROUTER_PORT).into())).collect()
    }

    fn follow(self: &Arc<Self>, tasks: &mut JoinSet<()>, client: &Client, namespace: &str) {
        fn api<K>(client: &Client, namespace: &str) -> Api<K>
        where
            K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
        {
            Api::namespaced(client.clone(), namespace)
        }
        let (pods, maps) = (api(client, namespace), api(client, namespace));
        let rollouts = Api::namespaced(client.clone(), namespace);
        let workloads_pods = pods.clone();
        let watched = Arc::clone(self);
        tasks.spawn(async move { watched.pods.follow(pods).await });
        let watched = Arc::clone(self);
        tasks.spawn(async move { watched.maps.follow(maps).await });
        let watched = Arc::clone(self);
        tasks.spawn(async move { watched.rollouts.follow(rollouts).await });
        let watched = Arc::clone(self);
        tasks.spawn(async move { watched.workloads.keep(workloads_pods, &watched.pods).await });
    }
}

impl Place for Cluster {
    async fn start(setup: &Setup) -> Result<Self> {
        Self::start_with(setup, Parts::default()).await
    }

    fn gateway(&self) -> Address {
        self.gateway.address()
    }

    fn routers(&self) -> Vec<Address> {
        self.watched.routers(pods::stays)
    }

    fn routers_over_time(&self) -> Routers {
        // One that is about to end still serves what it has begun.
        let watched = Arc::clone(&self.watched);
        Arc::new(move || watched.routers(|_| true))
    }

    fn servers(&self) -> &[Server] {
        &self.servers
    }

    fn servers_mut(&mut self) -> &mut [Server] {
        &mut self.servers
    }

    async fn adapters_file(&self) -> Result<String> {
        user_key(&self.maps().get(ADAPTERS).await?)
    }

    async fn write_adapters(&self, text: &str) -> Result<()> {
        let patch = Patch::Merge(json!({ "data": { KEY: text } }));
        self.maps().patch(ADAPTERS, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    async fn replace_adapters(&self, before: &str, text: &str) -> Result<bool> {
        let mut map = self.maps().get(ADAPTERS).await?;
        if user_key(&map)? != before {
            return Ok(false);
        }
        map.data.get_or_insert_default().insert(KEY.to_owned(), text.to_owned());
        match self.maps().replace(ADAPTERS, &PostParams::default(), &map).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn rollout_file(&self) -> Result<String> {
        Ok(self.rollout.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    async fn write_rollout(&self, text: &str) -> Result<()> {
        self.apply(serde_saphyr::from_str(text)?).await?;
        text.clone_into(&mut self.rollout.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    async fn look(&self) -> Seen {
        let routers = self.routers();
        let rules = routers.iter().map(|router| http::get_json(router, "/rules"));
        let endpoints = self.gateway.endpoints("vllm").await;
        let servers = self.servers.iter().map(|server| self.server_seen(server, &endpoints));
        let (rules, servers) = tokio::join!(join_all(rules), join_all(servers));
        let rollout = self.watched.rollouts.get(MODEL).ok_or_else(|| "there is no Rollout".to_owned());
        let map = self.watched.maps.get(ADAPTERS);
        Seen {
            status: rollout.map(|rollout| rollout.status.unwrap_or_default()),
            routers: rules
                .into_iter()
                .map(|rules| rules.map_err(|error: anyhow::Error| format!("{error:#}")))
                .collect(),
            servers,
            adapters_file: map.as_ref().and_then(|map| user_key(map).ok()).unwrap_or_default(),
            file_problems: Vec::new(),
        }
    }

    async fn say(&self, arguments: &[&str]) -> Result<Spoken> {
        let mut command = Command::new(program("rollora", "rollora-cli")?);
        command.args(arguments).args(["-n", &self.namespace]);
        command.env("KUBECONFIG", self.kubeconfig()?).env("NO_COLOR", "1");
        // Where a state folder stands, `rollora local` would be meant.
        command.current_dir(self.folder.path());
        run(command).await
    }

    fn gateway_is_in_operator(&self) -> bool {
        false
    }

    fn pilots_are_quiet(&self) -> bool {
        false
    }

    /// As the API server's audit log has them: when each was received, which is before it was written.
    fn rewrite_writes(&self) -> Result<Vec<Instant>> {
        let (now, timestamp) = (clock::now(), clock::timestamp());
        let is_write = |event: &AuditEvent| {
            let writes = matches!(event.verb.as_str(), "create" | "update" | "patch") && event.code < 300;
            let is_rewrite = event.resource == "inferencemodelrewrites" && event.subresource.is_empty();
            writes && is_rewrite && event.namespace == self.namespace
        };
        let at = |event: &AuditEvent| now.checked_sub(timestamp.duration_since(event.at).unsigned_abs());
        Ok(self.audit.events()?.iter().filter(|event| is_write(event)).filter_map(at).collect())
    }

    fn kill_operator(&mut self) {
        self.operators().iter().for_each(Container::kill_and_hold);
    }

    async fn start_operator(&mut self) -> Result<()> {
        let operators = self.operators();
        operators.iter().for_each(Container::release);
        self.wait("the operator runs", |_| operators.iter().all(Container::runs)).await
    }

    fn logs(&self) -> String {
        evidence::logs(self)
    }

    async fn objects(&self) -> String {
        evidence::objects(self).await
    }
}

/// The manifests with what a setup says, as a user's overlay would.
fn fit(objects: &mut Manifests, setup: &Setup, namespace: &str, hub: Option<&str>) -> Result<()> {
    let adapters: Value = serde_saphyr::from_str(&setup.adapters_yaml())?;
    objects.object_mut("ConfigMap", ADAPTERS)?["data"] = adapters["data"].clone();
    let vllm = objects.object_mut("Deployment", VLLM)?;
    vllm["spec"]["replicas"] = json!(setup.servers.len());
    let spec = &mut vllm["spec"]["template"]["spec"];
    // Half a minute is longer than a scenario is.
    let sidecar = &mut spec["initContainers"][0];
    push(&mut sidecar["args"], json!("--unload-grace=300ms"))?;
    if let Some(hub) = hub {
        push(&mut sidecar["env"], json!({ "name": "HF_ENDPOINT", "value": hub }))?;
    } else {
        let args = sidecar["args"].as_array_mut().context("a sidecar without flags")?;
        args.retain(|arg| arg.as_str().is_some_and(|arg| !arg.starts_with("--adapters-dir")));
    }
    if let Some(key) = &setup.api_key {
        let variable = json!({
            "name": "VLLM_API_KEY",
            "valueFrom": { "secretKeyRef": { "name": "vllm-api-key", "key": "key" } },
        });
        push(&mut spec["initContainers"][0]["env"], variable.clone())?;
        push(&mut spec["containers"][0]["env"], variable)?;
        objects.objects.push(json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": { "name": "vllm-api-key", "namespace": namespace },
            "stringData": { "key": key },
        }));
    }
    Ok(())
}

/// Adds to a list that may not be there yet.
pub fn push(list: &mut Value, value: Value) -> Result<()> {
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().context("not a list")?.push(value);
    Ok(())
}

/// Which pods are behind Envoy's clusters, as pool and Service say.
fn backends(objects: &Manifests, picker: Option<&Picker>) -> Result<Vec<Backend>> {
    let find = |kind: &str, name: &str| {
        let found = objects.objects.iter().find(|it| it["kind"] == kind && it["metadata"]["name"] == name);
        found.with_context(|| format!("the manifests have no {kind} {name}"))
    };
    let labels = |value: &Value| serde_json::from_value::<BTreeMap<String, String>>(value.clone());
    let port = |value: &Value| value.as_u64().and_then(|port| port.try_into().ok()).context("no port");
    let pool = find("InferencePool", POOL)?;
    let mut backends = vec![Backend {
        cluster: "vllm",
        labels: labels(&pool["spec"]["selector"]["matchLabels"])?,
        port: port(&pool["spec"]["targetPorts"][0]["number"])?,
    }];
    if picker.is_none_or(|picker| !picker.is_alone()) {
        let service = find("Service", EXT_PROC)?;
        backends.push(Backend {
            cluster: "rollora-ext-proc",
            labels: labels(&service["spec"]["selector"])?,
            port: port(&service["spec"]["ports"][0]["port"])?,
        });
    }
    backends.extend(picker.map(Picker::backend));
    Ok(backends)
}

fn user_key(map: &ConfigMap) -> Result<String> {
    let text = map.data.as_ref().and_then(|data| data.get(KEY));
    text.cloned().with_context(|| format!("the ConfigMap has no key {KEY}"))
}

/// What the operator wrote for the sidecars.
fn operator_key(map: &ConfigMap) -> Option<&String> {
    map.data.as_ref()?.get(OPERATOR_KEY)
}

/// Which kind of server a bed has at a place; see [`Setup::servers`].
fn kind_at(kinds: &[Kind], index: usize) -> Option<&Kind> {
    kinds.get(index).or(kinds.last())
}

impl Bed<Cluster> {
    /// A person deletes the pod of a server; it ends while clients send, and another one takes its place.
    pub async fn delete_server(&mut self, index: usize) -> Result<()> {
        let from = clock::now();
        let dead = self.place.delete_server(index).await?;
        self.note_outage_of_server(from, dead);
        Ok(())
    }
}
