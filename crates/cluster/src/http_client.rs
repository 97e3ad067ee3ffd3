//! Asking pods over HTTP what they say of themselves: many at once, each with a time limit.

use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rollora_api::cause::root_cause;
use serde::de::DeserializeOwned;
use std::{
    error::Error,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{sync::Semaphore, time::timeout};

/// How long one answer may take, connecting included.
const TIMEOUT: Duration = Duration::from_secs(1);
/// The longest answer.
const MAX_BODY_BYTES: usize = 8 << 20;
/// How many are asked at once.
const MAX_CONCURRENT: usize = 64;
/// How much of an answer is read at once, in bytes: a connection keeps room for it, and there are as many as servers.
const READ_BUFFER_BYTES: usize = 4 << 10;
/// How long a connection is kept for the next question.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks pods.
#[derive(Debug)]
pub struct HttpClient {
    client: Client<HttpConnector, Empty<Bytes>>,
    permits: Semaphore,
}

/// Whether the same is asked again soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionReuse {
    /// The connection is kept for that.
    KeepAlive,
    /// Nobody knows: a connection to every pod that was ever asked would be too many.
    Close,
}

/// Why a pod did not answer as it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpClientError {
    /// Nobody listens there, or the connection broke.
    #[error("{0}")]
    Unreachable(String),
    /// It answered something else.
    #[error("{0}")]
    InvalidResponse(String),
}

impl Default for HttpClient {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(1)
            .http1_read_buf_exact_size(READ_BUFFER_BYTES)
            .build(connector);
        Self { client, permits: Semaphore::new(MAX_CONCURRENT) }
    }
}

impl HttpClient {
    /// What `http://ADDRESS:PORT/PATH` answers, as JSON.
    pub async fn get<T: DeserializeOwned>(
        &self,
        ip: IpAddr,
        port: u16,
        path: &str,
        again: ConnectionReuse,
    ) -> Result<T, HttpClientError> {
        let url = format!("http://{}{path}", SocketAddr::new(ip, port));
        // It is never closed.
        let _place = self.permits.acquire().await.ok();
        // Apart, so that whoever waits for a place yet is small: thousands may.
        let body = match timeout(TIMEOUT, Box::pin(self.fetch(&url, again))).await {
            Ok(read) => read?,
            Err(_) => return Err(HttpClientError::Unreachable(format!("{url} does not answer within {TIMEOUT:?}"))),
        };
        serde_json::from_slice(&body).map_err(|error| {
            HttpClientError::InvalidResponse(format!("{url} answers something else than expected: {error}"))
        })
    }

    async fn fetch(&self, url: &str, again: ConnectionReuse) -> Result<Bytes, HttpClientError> {
        let uri: Uri = url.parse().map_err(|error| HttpClientError::InvalidResponse(format!("{url}: {error}")))?;
        let mut request =
            Request::get(uri).header("user-agent", concat!("rollora-operator/", env!("CARGO_PKG_VERSION")));
        if again == ConnectionReuse::Close {
            request = request.header("connection", "close");
        }
        let request =
            request.body(Empty::new()).map_err(|error| HttpClientError::InvalidResponse(format!("{url}: {error}")))?;
        let broke =
            |error: &dyn Error| HttpClientError::Unreachable(format!("{url} cannot be asked: {}", root_cause(error)));
        let response = self.client.request(request).await.map_err(|error| broke(&error))?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(HttpClientError::InvalidResponse(format!("{url} answers {status}")));
        }
        let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| broke(error.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Answers once with this text.
    async fn serve_once(text: &'static str) -> Result<Value, HttpClientError> {
        let listener = TcpListener::bind((HERE, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /status HTTP/1.1\r\n"));
            stream.write_all(text.as_bytes()).await.unwrap();
        };
        let asker = HttpClient::default();
        tokio::join!(asker.get(HERE, port, "/status", ConnectionReuse::Close), serve).0
    }

    #[tokio::test]
    async fn an_answer_is_read() {
        let answer = serve_once("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}").await;
        assert_eq!(answer.unwrap()["a"], 1);
    }

    #[tokio::test]
    async fn whoever_answers_something_else_is_there_all_the_same() {
        let answer = serve_once("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
        assert!(
            matches!(&answer, Err(HttpClientError::InvalidResponse(why)) if why.ends_with("answers 404 Not Found")),
            "{answer:?}"
        );
        let answer = serve_once("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno").await;
        assert!(matches!(answer, Err(HttpClientError::InvalidResponse(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn nobody_listening_is_said_with_the_address_and_the_cause() {
        let listener = TcpListener::bind((HERE, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error =
            HttpClient::default().get::<Value>(HERE, port, "/status", ConnectionReuse::KeepAlive).await.unwrap_err();
        let words = error.to_string();
        assert!(matches!(error, HttpClientError::Unreachable(_)), "{words}");
        assert!(
            words.starts_with(&format!("http://127.0.0.1:{port}/status cannot be asked: Connection refused")),
            "{words}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_answer_holds_nobody_up_for_long() {
        let listener = TcpListener::bind((HERE, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let error =
            HttpClient::default().get::<Value>(HERE, port, "/status", ConnectionReuse::KeepAlive).await.unwrap_err();
        assert_eq!(error.to_string(), format!("http://127.0.0.1:{port}/status does not answer within 1s"));
    }
}
