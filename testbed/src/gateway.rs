//! The gateway: a real Envoy with the configuration that is shipped (`manifests/ext-proc/envoy.yaml`). Only what has to
//! differ is changed: it listens on a port of 127.0.0.1, and where a cluster would ask the DNS for the Ready pods of a
//! Service, it is told by a file that follows the pods.

use super::{endpoint_picker::EndpointPicker, manifests, pods, reflector::Reflector, tools::ENVOY};
use crate::{
    clock,
    http::{self, ListenAddress},
    ports::ReservedPort,
    process::ChildProcess,
};
use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Envoy; it ends when it is dropped.
#[derive(Debug)]
pub struct EnvoyProxy {
    process: Option<ChildProcess>,
    listener: ReservedPort,
    admin: ReservedPort,
    folder: PathBuf,
}

/// Which pods are behind a cluster of Envoy.
#[derive(Debug, Clone)]
pub struct EnvoyBackend {
    /// What Envoy's configuration calls it.
    pub cluster: &'static str,
    /// The pods' labels.
    pub labels: BTreeMap<String, String>,
    /// The port that the pods listen on.
    pub port: u16,
}

/// How Envoy hands the bodies of requests to ext-proc.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RequestBodyMode {
    /// As they come, in FULL_DUPLEX_STREAMED, as is shipped.
    #[default]
    Streamed,
    /// Whole, in BUFFERED, which the comments of what is shipped offer.
    Buffered,
}

fn buffer_bodies(shipped: &mut Value) -> Result<()> {
    let filter = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/http_filters/0/typed_config";
    let mode = shipped.pointer_mut(&format!("{filter}/processing_mode"));
    let mode = mode.context("envoy.yaml has no processing_mode where it should stand")?;
    mode["request_body_mode"] = json!("BUFFERED");
    mode["request_trailer_mode"] = json!("SKIP");
    Ok(())
}

impl EnvoyProxy {
    /// Starts it without any endpoint, see [`follow`].
    pub fn start(
        backends: &[EnvoyBackend],
        bodies: RequestBodyMode,
        picker: Option<&EndpointPicker>,
        folder: &Path,
    ) -> Result<Self> {
        let folder = folder.join("envoy");
        fs::create_dir_all(&folder)?;
        let gateway =
            Self { process: None, listener: ReservedPort::reserve()?, admin: ReservedPort::reserve()?, folder };
        for backend in backends {
            backend.write_endpoints(&gateway.folder, &[])?;
        }
        let text = fs::read_to_string(manifests::manifests_dir().join("ext-proc/envoy.yaml"))?;
        let mut shipped: Value = serde_saphyr::from_str(&text).context("envoy.yaml cannot be read")?;
        if bodies == RequestBodyMode::Buffered {
            buffer_bodies(&mut shipped)?;
        }
        if let Some(picker) = picker {
            picker.add_to_envoy_config(&mut shipped)?;
        }
        let configuration = gateway.adapt_config(shipped, backends)?;
        fs::write(gateway.config_file(), serde_json::to_vec_pretty(&configuration)?)?;
        let mut gateway = gateway;
        gateway.restart()?;
        Ok(gateway)
    }

    /// Starts it (again).
    pub fn restart(&mut self) -> Result<()> {
        self.process = None;
        let mut command = Command::new(ENVOY.program("envoy")?);
        command.arg("-c").arg(self.config_file());
        command.args(["--concurrency", "2", "--log-level", "warning", "--disable-hot-restart"]);
        self.process = Some(ChildProcess::start("envoy", command, &self.folder)?);
        Ok(())
    }

