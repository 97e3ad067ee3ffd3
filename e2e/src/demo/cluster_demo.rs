//! The demo on the parts of a cluster: the testbed starts part by part, and `kubectl` shows the weights.

use super::{
    DemoArgs,
    environment::DemoEnvironment,
    keep_running, run_walkthrough,
    screen::{Screen, ScreenStyle},
    setup::DemoSetup,
};
use crate::{
    cluster::{ClusterEnvironment, ClusterOptions},
    harness::{Environment as _, Harness},
    rollora_local::run_command,
};
use anyhow::{Context as _, Result, ensure};
use rollora_testbed::{
    control_plane::{ControlPlane, rollora_crds, upstream_crds},
    guide::ADAPTERS_CONFIG_MAP,
    tools::{CONTROL_PLANE, ENVOY},
};

/// These sidecars watch their ConfigMap, so the demo does not wait for a kubelet's next sync.
const MANIFESTS: [&str; 3] = ["operator-one-namespace", "ext-proc", "vllm-watch"];

/// Runs from the first part of the testbed to the end of the walkthrough.
pub(super) async fn run_on_cluster(arguments: DemoArgs, setup: &DemoSetup, screen: &mut Screen) -> Result<()> {
    for (home, program) in [(CONTROL_PLANE, "kube-apiserver"), (ENVOY, "envoy")] {
        home.program(program).context("run `cargo xtask demo --cluster`: it fetches the programs of a cluster")?;
    }
    let title = screen.paint(ScreenStyle::Bold, "The LoRA adapter rollout guide on the parts of a cluster");
    screen.print_line(&title);
    let cluster = start_cluster(setup, screen).await.context("the parts of the cluster did not start")?;
    let startup = screen.elapsed();
    let harness = run_walkthrough(Harness::on(cluster), setup, screen).await?;
    let guide = screen.elapsed().saturating_sub(startup);
    let (startup, guide) = (startup.as_secs_f64(), guide.as_secs_f64());
    screen.print_summary(&format!("startup {startup:.1} s, guide {guide:.1} s"));
    if arguments.keep {
        keep_running::wait_until_interrupted(&keep_running::cluster_hints(&harness.environment, &setup.v3)?, screen)
            .await?;
    }
    Ok(())
}

async fn start_cluster(setup: &DemoSetup, screen: &mut Screen) -> Result<ClusterEnvironment> {
    screen.print_section("Startup", "every part is a process of this machine, as the manifests define it");
    let plane = screen.show_while("etcd and the API server are starting", ControlPlane::start()).await?;
    let version = plane.admin_client().await?.apiserver_version().await?.git_version;
    screen.print_check(&format!("etcd, and the API server of Kubernetes {version} at {}", plane.url()));

    let definitions = [rollora_crds()?, upstream_crds()?].concat();
    screen.show_while("waiting for the CRDs to be served", plane.install_crds(&definitions)).await?;
    screen.print_check("CRDs: Rollout, InferencePool, InferenceModelRewrite");

    let options =
        ClusterOptions { control_plane: Some(plane), manifests: MANIFESTS.to_vec(), ..ClusterOptions::default() };
    let applied = screen.show_while("applying the manifests", ClusterEnvironment::prepare(&setup.setup, options));
    let mut cluster = applied.await?;
    screen.print_check(&format!("applied: manifests/{{{}}}", MANIFESTS.join(",")));
    screen.print_check(&format!("applied: the guide's ConfigMap {ADAPTERS_CONFIG_MAP} and a Rollout"));

    let pods = setup.setup.servers.len();
    let starting = format!("the kubelet stand-in starts {pods} pods of vLLM");
    screen.show_while(&starting, cluster.wait_servers_ready(&setup.setup)).await?;
    screen.print_check(&format!("{pods} pods of vLLM ({}), each with a sidecar", setup.server_label));

    screen.show_while("the operator is starting", cluster.wait_operator_ready()).await?;
    screen.print_check("rollora-operator");
    screen.show_while("waiting for Envoy to reach ext-proc", cluster.wait_gateway_ready()).await?;
    let replicas = cluster.ext_procs().len();
    screen.print_check(&format!("{replicas} replicas of rollora-ext-proc behind Envoy at {}", cluster.gateway()));
    Ok(cluster)
}

impl DemoEnvironment for ClusterEnvironment {
    const ADAPTERS_SOURCE: &'static str = "the ConfigMap";
    const STARTING_MESSAGE: &'static str = "the operator has not written a status yet";

    async fn rollout_view(&self) -> Result<Vec<String>> {
        let kubeconfig = self.kubeconfig()?;
        let mut kubectl = self.control_plane().kubectl()?;
        // Keeps kubectl's discovery cache in the testbed's folder, not in the user's home.
        kubectl.arg("--cache-dir").arg(kubeconfig.with_file_name("kubectl-cache"));
        kubectl.args(["get", "rollouts"]).env("KUBECONFIG", kubeconfig);
        let output = run_command(kubectl).await?;
        ensure!(output.code == 0, "`kubectl get rollouts` ended with {output:?}");
        let lines = output.stdout.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
        Ok(std::iter::once("$ kubectl get rollouts".to_owned()).chain(lines).collect())
    }
}
