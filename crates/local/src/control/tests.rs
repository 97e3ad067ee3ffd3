use super::*;
use crate::{
    document_store::{InputFiles, LocalDocumentStore},
    gateway::servers::GatewayServers,
    snapshot::tests::ROLLOUT_FILE,
    state::StateFolder,
};
use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use tokio::{net::UnixStream, task::JoinSet};

struct ControlFixture {
    control: ControlServer,
    socket: PathBuf,
    tasks: JoinSet<()>,
    folder: tempfile::TempDir,
}

impl ControlFixture {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |file: &str| folder.path().join(file);
        let inputs = InputFiles { rollout: path("rollout.yaml"), adapters: path("adapters.yaml") };
        fs::write(&inputs.rollout, ROLLOUT_FILE).unwrap();
        fs::write(&inputs.adapters, "vLLMLoRAConfig: {}\n").unwrap();
        let store = LocalDocumentStore::open(StateFolder::open(&path("state")).unwrap(), inputs).unwrap();
        let fleet =
            LocalFleet::new(store.clone(), Arc::new(GatewayServers::new(Vec::new())), Vec::new(), Arc::default());
        let control =
            ControlServer { store, fleet, listen: ([127, 0, 0, 1], 1).into(), stop: CancellationToken::new() };
        let (listener, serving) = (bind(&path("state")).unwrap(), control.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { serve(listener, serving).await.unwrap() });
        Self { control, socket: path("state").join(SOCKET_NAME), tasks, folder }
    }

    async fn request(&mut self, method: &str, path: &str, body: String) -> (StatusCode, Incoming) {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        self.tasks.spawn(async move { drop(connection.await) });
        let request = Request::builder().method(method).uri(path).header("host", "x");
        let request = request.header(CONTENT_TYPE, "application/json").body(Full::new(Bytes::from(body))).unwrap();
        let response = sender.send_request(request).await.unwrap();
        (response.status(), response.into_body())
    }
}

async fn read_json<T: serde::de::DeserializeOwned>(body: Incoming) -> T {
    serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap()
}

#[tokio::test]
async fn socket_is_private_and_replaces_a_stale_one() {
    let mut fixture = ControlFixture::start();
    assert_eq!(fs::metadata(&fixture.socket).unwrap().permissions().mode() & 0o777, 0o600);
    // A killed process leaves its socket, and possibly the private folder in which it was created.
    fixture.tasks.shutdown().await;
    assert!(UnixStream::connect(&fixture.socket).await.is_err());
    let state = fixture.folder.path().join("state");
    fs::create_dir(state.join(".s")).unwrap();
    fs::write(state.join(".s").join("s"), "").unwrap();
    let listener = bind(&state).unwrap();
    UnixStream::connect(&fixture.socket).await.unwrap();
    drop(listener);
}

#[tokio::test]
async fn too_long_socket_path_is_reported_with_a_fix() {
    let folder = tempfile::tempdir().unwrap();
    let long = folder.path().join("x".repeat(120));
    fs::create_dir(&long).unwrap();
    let error = bind(&long).unwrap_err().to_string();
    assert!(error.contains("give a shorter one with --state"), "{error}");
}

#[tokio::test]
async fn watch_sends_the_overview_now_and_after_every_change() {
    let mut fixture = ControlFixture::start();
    let (status, body) = fixture.request("GET", "/overview", String::new()).await;
    assert_eq!(status, StatusCode::OK);
    let overview: Overview = read_json(body).await;
    assert_eq!((overview.rollout.metadata.name.as_str(), overview.listen.as_deref()), ("alias", Some("127.0.0.1:1")));

    let (_, mut watch) = fixture.request("GET", "/watch", String::new()).await;
    let mut next = async || {
        let line = watch.frame().await.unwrap().unwrap().into_data().unwrap();
        serde_json::from_slice::<Overview>(&line).unwrap()
    };
    assert_eq!(next().await.adapters_file.problem, None);
    fixture.control.store.apply_adapters_file(Err("broken".to_owned()));
    assert_eq!(next().await.adapters_file.problem.as_deref(), Some("broken"));
}

#[tokio::test]
async fn second_intent_is_refused_while_one_is_pending() {
    let mut fixture = ControlFixture::start();
    let request = |verb| {
        let claimed_by = Some("anna".to_owned());
        serde_json::to_string(&IntentRequest { verb, revision: 3, step: Some(1), claimed_by }).unwrap()
    };
    let (status, body) = fixture.request("POST", "/intent", request(IntentKind::Promote)).await;
    assert_eq!(status, StatusCode::OK);
    let intent: Intent = read_json(body).await;
    assert_eq!((intent.verb, intent.revision, intent.step), (IntentKind::Promote, 3, Some(1)));
    assert_eq!(intent.claimed_by.as_deref(), Some("anna"));
    let annotation =
        &fixture.control.store.snapshot().rollout.metadata.annotations[rollora_api::names::INTENT_ANNOTATION];
    assert_eq!(serde_json::from_str::<Intent>(annotation).unwrap(), intent);

    let (status, body) = fixture.request("POST", "/intent", request(IntentKind::Retry)).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(read_json::<ErrorResponse>(body).await.error.contains("`promote` was requested before"));
    let (status, _) = fixture.request("POST", "/intent", request(IntentKind::Abort)).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn watch_ends_when_the_process_stops() {
    let mut fixture = ControlFixture::start();
    let (_, mut watch) = fixture.request("GET", "/watch", String::new()).await;
    watch.frame().await.unwrap().unwrap();
    fixture.control.stop.cancel();
    assert!(watch.frame().await.is_none());
}