    /// Waits until it has all of its endpoints and listens.
    pub async fn wait_ready(&self) -> Result<()> {
        let start = clock::now();
        loop {
            let answer = http::send_request(&self.admin_address(), http::request("GET", "/ready", None)).await;
            if answer.is_ok_and(|(status, _)| status == 200) {
                return Ok(());
            }
            let ended = self.process.as_ref().and_then(ChildProcess::exit_reason);
            if ended.is_some() || start.elapsed() > START_TIMEOUT {
                bail!("Envoy is not ready after {:?} ({ended:?})\n{}", start.elapsed(), self.log_tail(20));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Which endpoints of a cluster Envoy sends requests to, and means to go on with.
    pub async fn endpoints(&self, cluster: &str) -> BTreeSet<IpAddr> {
        let hosts = self.host_statuses(cluster).await;
        let healthy = hosts.iter().filter(|host| {
            let health = host["health_status"].as_object();
            // Whatever else is said there is a reason to send nothing.
            health.is_some_and(|health| health.len() == 1) && host["health_status"]["eds_health_status"] == "HEALTHY"
        });
        healthy.filter_map(host_ip).collect()
    }

    /// Whether Envoy may still send requests to an endpoint: one that was taken away gets some until its health was
    /// found to be bad too.
    pub async fn may_route_to(&self, cluster: &str, ip: IpAddr) -> bool {
        let hosts = self.host_statuses(cluster).await;
        let host = hosts.iter().find(|host| host_ip(host) == Some(ip));
        host.is_some_and(|host| host["health_status"]["failed_active_health_check"] != true)
    }

    async fn host_statuses(&self, cluster: &str) -> Vec<Value> {
        let answer: Option<Value> = http::get_json(&self.admin_address(), "/clusters?format=json").await.ok();
        let statuses = answer.as_ref().and_then(|answer| answer["cluster_statuses"].as_array());
        let status = statuses.into_iter().flatten().find(|status| status["name"] == cluster);
        status.and_then(|status| status["host_statuses"].as_array()).cloned().unwrap_or_default()
    }

    /// Where clients send their requests.
    pub fn address(&self) -> ListenAddress {
        self.listener.address().into()
    }

    /// Where Envoy says what it does.
    pub fn admin_address(&self) -> ListenAddress {
        self.admin.address().into()
    }

    /// Where the files of the endpoints are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The last lines of Envoy's log.
    pub fn log_tail(&self, lines: usize) -> String {
        crate::process::log_tail(&self.folder.join("envoy.log"), lines)
    }

    fn config_file(&self) -> PathBuf {
        self.folder.join("envoy.json")
    }

    fn adapt_config(&self, mut shipped: Value, backends: &[EnvoyBackend]) -> Result<Value> {
        shipped["node"] = json!({ "id": "bed", "cluster": "bed" });
        shipped["admin"] = json!({ "address": socket_address(Ipv4Addr::LOCALHOST, self.admin.number()) });
        let resources = &mut shipped["static_resources"];
        let listener = resources["listeners"].get_mut(0).context("envoy.yaml has no listener")?;
        listener["address"] = socket_address(Ipv4Addr::LOCALHOST, self.listener.number());
        let clusters = resources["clusters"].as_array_mut().context("envoy.yaml has no clusters")?;
        for backend in backends {
            let cluster = clusters.iter_mut().find(|cluster| cluster["name"] == backend.cluster);
            let cluster = cluster.with_context(|| format!("envoy.yaml has no cluster {}", backend.cluster))?;
            cluster["type"] = json!("EDS");
            cluster["eds_cluster_config"] = json!({ "eds_config": {
                "resource_api_version": "V3",
                "path_config_source": { "path": backend.endpoints_file(&self.folder) },
            } });
            if let Some(cluster) = cluster.as_object_mut() {
                cluster.remove("load_assignment");
            }
        }
        Ok(shipped)
    }
}

impl EnvoyBackend {
    fn endpoints_file(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.json", self.cluster))
    }

    fn write_endpoints(&self, folder: &Path, addresses: &[Ipv4Addr]) -> Result<()> {
        let endpoint = |ip: &Ipv4Addr| json!({ "endpoint": { "address": socket_address(*ip, self.port) } });
        let endpoints: Vec<_> = addresses.iter().map(endpoint).collect();
        let text = json!({ "resources": [{
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": self.cluster,
            "endpoints": [{ "lb_endpoints": endpoints }],
        }] });
        // Envoy reads a file again when another one is renamed to it.
        let new = folder.join(format!("{}.new", self.cluster));
        fs::write(&new, text.to_string())?;
        Ok(fs::rename(new, self.endpoints_file(folder))?)
    }
}

/// Tells Envoy which pods are Ready; never returns.
pub async fn sync_endpoints(backends: Vec<EnvoyBackend>, folder: PathBuf, mirror: &Reflector<Pod>) {
    let mut changes = mirror.subscribe();
    let mut told: Vec<Vec<Ipv4Addr>> = vec![Vec::new(); backends.len()];
    loop {
        let pods = mirror.all();
        for (backend, told) in backends.iter().zip(&mut told) {
            let behind = pods.iter().filter(|pod| pods::has_labels(pod, &backend.labels) && pods::is_ready(pod));
            let addresses: Vec<_> = behind.filter_map(pods::pod_ip).collect();
            // A folder that cannot be written to any more is that of a bed that ends.
            if addresses != *told && backend.write_endpoints(&folder, &addresses).is_ok() {
                *told = addresses;
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn host_ip(host: &Value) -> Option<IpAddr> {
    host["address"]["socket_address"]["address"].as_str()?.parse().ok()
}

fn socket_address(ip: Ipv4Addr, port: u16) -> Value {
    json!({ "socket_address": { "address": ip.to_string(), "port_value": port } })
}
