//! The client against a real TLS server, with the certificates of `testdata/tls`.

use super::*;
use crate::{Endpoint, Timeouts, VllmClient, VllmError};
use std::{path::PathBuf, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

fn file(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/tls")).join(name)
}

fn ca_bundle(name: &str) -> CaBundle {
    CaBundle::parse(&std::fs::read(file(name)).unwrap()).unwrap()
}

/// Starts a healthy server with this certificate, without TLS if it is `None`. It runs until the returned set is
/// dropped.
async fn server(certificate: Option<&str>) -> (JoinSet<()>, u16) {
    let acceptor = certificate.map(|name| {
        let chain = CertificateDer::pem_file_iter(file(name)).unwrap().collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        TlsAcceptor::from(Arc::new(config.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap()))
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let response = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let Some(acceptor) = &acceptor else {
                // Like uvicorn for input that is not HTTP: a plain-text response, then the connection closes.
                drop(connection.read(&mut [0; 4096]).await);
                drop(connection.write_all(response).await);
                continue;
            };
            // A client that does not trust the certificate aborts the handshake.
            let Ok(mut connection) = acceptor.accept(connection).await else { continue };
            let mut request = [0; 4096];
            if connection.read(&mut request).await.is_ok_and(|read| read > 0) {
                drop(connection.write_all(response).await);
            }
        }
    });
    (tasks, port)
}

fn tls_client(url: &str, tls: TlsConfig) -> VllmClient {
    let timeouts = Timeouts { connect: Duration::from_secs(5), ..Timeouts::default() };
    VllmClient::new(Endpoint::parse(url).unwrap().with_tls(tls), timeouts).unwrap()
}

fn tls_with_ca(name: &str) -> TlsConfig {
    TlsConfig { ca_bundle: Some(ca_bundle(name)), server_name: None }
}

#[tokio::test]
async fn ca_bundle_verifies_every_name_of_the_certificate() {
    let (_server, port) = server(Some("server.pem")).await;
    for host in ["127.0.0.1", "localhost"] {
        tls_client(&format!("https://{host}:{port}"), tls_with_ca("ca.pem")).health().await.unwrap();
    }
}

#[tokio::test]
async fn server_name_overrides_the_host_in_verification() {
    let (_server, port) = server(Some("named.pem")).await;
    let name = Some("vllm.models.svc".parse().unwrap());
    let tls = TlsConfig { server_name: name, ..tls_with_ca("ca.pem") };
    tls_client(&format!("https://127.0.0.1:{port}"), tls.clone()).health().await.unwrap();
    // The name has no address: it must not be resolved through DNS.
    let client = tls_client(&format!("https://localhost:{port}"), tls);
    client.health().await.unwrap();
    assert_eq!(client.endpoint().base_url(), format!("https://localhost:{port}"));
}

#[tokio::test]
async fn untrusted_server_gets_no_request_and_error_has_advice() {
    for (certificate, trusted, advice) in [
        (Some("other.pem"), "ca.pem", "give the certificate of the CA that signed it"),
        (Some("expired.pem"), "ca.pem", "has expired"),
        (Some("named.pem"), "ca.pem", "for another name"),
        (None, "ca.pem", "does not speak TLS"),
    ] {
        let (_server, port) = server(certificate).await;
        let url = format!("https://127.0.0.1:{port}");
        let error = tls_client(&url, tls_with_ca(trusted)).health().await.unwrap_err();
        assert!(matches!(error, VllmError::TlsFailed { .. }), "{certificate:?}: {error:?}");
        let message = error.to_string();
        assert!(message.contains(advice) && message.contains(&url), "{certificate:?}: {message}");
        assert!(!error.may_have_succeeded() && error.needs_intervention() && error.is_server_wide());
    }
}

#[tokio::test]
async fn without_ca_bundle_only_the_systems_cas_are_trusted() {
    let (_server, port) = server(Some("server.pem")).await;
    let error = tls_client(&format!("https://127.0.0.1:{port}"), TlsConfig::default()).health().await.unwrap_err();
    assert!(error.to_string().contains("CA that signed it"), "{error}");
}

#[tokio::test]
async fn plain_http_to_a_tls_server_is_reported_as_such() {
    let (_server, port) = server(Some("server.pem")).await;
    let error = tls_client(&format!("http://127.0.0.1:{port}"), TlsConfig::default()).health().await.unwrap_err();
    assert!(error.to_string().contains("does the server expect TLS?"), "{error}");
}

#[test]
fn invalid_ca_bundles_are_rejected_with_advice() {
    let key = std::fs::read(file("server.key")).unwrap();
    let ca = std::fs::read(file("ca.pem")).unwrap();
    let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec();
    for (pem, expected) in [
        (Vec::new(), "contains no certificate"),
        (b"hello".to_vec(), "contains no certificate"),
        (b"-----BEGIN CERTIFICATE-----\nAA".to_vec(), "not valid PEM"),
        ([ca.clone(), broken].concat(), "certificate number 2"),
        ([ca, key].concat(), "a private key"),
    ] {
        let error = CaBundle::parse(&pem).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn server_name_must_be_a_dns_name_without_wildcard() {
    for good in ["vllm", "vllm.models.svc.cluster.local"] {
        assert_eq!(good.parse::<ServerName>().unwrap().to_string(), good);
    }
    for bad in ["", "10.0.0.7", "::1", "https://vllm", "vllm:8000", "*.svc", "a b"] {
        assert!(bad.parse::<ServerName>().unwrap_err().to_string().contains("DNS name"), "{bad}");
    }
}
