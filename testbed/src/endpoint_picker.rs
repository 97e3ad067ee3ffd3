//! Upstream's endpoint picker (v1.5.0 of the Gateway API inference extension) as one of the pods, and the Envoy
//! configuration that calls it as upstream's gateways do: bodies pass through it in both directions, and a request goes
//! to the endpoint that it picked.
//!
//! Behind ext-proc the shipped configuration needs one change: ext-proc does not receive the response headers.
//!
//! The picker has no flag for the listen address and binds its ports on all addresses. They are reserved, so that
//! testbeds that run at the same time do not collide.

use super::{gateway::EnvoyBackend, kubelet::ImagePrograms, manifests::Manifests, tools::ENDPOINT_PICKER};
use crate::{guide::POOL, http::ListenAddress, ports::ReservedPort};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// Name of the picker's Deployment, which the InferencePool of the manifests refers to.
pub const DEPLOYMENT: &str = "vllm-qwen3-32b-epp";
/// Name of the picker's cluster in Envoy's configuration.
pub const CLUSTER: &str = "endpoint-picker";
/// Name of the Envoy cluster that routes to the picked endpoint.
const PICKED_CLUSTER: &str = "picked";
const PICKER_IMAGE: &str = "epp";

/// Position of the picker among Envoy's HTTP filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PickerPosition {
    /// The picker is the only filter and executes the rewrites.
    InsteadOfExtProc,
    /// Ext-proc comes first and executes the rewrites; the picker follows.
    AfterExtProc,
}

/// Endpoint picker of one testbed, with its reserved ports.
#[derive(Debug)]
pub struct EndpointPicker {
    position: PickerPosition,
    grpc: ReservedPort,
    health: ReservedPort,
    metrics: ReservedPort,
}

impl EndpointPicker {
    /// Reserves the ports of a picker.
    pub fn new(position: PickerPosition) -> Result<Self> {
        Ok(Self {
            position,
            grpc: ReservedPort::reserve()?,
            health: ReservedPort::reserve()?,
            metrics: ReservedPort::reserve()?,
        })
    }

    /// Returns whether the picker runs without ext-proc.
    pub fn replaces_ext_proc(&self) -> bool {
        self.position == PickerPosition::InsteadOfExtProc
    }

    /// Returns the address of the picker's metrics endpoint.
    pub fn metrics_address(&self) -> ListenAddress {
        self.metrics.address().into()
    }

    /// Registers the program that runs in place of the picker's image.
    pub fn register_program(programs: ImagePrograms) -> Result<ImagePrograms> {
        Ok(programs.with_program(PICKER_IMAGE, &ENDPOINT_PICKER.program("epp")?))
    }

