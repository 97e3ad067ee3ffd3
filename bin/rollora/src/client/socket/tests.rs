use super::*;
use http_body_util::StreamBody;
use hyper::{body::Frame, server, service::service_fn};
use std::{collections::VecDeque, convert::Infallible};
use tokio::net::UnixListener;

/// A `rollora local` that answers everything with these pieces.
fn serve_response(folder: &std::path::Path, status: StatusCode, pieces: &[&str]) -> JoinSet<()> {
    let listener = UnixListener::bind(folder.join(SOCKET_NAME)).unwrap();
    let pieces: VecDeque<Bytes> = pieces.iter().map(|piece| Bytes::copy_from_slice(piece.as_bytes())).collect();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let pieces = pieces.clone();
            let service = service_fn(move |_: Request<Incoming>| {
                let frames = pieces.clone().into_iter().map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
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
async fn nobody_there_is_said_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let said = client(folder.path(), None).overview().await.unwrap_err().to_string();
    assert!(said.starts_with("no `rollora local` runs on the state folder"), "{said}");
    // The socket of a process that was killed.
    drop(UnixListener::bind(folder.path().join(SOCKET_NAME)).unwrap());
    let said = client(folder.path(), None).overview().await.unwrap_err().to_string();
    assert!(said.starts_with("no `rollora local` runs on the state folder"), "{said}");
}

#[tokio::test]
async fn another_rollout_than_the_one_that_was_named_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let _tasks = serve_response(folder.path(), StatusCode::OK, &[&overview("alias")]);
    assert!(client(folder.path(), None).overview().await.is_ok());
    assert!(client(folder.path(), Some("alias")).overview().await.is_ok());
    let said = client(folder.path(), Some("other")).overview().await.unwrap_err().to_string();
    assert!(said.contains("runs the Rollout alias, not other"), "{said}");
}

#[tokio::test]
async fn what_changes_comes_line_by_line_however_it_was_cut() {
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
async fn a_refusal_is_passed_on_and_nonsense_is_named() {
    let request =
        IntentRequest { verb: rollora_api::rollout::IntentKind::Promote, revision: 1, step: None, claimed_by: None };
    for (status, body, expected) in [
        (StatusCode::CONFLICT, r#"{"error":"not now"}"#, "not now"),
        (StatusCode::NOT_FOUND, "", "it answered 404 Not Found"),
        (StatusCode::OK, "{}", "is of another version"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let _tasks = serve_response(folder.path(), status, &[body]);
        let said = client(folder.path(), None).submit_intent(&request).await.unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
}
