//! TLS to vLLM, with the certificates of the client's tests.

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

/// TLS in front of a vLLM. As uvicorn does, it closes a connection that never says hello, only sooner.
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
        let (port, behind) = (listener.local_addr().unwrap().port(), vllm.port());
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
                    let Ok(mut plain) = TcpStream::connect(("127.0.0.1", behind)).await else { return };
                    drop(copy_bidirectional(&mut secure, &mut plain).await);
                });
            }
        });
        Self { vllm, port, acceptor: shared, _runtime: runtime }
    }

    /// New connections see this certificate.
    fn set_certificate(&self, name: &str) {
        *self.acceptor.lock().unwrap() = acceptor(name);
    }

    fn mount(&self, exist: &[&str]) -> ConfigMapMount {
        let mut mount = ConfigMapMount::new();
        mount.update(&adapters_file(self.port, exist, &[]), None);
        mount
    }
}

/// What the status says against the server, once that is TLS.
fn tls_problem(sidecar: &mut SidecarProgram) -> String {
    sidecar.wait_for("the refusal", |sidecar| {
        sidecar.status().problem.filter(|problem| problem.reason == "TlsFailed").map(|problem| problem.message)
    })
}

#[test]
fn a_vllm_with_tls_is_kept_as_one_without() {
    let vllm = TlsProxy::start("server.pem");
    let mount = vllm.mount(&["v1"]);
    let start = SidecarCommand::new().path("--config", &mount.file()).path("--vllm-ca-file", &certificate("ca.pem"));
    let mut sidecar = start.start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    sidecar.wait_until_ready();
    let status = sidecar.status();
    assert_eq!(status.server.unwrap().endpoint, format!("https://127.0.0.1:{}", vllm.port));
    assert_eq!(vllm.vllm.adapters(), ["v1"]);
    // Idle connections close again and again, which is nobody's end.
    let began = Instant::now();
    while began.elapsed() < 8 * HANDSHAKE_TIMEOUT {
        let (ready, why) = sidecar.readiness();
        assert!(ready, "{why}");
    }
    // And an end is one.
    vllm.vllm.kill();
    sidecar.wait_for("not ready", |sidecar| (!sidecar.readiness().0).then_some(()));
    vllm.vllm.restart();
    sidecar.wait_until_ready();
    assert_eq!(vllm.vllm.adapters(), ["v1"]);
}

#[test]
fn a_certificate_that_cannot_be_trusted_is_said_with_what_to_do() {
    for (name, args, words) in [
        ("other.pem", &["--vllm-ca-file", "ca.pem"][..], "give the certificate of the CA that signed it"),
        ("server.pem", &["--vllm-tls"], "give the certificate of the CA that signed it"),
        ("expired.pem", &["--vllm-ca-file", "ca.pem"], "has expired"),
        ("named.pem", &["--vllm-ca-file", "ca.pem"], "set the expected server name"),
    ] {
        let vllm = TlsProxy::start(name);
        let mount = vllm.mount(&["v1"]);
        let args: Vec<String> = args
            .iter()
            .map(|arg| if arg.starts_with("--") { (*arg).to_owned() } else { certificate(arg).display().to_string() })
            .collect();
        let start = SidecarCommand::new().path("--config", &mount.file()).args(args.iter().map(String::as_str));
        let mut sidecar = start.start();
        let said = tls_problem(&mut sidecar);
        assert!(said.contains(words), "{name}: {said}");
        let (ready, why) = sidecar.readiness();
        assert!(!ready && why.starts_with("TlsFailed: ") && why.contains(words), "{name}: {why}");
        assert!(vllm.vllm.requests().is_empty(), "nothing was asked");
    }
    // A server without TLS.
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = SidecarCommand::new().path("--config", &mount.file()).args(["--vllm-tls"]).start();
    let said = tls_problem(&mut sidecar);
    assert!(said.contains("does not speak TLS"), "{said}");
}

#[test]
fn a_certificate_for_another_name_is_good_where_that_name_is_given() {
    let vllm = TlsProxy::start("named.pem");
    let mount = vllm.mount(&["v1"]);
    let start = SidecarCommand::new().path("--config", &mount.file()).path("--vllm-ca-file", &certificate("ca.pem"));
    let mut sidecar = start.args(["--vllm-server-name", "vllm.models.svc"]).start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
}

#[test]
fn a_ca_that_changes_is_taken_and_a_bad_one_is_not() {
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
    let asked = vllm.vllm.requests();
    fs::write(&file, "-----BEGIN CERTIFICATE-----\nbroken").unwrap();
    sidecar.wait_for("it is said", |sidecar| {
        sidecar.has_logged("vLLM's CA cannot be taken, the last good one stays").then_some(())
    });
    // Another CA takes over: first it is trusted too, then vLLM shows its certificate.
    let both = [fs::read(certificate("ca.pem")).unwrap(), fs::read(certificate("other-ca.pem")).unwrap()].concat();
    let ready_until = |sidecar: &mut SidecarProgram, words: &str, times: usize| {
        sidecar.wait_for(words, |sidecar| {
            assert!(sidecar.readiness().0, "what is loaded goes on serving");
            let log = sidecar.log();
            (log.iter().filter(|line| line.contains(words)).count() == times).then_some(())
        });
    };
    fs::write(&file, both).unwrap();
    ready_until(&mut sidecar, "vLLM's CA was read again", 2);
    vllm.set_certificate("other.pem");
    fs::copy(certificate("other-ca.pem"), &file).unwrap();
    ready_until(&mut sidecar, "vLLM's CA was read again", 3);
    for _ in 0..5 {
        assert!(sidecar.readiness().0);
    }
    assert_eq!(vllm.vllm.requests(), asked, "nothing was loaded or proven again");
}
