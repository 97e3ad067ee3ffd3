//! Addresses of the servers and routers of running pods.

use rollora_api::names::{ROUTER_PORT, SIDECAR_PORT, SIDECAR_PORT_ANNOTATION};
use rollora_cluster::{InferencePool, Pod};
use std::net::IpAddr;

/// Address of the sidecar of one server.
#[derive(Debug)]
pub(crate) struct SidecarAddr<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) ip: IpAddr,
    /// The pod's name, with the server's port if the pod has several servers.
    pub(crate) name: String,
    /// The server's own port; `None` if the pod belongs to no pool.
    pub(crate) server_port: Option<u16>,
    /// The sidecar's port, or why it cannot be determined.
    pub(crate) sidecar_port: Result<u16, String>,
}

/// Returns the running pods with their addresses. A pod without an address runs nothing yet, so a pod that waits for a
/// node or a GPU does not delay a poll; a finished pod runs nothing anymore.
pub(crate) fn running_pods(pods: &[Pod]) -> impl Iterator<Item = (&Pod, IpAddr)> {
    pods.iter().filter(|pod| !pod.finished).filter_map(|pod| Some((pod, pod.ip?)))
}

/// Returns every server of the pods of a pool.
pub(crate) fn pool_servers<'a>(pool: &'a InferencePool, pods: &'a [Pod]) -> impl Iterator<Item = SidecarAddr<'a>> {
    running_pods(pods).flat_map(move |(pod, ip)| {
        pool.target_ports.iter().enumerate().map(move |(index, &port)| {
            let name = if pool.target_ports.len() > 1 { format!("{}:{port}", pod.name) } else { pod.name.clone() };
            SidecarAddr { pod, ip, name, server_port: Some(port), sidecar_port: sidecar_port_at(pod, index) }
        })
    })
}

/// Returns every server of pods that belong to no pool: one per sidecar.
pub(crate) fn unpooled_servers(pods: &[Pod]) -> impl Iterator<Item = SidecarAddr<'_>> {
    running_pods(pods).flat_map(|(pod, ip)| {
        let sidecars = match &pod.sidecar_ports {
            None => vec![Ok(SIDECAR_PORT)],
            Some(Ok(ports)) => ports.iter().copied().map(Ok).collect(),
            Some(Err(problem)) => vec![Err(problem.clone())],
        };
        let several = sidecars.len() > 1;
        sidecars.into_iter().map(move |sidecar| {
            let port = sidecar.as_ref().ok().filter(|_| several);
            let name = port.map_or_else(|| pod.name.clone(), |port| format!("{}:{port}", pod.name));
            SidecarAddr { pod, ip, name, server_port: None, sidecar_port: sidecar }
        })
    })
}

/// Returns the port of the sidecar of the server with this index among the pool's target ports.
fn sidecar_port_at(pod: &Pod, index: usize) -> Result<u16, String> {
    match &pod.sidecar_ports {
        None if index == 0 => Ok(SIDECAR_PORT),
        Some(Ok(ports)) if index < ports.len() => Ok(ports[index]),
        Some(Err(problem)) => Err(problem.clone()),
        _ => Err(format!(
            "the pool has several target ports: name the ports of their sidecars, in the same order, in the annotation \
             {SIDECAR_PORT_ANNOTATION} of the pod"
        )),
    }
}

/// Returns the port of the router in a pod.
pub(crate) fn router_port(pod: &Pod) -> Result<u16, String> {
    pod.router_port.clone().unwrap_or(Ok(ROUTER_PORT))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn pod(sidecar_ports: Option<Result<Vec<u16>, String>>) -> Pod {
        Pod {
            name: "vllm-0".to_owned(),
            uid: "u".to_owned(),
            ip: Some([10, 0, 0, 7].into()),
            ready: true,
            unready_since: None,
            terminating: false,
            finished: false,
            container_ids: "c://1".to_owned(),
            config_maps: Vec::new(),
            watched_config_map: None,
            has_sidecar: false,
            router_for: None,
            sidecar_ports,
            router_port: None,
        }
    }

    fn pool(ports: &[u16]) -> InferencePool {
        InferencePool { labels: [("app".to_owned(), "vllm".to_owned())].into(), target_ports: ports.to_vec() }
    }

    #[test]
    fn each_server_of_a_pod_has_its_own_sidecar() {
        assert_eq!(sidecar_port_at(&pod(None), 0), Ok(SIDECAR_PORT));
        assert!(sidecar_port_at(&pod(None), 1).unwrap_err().contains("several target ports"));
        let two = pod(Some(Ok(vec![8081, 8082])));
        assert_eq!((sidecar_port_at(&two, 0), sidecar_port_at(&two, 1)), (Ok(8081), Ok(8082)));
        assert!(sidecar_port_at(&two, 2).is_err());
        assert_eq!(sidecar_port_at(&pod(Some(Err("bad".to_owned()))), 0), Err("bad".to_owned()));
    }

    #[test]
    fn unpooled_pod_has_one_server_per_sidecar() {
        let sidecars = |ports| -> Vec<(String, Result<u16, String>)> {
            unpooled_servers(&[pod(ports)]).map(|sidecar| (sidecar.name, sidecar.sidecar_port)).collect()
        };
        let named = |name: &str, port| (name.to_owned(), Ok(port));
        assert_eq!(sidecars(None), [named("vllm-0", SIDECAR_PORT)]);
        assert_eq!(sidecars(Some(Ok(vec![8081]))), [named("vllm-0", 8081)]);
        assert_eq!(sidecars(Some(Ok(vec![81, 82]))), [named("vllm-0:81", 81), named("vllm-0:82", 82)]);
        assert_eq!(sidecars(Some(Err("bad".to_owned()))), [("vllm-0".to_owned(), Err("bad".to_owned()))]);
        assert_eq!(unpooled_servers(&[Pod { ip: None, ..pod(None) }]).count(), 0);
    }

    #[test]
    fn pod_without_an_address_is_not_polled() {
        let unscheduled = Pod { name: "vllm-1".to_owned(), ip: None, ready: false, ..pod(None) };
        let ended = Pod { name: "vllm-2".to_owned(), finished: true, ready: false, ..pod(None) };
        let pods = [pod(None), unscheduled, ended];
        let names =
            |ports: &[u16]| -> Vec<String> { pool_servers(&pool(ports), &pods).map(|sidecar| sidecar.name).collect() };
        assert_eq!(names(&[8000]), ["vllm-0"]);
        assert_eq!(names(&[8000, 8001]), ["vllm-0:8000", "vllm-0:8001"]);
        assert_eq!(running_pods(&pods).map(|(pod, _)| pod.name.as_str()).collect::<Vec<_>>(), ["vllm-0"]);
        assert_eq!(running_pods(&pods[1..]).count(), 0, "no router is left to confirm");
    }
}
