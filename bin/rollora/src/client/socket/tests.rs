use super::*;
use http_body_util::StreamBody;
use hyper::{body::Frame, server, service::service_fn};
use std::{collections::VecDeque, convert::Infallible};
use tokio::net::UnixListener;

/// Starts a `rollora local` that sends these chunks as the response to every request.
fn serve_response(folder: &std::path::Path, status: StatusCode, chunks: &[&str]) -> JoinSet<()> {
    let listener = UnixListener::bind(folder.join(SOCKET_NAME)).unwrap();
    let chunks: VecDeque<Bytes> = chunks.iter().map(|chunk| Bytes::copy_from_slice(chunk.as_bytes())).collect();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let chunks = chunks.clone();
            let service = service_fn(move |_: Request<Incoming>| {
                let frames = chunks.clone().into_iter().map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
                let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)));
                *response.status_mut() = status;
                async { Ok::<_, Infallible>(response) }
            });
            let serving = server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            connections.spawn(async move { drop(serving.await) });
        }
    });
    tasks
}

fn client(folder: &std::path::Path, rollout: Option<&str>) -> SocketClient {
    SocketClient::new(folder.to_owned(), rollout.map(str::to_owned))
}

fn overview(name: &str) -> String {
    format!(
        r#"{{"at":"2026-01-01T00:00:00Z","listen":"127.0.0.1:1","rolloutFile":{{"path":"r"}},"adaptersFile":{{"path":"a"}},
        "servers":[],"rules":{{"groups":[],"models":{{}}}},"events":[],"rollout":{{"apiVersion":"rollora.dev/v1alpha1",
        "kind":"Rollout","metadata":{{"name":"{name}"}},"spec":{{"model":"m","poolRef":{{"name":"p"}},
        "adapter":{{"id":"v1"}},"adaptersRef":{{"name":"a"}}}}}}}}"#
    )
    .replace('\n', "")
}

#[tokio::test]
async fn missing_process_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let error = client(folder.path(), None).overview().await.unwrap_err().to_string();
    assert!(error.starts_with("no `rollora local` runs on the state folder"), "{error}");
    // A killed process leaves its socket.
    drop(UnixListener::bind(folder.path().join(SOCKET_NAME)).unwrap());
    let error = client(folder.path(), None).overview().await.unwrap_err().to_string();
    assert!(error.starts_with("no `rollora local` runs on the state folder"), "{error}");
}

#[tokio::test]
async fn request_for_another_rollout_fails() {
    let folder = tempfile::tempdir().unwrap();
    let _tasks = serve_response(folder.path(), StatusCode::OK, &[&overview("alias")]);
    assert!(client(folder.path(), None).overview().await.is_ok());
    assert!(client(folder.path(), Some("alias")).overview().await.is_ok());
    let error = client(folder.path(), Some("other")).overview().await.unwrap_err().to_string();
    assert!(error.contains("runs the Rollout alias, not other"), "{error}");
}

#[tokio::test]
async fn watch_returns_one_overview_per_line() {
    let folder = tempfile::tempdir().unwrap();
    let lines = format!("{}\n{}\n", overview("one"), overview("two"));
    let (first, rest) = lines.split_at(200);
    let (second, third) = rest.split_at(rest.len() - 7);
    let _tasks = serve_response(folder.path(), StatusCode::OK, &[first, second, third]);
    let mut watch = client(folder.path(), None).watch().await.unwrap();
    for expected in ["one", "two"] {
        assert_eq!(watch.next().await.unwrap().rollout.metadata.name, expected);
    }
    assert!(matches!(watch.next().await, Err(RolloutClientError::WatchEnded(_))));
}

#[tokio::test]
async fn refusals_and_unusable_responses_are_reported() {
    let request =
        IntentRequest { verb: rollora_api::rollout::IntentKind::Promote, revision: 1, step: None, claimed_by: None };
    for (status, body, expected) in [
        (StatusCode::CONFLICT, r#"{"error":"not now"}"#, "not now"),
        (StatusCode::NOT_FOUND, "", "`rollora local` responded with 404 Not Found"),
        (StatusCode::OK, "{}", "the response is of another version of `rollora`"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let _tasks = serve_response(folder.path(), status, &[body]);
        let error = client(folder.path(), None).submit_intent(&request).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
