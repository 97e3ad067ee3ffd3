//! HTTP client for the JSON endpoints of pods: many requests concurrently, each with a timeout.

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

/// Timeout of one request, including the connection.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum size of a response body.
const MAX_BODY_BYTES: usize = 8 << 20;
/// Maximum number of concurrent requests.
const MAX_CONCURRENT: usize = 64;
/// Buffer of one connection, in bytes: there are as many connections as servers.
const READ_BUFFER_BYTES: usize = 4 << 10;
/// Time for which an idle connection is kept for the next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Client for the status endpoints of sidecars and routers.
#[derive(Debug)]
pub struct HttpClient {
    client: Client<HttpConnector, Empty<Bytes>>,
    permits: Semaphore,
}

/// Whether a connection is kept after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionReuse {
    /// The same request follows soon, so the connection is kept.
    KeepAlive,
    /// No request may follow: keeping a connection to every pod that was ever polled would be too many.
    Close,
}

/// Reason why a request to a pod returned no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpClientError {
    /// The pod did not accept the connection, the connection broke, or the request timed out.
    #[error("{0}")]
    Unreachable(String),
    /// The pod responded with another status than 200, or with an unexpected body.
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
    /// Requests `http://IP:PORT/PATH` and parses the response as JSON.
    pub async fn get<T: DeserializeOwned>(
        &self,
        ip: IpAddr,
        port: u16,
        path: &str,
        reuse: ConnectionReuse,
    ) -> Result<T, HttpClientError> {
        let url = format!("http://{}{path}", SocketAddr::new(ip, port));
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await.ok();
        // Boxed, so that the futures of the thousands of requests that may wait for a permit stay small.
        let body = match timeout(TIMEOUT, Box::pin(self.fetch(&url, reuse))).await {
            Ok(read) => read?,
            Err(_) => return Err(HttpClientError::Unreachable(format!("{url} did not respond within {TIMEOUT:?}"))),
        };
        serde_json::from_slice(&body)
            .map_err(|error| HttpClientError::InvalidResponse(format!("{url} returned an unexpected body: {error}")))
    }

    async fn fetch(&self, url: &str, reuse: ConnectionReuse) -> Result<Bytes, HttpClientError> {
        let uri: Uri = url.parse().map_err(|error| HttpClientError::InvalidResponse(format!("{url}: {error}")))?;
        let mut request =
            Request::get(uri).header("user-agent", concat!("rollora-operator/", env!("CARGO_PKG_VERSION")));
        if reuse == ConnectionReuse::Close {
            request = request.header("connection", "close");
        }
        let request =
            request.body(Empty::new()).map_err(|error| HttpClientError::InvalidResponse(format!("{url}: {error}")))?;
        let unreachable =
            |error: &dyn Error| HttpClientError::Unreachable(format!("request to {url} failed: {}", root_cause(error)));
        let response = self.client.request(request).await.map_err(|error| unreachable(&error))?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(HttpClientError::InvalidResponse(format!("{url} returned {status}")));
        }
        let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| unreachable(error.as_ref()))
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

    const LOCALHOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Serves one response with this text.
    async fn serve_once(text: &'static str) -> Result<Value, HttpClientError> {
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /status HTTP/1.1\r\n"));
            stream.write_all(text.as_bytes()).await.unwrap();
        };
        let client = HttpClient::default();
        tokio::join!(client.get(LOCALHOST, port, "/status", ConnectionReuse::Close), serve).0
    }

    #[tokio::test]
    async fn json_response_is_parsed() {
        let response = serve_once("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}").await;
        assert_eq!(response.unwrap()["a"], 1);
    }

    #[tokio::test]
    async fn unexpected_response_is_not_unreachable() {
        let response = serve_once("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
        assert!(
            matches!(&response, Err(HttpClientError::InvalidResponse(why)) if why.ends_with("returned 404 Not Found")),
            "{response:?}"
        );
        let response = serve_once("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno").await;
        assert!(matches!(response, Err(HttpClientError::InvalidResponse(_))), "{response:?}");
    }

    #[tokio::test]
    async fn refused_connection_names_address_and_cause() {
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = HttpClient::default()
            .get::<Value>(LOCALHOST, port, "/status", ConnectionReuse::KeepAlive)
            .await
            .unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, HttpClientError::Unreachable(_)), "{message}");
        assert!(
            message.starts_with(&format!("request to http://127.0.0.1:{port}/status failed: Connection refused")),
            "{message}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn unresponsive_pod_times_out() {
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = HttpClient::default()
            .get::<Value>(LOCALHOST, port, "/status", ConnectionReuse::KeepAlive)
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), format!("http://127.0.0.1:{port}/status did not respond within 1s"));
    }
}
