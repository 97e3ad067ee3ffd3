//! The gateway: a real Envoy with the shipped configuration (`manifests/ext-proc/envoy.yaml`). Only the necessary parts
//! are changed: the listener uses a port of 127.0.0.1, and the endpoints come from a file that follows the pods (EDS),
//! where a cluster would resolve the Ready pods of a Service by DNS.

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

const START_TIMEOUT: Duration = Duration::from_mins(2);

/// An Envoy process, killed when it is dropped.
#[derive(Debug)]
pub struct EnvoyProxy {
    process: Option<ChildProcess>,
    listener: ReservedPort,
    admin: ReservedPort,
    folder: PathBuf,
}

/// The pods behind one cluster of Envoy.
#[derive(Debug, Clone)]
pub struct EnvoyBackend {
    /// Name of the cluster in Envoy's configuration.
    pub cluster: &'static str,
    /// Labels that select the pods.
    pub labels: BTreeMap<String, String>,
    /// Port that the pods listen on.
    pub port: u16,
}

/// How Envoy passes request bodies to ext-proc.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RequestBodyMode {
    /// Chunk by chunk (`FULL_DUPLEX_STREAMED`), as in the shipped configuration.
    #[default]
    Streamed,
    /// As a whole (`BUFFERED`), the alternative that the comments of the shipped configuration describe.
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
    /// Starts Envoy without endpoints; [`sync_endpoints`] provides them.
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

    /// Starts Envoy, or kills and restarts it.
    pub fn restart(&mut self) -> Result<()> {
        self.process = None;
        let mut command = Command::new(ENVOY.program("envoy")?);
        command.arg("-c").arg(self.config_file());
        command.args(["--concurrency", "2", "--log-level", "warning", "--disable-hot-restart"]);
        self.process = Some(ChildProcess::start("envoy", command, &self.folder)?);
        Ok(())
    }

    /// Waits until Envoy has its endpoints and listens.
    pub async fn wait_ready(&self) -> Result<()> {
        let start = clock::now();
        loop {
            let response = http::send_request(&self.admin_address(), http::request("GET", "/ready", None)).await;
            if response.is_ok_and(|(status, _)| status == 200) {
                return Ok(());
            }
            let ended = self.process.as_ref().and_then(ChildProcess::exit_reason);
            if ended.is_some() || start.elapsed() > START_TIMEOUT {
                bail!("Envoy is not ready after {:?} ({ended:?})\n{}", start.elapsed(), self.log_tail(20));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Returns the endpoints of a cluster that Envoy sends requests to and will keep.
    pub async fn endpoints(&self, cluster: &str) -> BTreeSet<IpAddr> {
        let hosts = self.host_statuses(cluster).await;
        let healthy = hosts.iter().filter(|host| {
            let health = host["health_status"].as_object();
            // Any other key in `health_status` is a reason not to route to the host.
            health.is_some_and(|health| health.len() == 1) && host["health_status"]["eds_health_status"] == "HEALTHY"
        });
        healthy.filter_map(host_ip).collect()
    }

    /// Returns whether Envoy may still route to an endpoint: one that was removed from the file keeps receiving
    /// requests until its active health check has failed too.
    pub async fn may_route_to(&self, cluster: &str, ip: IpAddr) -> bool {
        let hosts = self.host_statuses(cluster).await;
        let host = hosts.iter().find(|host| host_ip(host) == Some(ip));
        host.is_some_and(|host| host["health_status"]["failed_active_health_check"] != true)
    }

    async fn host_statuses(&self, cluster: &str) -> Vec<Value> {
        let response: Option<Value> = http::get_json(&self.admin_address(), "/clusters?format=json").await.ok();
        let statuses = response.as_ref().and_then(|response| response["cluster_statuses"].as_array());
        let status = statuses.into_iter().flatten().find(|status| status["name"] == cluster);
        status.and_then(|status| status["host_statuses"].as_array()).cloned().unwrap_or_default()
    }

    /// Returns the address that clients send requests to.
    pub fn address(&self) -> ListenAddress {
        self.listener.address().into()
    }

    /// Returns the address of Envoy's admin interface.
    pub fn admin_address(&self) -> ListenAddress {
        self.admin.address().into()
    }

    /// Returns the folder with Envoy's configuration, endpoint files and log.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the last lines of Envoy's log.
    pub fn log_tail(&self, lines: usize) -> String {
        crate::process::log_tail(&self.folder.join("envoy.log"), lines)
    }

    fn config_file(&self) -> PathBuf {
        self.folder.join("envoy.json")
    }

    fn adapt_config(&self, mut shipped: Value, backends: &[EnvoyBackend]) -> Result<Value> {
        shipped["node"] = json!({ "id": "testbed", "cluster": "testbed" });
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
        // Envoy watches for renames: it reloads the file when another file is moved over it.
        let new = folder.join(format!("{}.new", self.cluster));
        fs::write(&new, text.to_string())?;
        Ok(fs::rename(new, self.endpoints_file(folder))?)
    }
}

/// Writes the addresses of the Ready pods to Envoy's endpoint files after each change; returns when the reflector ends.
pub async fn sync_endpoints(backends: Vec<EnvoyBackend>, folder: PathBuf, reflector: &Reflector<Pod>) {
    let mut changes = reflector.subscribe();
    let mut published: Vec<Vec<Ipv4Addr>> = vec![Vec::new(); backends.len()];
    loop {
        let pods = reflector.all();
        for (backend, published) in backends.iter().zip(&mut published) {
            let ready = pods.iter().filter(|pod| pods::has_labels(pod, &backend.labels) && pods::is_ready(pod));
            let addresses: Vec<_> = ready.filter_map(pods::pod_ip).collect();
            // The write fails only when the folder is gone because the testbed ends.
            if addresses != *published && backend.write_endpoints(&folder, &addresses).is_ok() {
                *published = addresses;
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
