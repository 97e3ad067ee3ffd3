//! CRDs: where their files are, and how to install them so that their resources are served afterwards.

use super::super::tools::CONTROL_PLANE;
use crate::clock;
use anyhow::{Context as _, Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Path of a file with one CRD.
pub type CrdFile = PathBuf;

/// File name of Rollora's own CRD, in `crds/` of the repository.
pub const ROLLOUT_CRD: &str = "rollouts.rollora.dev.yaml";

/// File names of upstream's CRDs.
#[derive(Debug)]
pub struct UpstreamCrds {
    /// CRD of `InferencePool`, the pool of servers.
    pub pool: &'static str,
    /// CRD of `InferenceModelRewrite` in its original group.
    pub legacy_rewrite: &'static str,
    /// CRD of `InferenceModelRewrite` in its current group.
    pub current_rewrite: &'static str,
    /// CRD of `InferenceObjective`, which upstream's endpoint picker needs.
    pub objective: &'static str,
}

/// Upstream's CRDs, in `crds/` of the control plane's tool cache entry.
pub const UPSTREAM_CRDS: UpstreamCrds = UpstreamCrds {
    pool: "inference.networking.k8s.io_inferencepools.yaml",
    legacy_rewrite: "inference.networking.x-k8s.io_inferencemodelrewrites.yaml",
    current_rewrite: "llm-d.ai_inferencemodelrewrites.yaml",
    objective: "inference.networking.x-k8s.io_inferenceobjectives.yaml",
};

impl UpstreamCrds {
    /// Returns the path of the CRD file called `name`.
    pub fn crd_file(&self, name: &str) -> Result<CrdFile> {
        // `crds/` is next to the `bin/` folder of the programs.
        let program = CONTROL_PLANE.program("kube-apiserver")?;
        let home = program.ancestors().nth(2).context("the control plane's programs are in no folder")?;
        let file = home.join("crds").join(name);
        ensure!(file.is_file(), "no CRD file {}", file.display());
        Ok(file)
    }
}

/// Returns the file of Rollora's own CRD.
pub fn rollora_crds() -> Result<Vec<CrdFile>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds").join(ROLLOUT_CRD);
    ensure!(file.is_file(), "no CRD file {}", file.display());
    Ok(vec![file])
}

/// Returns the files of all of upstream's CRDs.
pub fn upstream_crds() -> Result<Vec<CrdFile>> {
    let UpstreamCrds { pool, legacy_rewrite, current_rewrite, objective } = UPSTREAM_CRDS;
    [pool, legacy_rewrite, current_rewrite, objective].map(|name| UPSTREAM_CRDS.crd_file(name)).into_iter().collect()
}

/// How long the API server may take to begin or to stop serving a resource.
const SERVE_TIMEOUT: Duration = Duration::from_mins(2);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

pub(super) async fn install(admin: &Client, definitions: &[CrdFile]) -> Result<()> {
    let api = Api::<CustomResourceDefinition>::all(admin.clone());
    let mut installed = Vec::new();
    for file in definitions {
        let definition = read(file)?;
        let parameters = PatchParams::apply("testbed").force();
        let done = api.patch(&definition.name_any(), &parameters, &Patch::Apply(&definition)).await;
        done.with_context(|| format!("cannot install {}", file.display()))?;
        installed.push(definition);
    }
    for definition in installed {
        wait_served(admin, &definition, true).await?;
    }
    Ok(())
}

pub(super) async fn uninstall(admin: &Client, file: &CrdFile) -> Result<()> {
    let definition = read(file)?;
    let api = Api::<CustomResourceDefinition>::all(admin.clone());
    api.delete(&definition.name_any(), &DeleteParams::default()).await?;
    wait_served(admin, &definition, false).await
}

fn read(file: &Path) -> Result<CustomResourceDefinition> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("not a CustomResourceDefinition: {}", file.display()))
}

/// Waits until every served version of the CRD is available, or, unless `wanted`, until no version is.
async fn wait_served(client: &Client, definition: &CustomResourceDefinition, wanted: bool) -> Result<()> {
    let start = clock::now();
    let (group, plural) = (&definition.spec.group, &definition.spec.names.plural);
    for version in definition.spec.versions.iter().filter(|version| version.served) {
        let path = format!("/apis/{group}/{}/{plural}?limit=1", version.name);
        loop {
            let response = client.request_text(http::Request::get(&path).body(Vec::new())?).await;
            let served = match &response {
                Ok(_) => true,
                Err(kube::Error::Api(status)) if status.code == 404 => false,
                Err(_) => !wanted,
            };
            if served == wanted {
                break;
            }
            ensure!(
                start.elapsed() < SERVE_TIMEOUT,
                "{path} is still {} after {SERVE_TIMEOUT:?}",
                if served { "served" } else { "not served" }
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
    Ok(())
}
