//! Tests of TLS to vLLM, with the certificates of the tests of rollora-vllm.

use crate::{
    fake::{FakeVllm, FakeVllmConfig},
    testbed::{ConfigMapMount, SidecarCommand, SidecarProgram, adapters_file},
};
use rollora_api::sidecar_status::AdapterState;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{io::copy_bidirectional, net::TcpStream, runtime::Runtime, time::timeout};
use tokio_rustls::TlsAcceptor;

fn certificate(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates/vllm/testdata/tls")).join(name)
}

fn acceptor(name: &str) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(certificate(name)).unwrap().collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(certificate("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Arc::new(config.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap()).into()
}

/// A TLS proxy in front of a fake vLLM. Like uvicorn, it closes a connection without a handshake, only sooner.
struct TlsProxy {
    vllm: FakeVllm,
    port: u16,
    acceptor: Arc<Mutex<TlsAcceptor>>,
    _runtime: Runtime,
}

const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(150);

impl TlsProxy {
    fn start(name: &str) -> Self {
        let vllm = FakeVllm::start(FakeVllmConfig::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let (port, vllm_port) = (listener.local_addr().unwrap().port(), vllm.port());
        let shared = Arc::new(Mutex::new(acceptor(name)));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let acceptors = Arc::clone(&shared);
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let acceptor = acceptors.lock().unwrap().clone();
                tokio::spawn(async move {
                    let Ok(Ok(mut secure)) = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(connection)).await else {
                        return;
                    };
                    let Ok(mut plain) = TcpStream::connect(("127.0.0.1", vllm_port)).await else { return };
                    drop(copy_bidirectional(&mut secure, &mut plain).await);
                });
            }
        });
        Self { vllm, port, acceptor: shared, _runtime: runtime }
    }

    /// New connections get this certificate.
    fn set_certificate(&self, name: &str) {
        *self.acceptor.lock().unwrap() = acceptor(name);
    }

    fn mount(&self, exist: &[&str]) -> ConfigMapMount {
        let mut mount = ConfigMapMount::new();
        mount.update(&adapters_file(self.port, exist, &[]), None);
        mount
    }
}

/// Waits for a TLS problem in the status, and returns its message.
fn tls_problem(sidecar: &mut SidecarProgram) -> String {
    sidecar.wait_for("the refusal", |sidecar| {
        sidecar.status().problem.filter(|problem| problem.reason == "TlsFailed").map(|problem| problem.message)
    })
}

#[test]
fn vllm_with_tls_is_reconciled() {
    let vllm = TlsProxy::start("server.pem");
    let mount = vllm.mount(&["v1"]);
    let start = SidecarCommand::new().path("--config", &mount.file()).path("--vllm-ca-file", &certificate("ca.pem"));
    let mut sidecar = start.start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    sidecar.wait_until_ready();
    let status = sidecar.status();
    assert_eq!(status.server.unwrap().endpoint, format!("https://127.0.0.1:{}", vllm.port));
    assert_eq!(vllm.vllm.adapters(), ["v1"]);
    // The server keeps closing idle connections, which must not make it unready.
    let started = Instant::now();
    while started.elapsed() < 8 * HANDSHAKE_TIMEOUT {
        let (ready, message) = sidecar.readiness();
        assert!(ready, "{message}");
    }
    // The end of the process must make it unready.
    vllm.vllm.kill();
    sidecar.wait_for("not ready", |sidecar| (!sidecar.readiness().0).then_some(()));
    vllm.vllm.restart();
    sidecar.wait_until_ready();
    assert_eq!(vllm.vllm.adapters(), ["v1"]);
}

#[test]
fn untrusted_certificate_is_reported_with_a_fix() {
    for (name, args, text) in [
        ("other.pem", &["--vllm-ca-file", "ca.pem"][..], "give the certificate of the CA that signed it"),
        ("server.pem", &["--vllm-tls"], "give the certificate of the CA that signed it"),
        ("expired.pem", &["--vllm-ca-file", "ca.pem"], "has expired"),
        ("named.pem", &["--vllm-ca-file", "ca.pem"], "set that name as the server name"),
    ] {
        let vllm = TlsProxy::start(name);
        let mount = vllm.mount(&["v1"]);
        let args: Vec<String> = args
            .iter()
            .map(|arg| if arg.starts_with("--") { (*arg).to_owned() } else { certificate(arg).display().to_string() })
            .collect();
        let start = SidecarCommand::new().path("--config", &mount.file()).args(args.iter().map(String::as_str));
        let mut sidecar = start.start();
        let problem = tls_problem(&mut sidecar);
        assert!(problem.contains(text), "{name}: {problem}");
        let (ready, message) = sidecar.readiness();
        assert!(!ready && message.starts_with("TlsFailed: ") && message.contains(text), "{name}: {message}");
        assert!(vllm.vllm.requests().is_empty(), "no call may reach vLLM");
    }
    // A vLLM server without TLS.
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = SidecarCommand::new().path("--config", &mount.file()).args(["--vllm-tls"]).start();
    let problem = tls_problem(&mut sidecar);
    assert!(problem.contains("does not speak TLS"), "{problem}");
}

#[test]
fn certificate_for_another_name_works_with_server_name_flag() {
    let vllm = TlsProxy::start("named.pem");
    let mount = vllm.mount(&["v1"]);
    let start = SidecarCommand::new().path("--config", &mount.file()).path("--vllm-ca-file", &certificate("ca.pem"));
    let mut sidecar = start.args(["--vllm-server-name", "vllm.models.svc"]).start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
}

#[test]
fn changed_ca_file_is_reloaded_unless_invalid() {
    let vllm = TlsProxy::start("server.pem");
    let mount = vllm.mount(&["v1"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    fs::copy(certificate("other-ca.pem"), &file).unwrap();
    let mut sidecar = SidecarCommand::new().path("--config", &mount.file()).path("--vllm-ca-file", &file).start();
    tls_problem(&mut sidecar);
    fs::copy(certificate("ca.pem"), &file).unwrap();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    sidecar.wait_until_ready();
    let requests = vllm.vllm.requests();
    fs::write(&file, "-----BEGIN CERTIFICATE-----\nbroken").unwrap();
    sidecar.wait_for("the warning", |sidecar| {
        sidecar.has_logged("vLLM's CA cannot be reloaded, keeping the last good one").then_some(())
    });
    // Rotation of the CA: first both are trusted, then vLLM presents the new certificate.
    let both = [fs::read(certificate("ca.pem")).unwrap(), fs::read(certificate("other-ca.pem")).unwrap()].concat();
    let wait_for_reload = |sidecar: &mut SidecarProgram, text: &str, times: usize| {
        sidecar.wait_for(text, |sidecar| {
            assert!(sidecar.readiness().0, "loaded adapters must keep serving");
            let log = sidecar.log();
            (log.iter().filter(|line| line.contains(text)).count() == times).then_some(())
        });
    };
    fs::write(&file, both).unwrap();
    wait_for_reload(&mut sidecar, "vLLM's CA was reloaded", 2);
    vllm.set_certificate("other.pem");
    fs::copy(certificate("other-ca.pem"), &file).unwrap();
    wait_for_reload(&mut sidecar, "vLLM's CA was reloaded", 3);
    for _ in 0..5 {
        assert!(sidecar.readiness().0);
    }
    assert_eq!(vllm.vllm.requests(), requests, "no adapter may be loaded or probed again");
}
