use super::*;
use crate::{
    document_store::InputFiles,
    fleet::SidecarHandle,
    gateway::{
        ServerRoutingState,
        servers::{GatewayServer, GatewayServers},
    },
    snapshot::tests::ROLLOUT_FILE,
    state::StateFolder,
};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rollora_api::rewrite::InferenceModelRewrite;
use rollora_operator::ports::{DocumentStore, Precondition, WriteOutcome};
use std::{fs, net::SocketAddr};
use tokio::{net::TcpStream, sync::watch, task::JoinSet};

async fn get(address: SocketAddr, path: &str) -> (StatusCode, String) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(connection.await) });
    let request = hyper::Request::get(path).header("host", "x").body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn metrics_rules_and_readiness_are_readable_by_everyone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |file: &str| folder.path().join(file);
    let inputs = InputFiles { rollout: path("rollout.yaml"), adapters: path("adapters.yaml") };
    fs::write(&inputs.rollout, ROLLOUT_FILE).unwrap();
    fs::write(&inputs.adapters, "vLLMLoRAConfig: {}\n").unwrap();
    let store = LocalDocumentStore::open(StateFolder::open(&path("state")).unwrap(), inputs).unwrap();
    let server = GatewayServer::new(
        "a:1".to_owned(),
        "a",
        1,
        tokio_util::task::TaskTracker::new(),
        Arc::default(),
        Arc::default(),
    );
    let servers = Arc::new(GatewayServers::new(vec![Arc::new(server)]));
    let sidecar = SidecarHandle {
        url: "http://a:1".to_owned(),
        desired: watch::channel(None).0,
        status: watch::channel(Arc::default()).1,
        heartbeat: watch::channel(None).1,
        usage_poll_boost: rollora_sidecar::UsagePollBoost::default(),
    };
    let fleet = LocalFleet::new(store.clone(), Arc::clone(&servers), vec![sidecar], Arc::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(listener, store.clone(), fleet, CancellationToken::new()));

    assert_eq!(
        get(address, "/readyz").await,
        (StatusCode::SERVICE_UNAVAILABLE, "no vLLM server is ready\n".to_owned())
    );
    servers.update_routing(&[ServerRoutingState { ready: true, ..ServerRoutingState::default() }]);
    assert_eq!(get(address, "/readyz").await, (StatusCode::OK, "ok\n".to_owned()));

    let rewrite: InferenceModelRewrite = serde_json::from_value(serde_json::json!({
        "apiVersion": "llm-d.ai/v1alpha2",
        "kind": "InferenceModelRewrite",
        "metadata": { "name": "alias" },
        "spec": { "poolRef": { "name": "pool" }, "rules": [{
            "matches": [{ "model": { "value": "alias" } }], "targets": [{ "modelRewrite": "alias-v1" }],
        }] },
    }))
    .unwrap();
    let written = store.write_rewrite(&store.rollout_key(), &rewrite, &Precondition::Absent).await;
    assert!(matches!(written, WriteOutcome::Done(_)));
    let (_, rules) = get(address, "/rules").await;
    let rules: RulesReport = serde_json::from_str(&rules).unwrap();
    assert_eq!(rules.models["alias"].targets[0].model_rewrite, "alias-v1");

    let (status, metrics) = get(address, "/metrics").await;
    assert_eq!((status, metrics.ends_with("# EOF\n")), (StatusCode::OK, true), "{metrics}");
    assert!(metrics.contains("rollora_server_ready{server=\"a:1\"} 0\n"), "{metrics}");
    assert_eq!(get(address, "/overview").await.0, StatusCode::NOT_FOUND);
}