    /// Adds the picker's objects, with the permissions that upstream's chart grants.
    pub fn add_objects(&self, objects: &mut Manifests, namespace: &str) {
        let metadata = json!({ "name": DEPLOYMENT, "namespace": namespace });
        let rules = [
            ("", "pods"),
            ("inference.networking.k8s.io", "inferencepools"),
            ("inference.networking.x-k8s.io", "inferenceobjectives"),
            ("inference.networking.x-k8s.io", "inferencemodelrewrites"),
        ]
        .map(|(group, resource)| json!({ "apiGroups": [group], "resources": [resource], "verbs": ["get", "list", "watch"] }));
        let rbac = "rbac.authorization.k8s.io/v1";
        let [grpc, health, metrics] = [&self.grpc, &self.health, &self.metrics].map(ReservedPort::number);
        let args = [
            format!("--pool-name={POOL}"),
            format!("--pool-namespace={namespace}"),
            format!("--grpc-port={grpc}"),
            format!("--grpc-health-port={health}"),
            format!("--metrics-port={metrics}"),
            "--secure-serving=false".to_owned(),
            "--metrics-endpoint-auth=false".to_owned(),
            "--tracing=false".to_owned(),
            "--v=1".to_owned(),
        ];
        let labels = json!({ "app": DEPLOYMENT });
        objects.objects.extend([
            json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata }),
            json!({ "apiVersion": rbac, "kind": "Role", "metadata": metadata, "rules": rules }),
            json!({
                "apiVersion": rbac, "kind": "RoleBinding", "metadata": metadata,
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": DEPLOYMENT },
                "subjects": [{ "kind": "ServiceAccount", "name": DEPLOYMENT, "namespace": namespace }],
            }),
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
                "spec": {
                    "replicas": 1,
                    "selector": { "matchLabels": labels },
                    "template": {
                        "metadata": { "labels": labels },
                        "spec": { "serviceAccountName": DEPLOYMENT, "containers": [{
                            "name": "epp",
                            "image": PICKER_IMAGE,
                            "args": args,
                            "readinessProbe": { "tcpSocket": { "port": grpc }, "periodSeconds": 1 },
                        }] },
                    },
                },
            }),
        ]);
    }

    /// Returns the Envoy backend that selects the picker's pod.
    pub fn backend(&self) -> EnvoyBackend {
        let labels = [("app".to_owned(), DEPLOYMENT.to_owned())].into();
        EnvoyBackend { cluster: CLUSTER, labels, port: self.grpc.number() }
    }

    /// Adds the picker's filter and the cluster of picked endpoints to Envoy's configuration.
    pub fn add_to_envoy_config(&self, configuration: &mut Value) -> Result<()> {
        let resources = &mut configuration["static_resources"];
        let manager = &mut resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
        let filters = manager["http_filters"].as_array_mut().context("envoy.yaml has no filters")?;
        let ours = filters.iter().position(|filter| filter["name"] == "envoy.filters.http.ext_proc");
        let ours = ours.context("envoy.yaml has no ext_proc filter")?;
        if self.replaces_ext_proc() {
            filters[ours] = picker_filter();
        } else {
            // With two ext_proc filters Envoy 1.40 truncates a response that streams through one filter while the
            // other still processes its headers (envoyproxy/envoy#41654): now and then the last events of a stream
            // are missing.
            filters[ours]["typed_config"]["processing_mode"]["response_header_mode"] = json!("SKIP");
            filters.insert(ours + 1, picker_filter());
        }
        let routes = manager["route_config"]["virtual_hosts"][0]["routes"].as_array_mut();
        let route = routes.and_then(|routes| routes.iter_mut().find(|route| route["route"]["cluster"] == "vllm"));
        route.context("envoy.yaml has no route to vllm")?["route"]["cluster"] = json!(PICKED_CLUSTER);
        let clusters = resources["clusters"].as_array_mut().context("envoy.yaml has no clusters")?;
        if self.replaces_ext_proc() {
            clusters.retain(|cluster| cluster["name"] != "rollora-ext-proc");
        }
        clusters.extend([
            json!({
                "name": CLUSTER,
                "connect_timeout": "1s",
                "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": {
                        "initial_stream_window_size": 65536,
                        "initial_connection_window_size": 1_048_576,
                    } },
                } },
            }),
            json!({
                "name": PICKED_CLUSTER,
                "type": "ORIGINAL_DST",
                "lb_policy": "CLUSTER_PROVIDED",
                "connect_timeout": "2s",
                "original_dst_lb_config": {
                    "use_http_header": true,
                    "http_header_name": "x-gateway-destination-endpoint",
                },
            }),
        ]);
        Ok(())
    }
}

fn picker_filter() -> Value {
    json!({
        "name": "envoy.filters.http.ext_proc.endpoint_picker",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
            "grpc_service": { "envoy_grpc": { "cluster_name": CLUSTER } },
            "failure_mode_allow": false,
            "message_timeout": "1000s",
            "processing_mode": {
                "request_header_mode": "SEND",
                "request_body_mode": "FULL_DUPLEX_STREAMED",
                "request_trailer_mode": "SEND",
                "response_header_mode": "SEND",
                "response_body_mode": "FULL_DUPLEX_STREAMED",
                "response_trailer_mode": "SEND",
            },
            "metadata_options": {
                "forwarding_namespaces": { "untyped": ["envoy.lb"] },
                "receiving_namespaces": { "untyped": ["envoy.lb"] },
            },
        },
    })
}
