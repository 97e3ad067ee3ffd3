//! Test fixture: a running `rollora-sidecar`, the mount that it reads, and a client of its HTTP endpoints.

use crate::fake::{FakeVllm, FakeVllmConfig};
use rollora_api::{
    names::{AdapterId, DIRECTIVES_KEY},
    sidecar_status::{AdapterState, SidecarStatus},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Every wait ends within this time, even on a busy machine.
const TIMEOUT: Duration = Duration::from_mins(2);

pub(crate) fn id(name: &str) -> AdapterId {
    AdapterId::new(name).unwrap()
}

/// Returns an adapters file for the server at `port`, with the ids of both lists.
pub(crate) fn adapters_file(port: u16, exist: &[&str], not_exist: &[&str]) -> String {
    let list = |ids: &[&str]| {
        let entry = |id: &&str| format!("\n    - id: {id}\n      source: /adapters/{id}");
        if ids.is_empty() { " []".to_owned() } else { ids.iter().map(entry).collect() }
    };
    let (exist, not_exist) = (list(exist), list(not_exist));
    format!(
        "vLLMLoRAConfig:\n  host: 127.0.0.1\n  port: {port}\n  ensureExist:\n    models:{exist}\n  ensureNotExist:\n    \
         models:{not_exist}\n"
    )
}

/// A ConfigMap as a kubelet mounts it: a link to a folder that is swapped as a whole.
pub(crate) struct ConfigMapMount {
    folder: TempDir,
    version: u32,
}

impl ConfigMapMount {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), version: 0 }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("configmap.yaml")
    }

    /// Replaces the content with a new version, as a kubelet does.
    pub(crate) fn update(&mut self, user: &str, operator: Option<&str>) {
        self.version += 1;
        let version = format!("..version_{}", self.version);
        let folder = self.folder.path().join(&version);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("configmap.yaml"), user).unwrap();
        if let Some(operator) = operator {
            fs::write(folder.join(DIRECTIVES_KEY), operator).unwrap();
        }
        let link = |target: &str, name: &str| {
            let temporary = self.folder.path().join("..temporary");
            std::os::unix::fs::symlink(target, &temporary).unwrap();
            fs::rename(&temporary, self.folder.path().join(name)).unwrap();
        };
        link(&version, "..data");
        link("..data/configmap.yaml", "configmap.yaml");
    }
}

/// Builder of a `rollora-sidecar` command.
pub(crate) struct SidecarCommand(Command);

