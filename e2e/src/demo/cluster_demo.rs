//! The demo on the parts of a cluster: the bed comes up part by part, and `kubectl` shows the weights.

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

/// Sidecars that watch their ConfigMap: nothing has to wait for a kubelet's next look.
const MANIFESTS: [&str; 3] = ["operator-one-namespace", "ext-proc", "vllm-watch"];

/// From the first part of the bed to the end of the story.
pub(super) async fn run_on_cluster(arguments: DemoArgs, stage: &DemoSetup, screen: &mut Screen) -> Result<()> {
    for (home, program) in [(CONTROL_PLANE, "kube-apiserver"), (ENVOY, "envoy")] {
        home.program(program).context("`cargo xtask demo --cluster` gets what a cluster is made of")?;
    }
    let title = screen.paint(ScreenStyle::Bold, "The LoRA adapter rollout guide, by itself, on the parts of a cluster");
    screen.print_line(&title);
    let cluster = start_cluster(stage, screen).await.context("the parts of a cluster could not start")?;
    let up = screen.elapsed();
    let bed = run_walkthrough(Harness::on(cluster), stage, screen).await?;
    let guide = screen.elapsed().saturating_sub(up);
    let (up, guide) = (up.as_secs_f64(), guide.as_secs_f64());
    screen.print_summary(&format!("the bed in {up:.1} s, the guide in {guide:.1} s"));
    if arguments.keep {
        keep_running::wait_until_interrupted(&keep_running::cluster_hints(&bed.environment, &stage.v3)?, screen)
            .await?;
    }
    Ok(())
}

async fn start_cluster(stage: &DemoSetup, screen: &mut Screen) -> Result<ClusterEnvironment> {
    screen.print_section("The bed", "every part is a process of this machine, as the manifests say");
    let plane = screen.show_while("etcd and the API server start", ControlPlane::start()).await?;
    let version = plane.admin_client().await?.apiserver_version().await?.git_version;
    screen.print_check(&format!("etcd, and the API server of Kubernetes {version} at {}", plane.url()));

    let definitions = [rollora_crds()?, upstream_crds()?].concat();
    screen.show_while("the definitions are not served yet", plane.install_crds(&definitions)).await?;
    screen.print_check("definitions: Rollout, InferencePool, InferenceModelRewrite");

    let parts =
        ClusterOptions { control_plane: Some(plane), manifests: MANIFESTS.to_vec(), ..ClusterOptions::default() };
    let applied = screen.show_while("the manifests are applied", ClusterEnvironment::prepare(&stage.setup, parts));
    let mut cluster = applied.await?;
    screen.print_check(&format!("applied: manifests/{{{}}}", MANIFESTS.join(",")));
    screen.print_check(&format!("applied: the guide's ConfigMap {ADAPTERS_CONFIG_MAP} and a Rollout"));

    let pods = stage.setup.servers.len();
    let starting = format!("the kubelet stand-in starts {pods} pods of vLLM");
    screen.show_while(&starting, cluster.wait_servers_ready(&stage.setup)).await?;
    screen.print_check(&format!("{pods} pods of vLLM ({}), each with a sidecar", stage.server_label));

    screen.show_while("the operator starts", cluster.wait_operator_ready()).await?;
    screen.print_check("rollora-operator");
    screen.show_while("Envoy looks for ext-proc", cluster.wait_gateway_ready()).await?;
    let replicas = cluster.ext_procs().len();
    screen.print_check(&format!("{replicas} replicas of rollora-ext-proc behind Envoy at {}", cluster.gateway()));
    Ok(cluster)
}

impl DemoEnvironment for ClusterEnvironment {
    const ADAPTERS_SOURCE: &'static str = "the ConfigMap";
    const STARTING_MESSAGE: &'static str = "the operator has not said anything yet";

    async fn rollout_view(&self) -> Result<Vec<String>> {
        let kubeconfig = self.kubeconfig()?;
        let mut kubectl = self.control_plane().kubectl()?;
        // What it remembers between two calls goes with the bed, and not to the user's home.
        kubectl.arg("--cache-dir").arg(kubeconfig.with_file_name("kubectl-cache"));
        kubectl.args(["get", "rollouts"]).env("KUBECONFIG", kubeconfig);
        let spoken = run_command(kubectl).await?;
        ensure!(spoken.code == 0, "`kubectl get rollouts` ended with {spoken:?}");
        let shown = spoken.stdout.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
        Ok(std::iter::once("$ kubectl get rollouts".to_owned()).chain(shown).collect())
    }
}
