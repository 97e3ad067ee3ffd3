//! Configuration of the Envoy in front of all contenders: one listener for each combination of contender and processing
//! mode, with everything else equal.

use std::net::SocketAddr;

use serde_json::{Value, json};

/// One listener of Envoy.
#[derive(Debug, Clone)]
pub(super) struct ListenerConfig {
    pub(super) listen: SocketAddr,
    /// Processor, and whether it gets the response headers too; `None` for no processor.
    pub(super) ext_proc: Option<(ProcessorEndpoint, bool)>,
}

/// Name and address of an external processor.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProcessorEndpoint {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
}

pub(super) fn bootstrap(admin: SocketAddr, listeners: &[ListenerConfig], vllm: SocketAddr) -> Value {
    let mut processors: Vec<ProcessorEndpoint> =
        listeners.iter().filter_map(|config| Some(config.ext_proc?.0)).collect();
    processors.dedup_by_key(|processor| processor.name);
    let clusters = processors.iter().map(|processor| {
        let mut cluster = cluster(processor.name, processor.address);
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {
                    "max_concurrent_streams": 10_000,
                    "initial_stream_window_size": 65_536,
                    "initial_connection_window_size": 1_048_576,
                } },
            },
        });
        cluster
    });
    json!({
        "node": { "id": "bench", "cluster": "bench" },
        "admin": { "address": socket_address(admin) },
        "static_resources": {
            "listeners": listeners.iter().map(listener).collect::<Value>(),
            "clusters": clusters.chain([cluster("vllm", vllm)]).collect::<Value>(),
        },
    })
}

fn listener(config: &ListenerConfig) -> Value {
    let ext_proc = config.ext_proc.map(|(processor, response_headers)| {
        json!({
            "name": "envoy.filters.http.ext_proc",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
                "grpc_service": { "envoy_grpc": { "cluster_name": processor.name } },
                "failure_mode_allow": false,
                "message_timeout": "10s",
                "processing_mode": {
                    "request_header_mode": "SEND",
                    "request_body_mode": "FULL_DUPLEX_STREAMED",
                    "request_trailer_mode": "SEND",
                    "response_header_mode": if response_headers { "SEND" } else { "SKIP" },
                    "response_body_mode": "NONE",
                    "response_trailer_mode": "SKIP",
                },
            },
        })
    });
    let route = json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
    });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "route_config": { "virtual_hosts": [{
            "name": "models",
            "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "vllm", "timeout": "0s" } }],
        }] },
        "http_filters": ext_proc.into_iter().chain([route]).collect::<Value>(),
    });
    json!({
        "name": config.listen.to_string(),
        "address": socket_address(config.listen),
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": manager,
        }] }],
    })
}

fn cluster(name: &str, address: SocketAddr) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        // Envoy's default limit is 1,024 requests.
        "circuit_breakers": { "thresholds": [
            { "max_connections": 100_000, "max_requests": 100_000, "max_pending_requests": 100_000 }
        ] },
        "load_assignment": { "cluster_name": name, "endpoints": [
            { "lb_endpoints": [{ "endpoint": { "address": socket_address(address) } }] }
        ] },
    })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_with_two_modes_is_one_cluster() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let processor = ProcessorEndpoint { name: "rollora", address: at(1) };
        let config = |port, ext_proc| ListenerConfig { listen: at(port), ext_proc };
        let listeners = [config(2, Some((processor, true))), config(3, Some((processor, false))), config(4, None)];
        let bootstrap_config = bootstrap(at(9), &listeners, at(8));
        let names = |list: &Value| -> Vec<String> {
            list.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(&bootstrap_config["static_resources"]["clusters"]), ["rollora", "vllm"]);
        let filters = |index: usize| {
            let manager = "filter_chains/0/filters/0/typed_config/http_filters";
            let path = format!("/static_resources/listeners/{index}/{manager}");
            names(bootstrap_config.pointer(&path).unwrap())
        };
        assert_eq!(filters(1), ["envoy.filters.http.ext_proc", "envoy.filters.http.router"]);
        assert_eq!(filters(2), ["envoy.filters.http.router"]);
    }
}