impl SidecarCommand {
    pub(crate) fn new() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollora-sidecar"));
        // The environment of the tests must not configure the sidecar.
        for name in ["POD_IP", "POD_NAME", "KUBECONFIG", "VLLM_API_KEY", "ROLLORA_VLLM_HOST", "RUST_LOG"] {
            command.env_remove(name);
        }
        for name in ["HF_ENDPOINT", "HF_TOKEN", "ROLLORA_ALLOW_SOURCE"] {
            command.env_remove(name);
        }
        command.env_remove("DYNAMIC_LORA_ROLLOUT_CONFIG").env("NO_COLOR", "1");
        Self(command)
    }

    pub(crate) fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.0.args(args);
        self
    }

    pub(crate) fn path(mut self, flag: &str, path: &Path) -> Self {
        self.0.arg(flag).arg(path);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Runs until it ends by itself; returns the exit code and the output.
    pub(crate) fn run(mut self) -> (Option<i32>, String) {
        let output = self.0.stdin(Stdio::null()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    }

    /// Starts it on a free port.
    pub(crate) fn start(mut self) -> SidecarProgram {
        self.0.args(["--address", "127.0.0.1", "--metrics-port", "0"]);
        let mut child = self.0.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (stderr, lines) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        let reader = thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let mut program =
            SidecarProgram { child, log, reader: Some(reader), address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        program.wait_for("listens", |program| {
            let line = program.log().into_iter().find(|line| line.contains("rollora-sidecar starts"));
            let listen = line.as_deref()?.split_whitespace().find_map(|word| word.strip_prefix("listen="))?;
            program.address = listen.parse().unwrap();
            Some(())
        });
        program
    }
}

/// A running sidecar; dropping it kills the process.
pub(crate) struct SidecarProgram {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<thread::JoinHandle<()>>,
    address: SocketAddr,
}

impl Drop for SidecarProgram {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if thread::panicking() {
            eprintln!("log of the sidecar:\n{}", self.log().join("\n"));
        }
    }
}

impl SidecarProgram {
    /// Starts a sidecar with the adapters file of this mount.
    pub(crate) fn start_with_mount(mount: &ConfigMapMount) -> Self {
        SidecarCommand::new().path("--config", &mount.file()).args(["--pod-name", "pod-1"]).start()
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn has_logged(&self, text: &str) -> bool {
        self.log().iter().any(|line| line.contains(text))
    }

    /// Sends a GET request; returns the status code and the body.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let mut connection = TcpStream::connect(self.address).unwrap();
        connection.set_read_timeout(Some(TIMEOUT)).unwrap();
        write!(connection, "GET {path} HTTP/1.1\r\nHost: sidecar\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    pub(crate) fn status(&self) -> SidecarStatus {
        let (code, body) = self.get("/status");
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    pub(crate) fn adapter_state(&self, name: &str) -> Option<AdapterState> {
        self.status().adapter(&id(name)).map(|adapter| adapter.state)
    }

    /// Returns whether it is ready, and the text of `/readyz`.
    pub(crate) fn readiness(&self) -> (bool, String) {
        let (code, message) = self.get("/readyz");
        assert!(matches!(code, 200 | 503), "{code} {message}");
        (code == 200, message)
    }

    /// Waits until `reached` returns a value.
    pub(crate) fn wait_for<T>(&mut self, what: &str, mut reached: impl FnMut(&mut Self) -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(reached) = reached(self) {
                return reached;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended with {status} while waiting for: {what}");
            }
            assert!(started.elapsed() < TIMEOUT, "waited too long for: {what}\n{:#?}", self.status());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until an adapter is in this state.
    pub(crate) fn wait_for_state(&mut self, name: &str, state: AdapterState) {
        self.wait_for(&format!("{name} is {state:?}"), |program| {
            (program.adapter_state(name) == Some(state)).then_some(())
        });
    }

    /// Waits until `/readyz` answers 200.
    pub(crate) fn wait_until_ready(&mut self) {
        self.wait_for("ready", |program| program.readiness().0.then_some(()));
    }

    /// Sends SIGTERM without a wait.
    pub(crate) fn send_sigterm(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    /// Sends SIGTERM and waits for the end; returns exit status, duration and log.
    pub(crate) fn terminate(self) -> (ExitStatus, Duration, Vec<String>) {
        self.send_sigterm();
        self.wait_for_exit()
    }

    /// Waits for the end; returns exit status, duration and log.
    pub(crate) fn wait_for_exit(mut self) -> (ExitStatus, Duration, Vec<String>) {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < TIMEOUT, "it did not end after SIGTERM");
            thread::sleep(Duration::from_millis(5));
        };
        let duration = started.elapsed();
        self.reader.take().unwrap().join().unwrap();
        (status, duration, self.log())
    }
}

/// A fake vLLM, a mount whose file names it, and a sidecar with both.
pub(crate) struct ProgramTestbed {
    pub(crate) vllm: FakeVllm,
    pub(crate) mount: ConfigMapMount,
    pub(crate) sidecar: SidecarProgram,
}

impl ProgramTestbed {
    /// Starts everything, and waits until these adapters are verified.
    pub(crate) fn with_verified(exist: &[&str]) -> Self {
        Self::with_verified_and_args(exist, &[])
    }

    /// Like [`Self::with_verified`], with more flags.
    pub(crate) fn with_verified_and_args(exist: &[&str], args: &[&str]) -> Self {
        let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
        mount.update(&adapters_file(vllm.port(), exist, &[]), None);
        let start = SidecarCommand::new().path("--config", &mount.file()).args(["--pod-name", "pod-1"]);
        let mut sidecar = start.args(args.iter().copied()).start();
        for name in exist {
            sidecar.wait_for_state(name, AdapterState::Verified);
        }
        sidecar.wait_until_ready();
        Self { vllm, mount, sidecar }
    }

    /// Replaces the adapters file and the directives.
    pub(crate) fn update_file(&mut self, exist: &[&str], not_exist: &[&str], operator: Option<&str>) {
        self.mount.update(&adapters_file(self.vllm.port(), exist, not_exist), operator);
    }
}
