//! The demo on the parts of a cluster: the bed comes up part by part, and `kubectl` shows the weights.

use super::{
    Arguments, keep,
    scene::Scene,
    screen::{Look, Screen},
    stage::Stage,
    tell,
};
use crate::{
    bed::{Bed, Place as _},
    cluster::{Cluster, Parts},
    rollora::run,
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
pub(super) async fn play(arguments: Arguments, stage: &Stage, screen: &mut Screen) -> Result<()> {
    for (home, program) in [(CONTROL_PLANE, "kube-apiserver"), (ENVOY, "envoy")] {
        home.program(program).context("`cargo xtask demo --cluster` gets what a cluster is made of")?;
    }
    let title = screen.paint(Look::Bold, "The LoRA adapter rollout guide, by itself, on the parts of a cluster");
    screen.line(&title);
    let cluster = bring_up(stage, screen).await.context("the parts of a cluster could not start")?;
    let up = screen.elapsed();
    let bed = tell(Bed::at(cluster), stage, screen).await?;
    let guide = screen.elapsed().saturating_sub(up);
    let (up, guide) = (up.as_secs_f64(), guide.as_secs_f64());
    screen.end(&format!("the bed in {up:.1} s, the guide in {guide:.1} s"));
    if arguments.keep {
        keep::running(&keep::of_cluster(&bed.place, &stage.v3)?, screen).await?;
    }
    Ok(())
}

async fn bring_up(stage: &Stage, screen: &mut Screen) -> Result<Cluster> {
    screen.part("The bed", "every part is a process of this machine, as the manifests say");
    let plane = screen.during("etcd and the API server start", ControlPlane::start()).await?;
    let version = plane.admin_client().await?.apiserver_version().await?.git_version;
    screen.seen(&format!("etcd, and the API server of Kubernetes {version} at {}", plane.url()));

    let definitions = [rollora_crds()?, upstream_crds()?].concat();
    screen.during("the definitions are not served yet", plane.install_crds(&definitions)).await?;
    screen.seen("definitions: Rollout, InferencePool, InferenceModelRewrite");

    let parts = Parts { plane: Some(plane), manifests: MANIFESTS.to_vec(), ..Parts::default() };
    let applied = screen.during("the manifests are applied", Cluster::prepare(&stage.setup, parts));
    let mut cluster = applied.await?;
    screen.seen(&format!("applied: manifests/{{{}}}", MANIFESTS.join(",")));
    screen.seen(&format!("applied: the guide's ConfigMap {ADAPTERS_CONFIG_MAP} and a Rollout"));

    let pods = stage.setup.servers.len();
    let starting = format!("the kubelet stand-in starts {pods} pods of vLLM");
    screen.during(&starting, cluster.servers_answer(&stage.setup)).await?;
    screen.seen(&format!("{pods} pods of vLLM ({}), each with a sidecar", stage.servers));

    screen.during("the operator starts", cluster.operator_is_ready()).await?;
    screen.seen("rollora-operator");
    screen.during("Envoy looks for ext-proc", cluster.gateway_is_ready()).await?;
    let replicas = cluster.ext_procs().len();
    screen.seen(&format!("{replicas} replicas of rollora-ext-proc behind Envoy at {}", cluster.gateway()));
    Ok(cluster)
}

impl Scene for Cluster {
    const LIST: &'static str = "the ConfigMap";
    const STARTS: &'static str = "the operator has not said anything yet";

    async fn shown(&self) -> Result<Vec<String>> {
        let kubeconfig = self.kubeconfig()?;
        let mut kubectl = self.plane().kubectl()?;
        // What it remembers between two calls goes with the bed, and not to the user's home.
        kubectl.arg("--cache-dir").arg(kubeconfig.with_file_name("kubectl-cache"));
        kubectl.args(["get", "rollouts"]).env("KUBECONFIG", kubeconfig);
        let spoken = run(kubectl).await?;
        ensure!(spoken.code == 0, "`kubectl get rollouts` ended with {spoken:?}");
        let shown = spoken.out.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
        Ok(std::iter::once("$ kubectl get rollouts".to_owned()).chain(shown).collect())
    }
}
