//! The folder that hub adapters are fetched into, with its garbage collection.

use crate::{args::Args, supervisor::RunningSidecar};
use jiff::Timestamp;
use rollora_adapter_source::{
    AdapterSource, CacheDir, Hub, HubLimits, HubToken, ServerConstraints, SourceDispatcher, SourceRef,
    eviction::EvictionPolicy,
};
use rollora_api::sidecar_status::{AdapterState, AdapterStatus, SidecarStatus};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::sleep};

/// The environment variable that all clients of the hub read.
const TOKEN_ENV_VAR: &str = "HF_TOKEN";
const GC_INTERVAL: Duration = Duration::from_mins(1);

/// The folder of fetched adapters, and the hub that they come from.
#[derive(Debug)]
pub(crate) struct AdapterCache {
    folder: Arc<CacheDir>,
    hub: Arc<Hub>,
    budget: EvictionPolicy,
    max_rank: Option<u32>,
}

impl AdapterCache {
    /// Opens the cache that the flags configure; `None` without `--adapters-dir`, when vLLM downloads by itself.
    pub(crate) fn open(args: &Args) -> Result<Option<Self>, String> {
        let Some(path) = &args.adapters_dir else { return Ok(None) };
        if !path.is_absolute() {
            let path = path.display();
            return Err(format!(
                "--adapters-dir: {path} is relative: give an absolute path, under which vLLM finds the folder too"
            ));
        }
        let token = match (&args.hf_token_file, std::env::var(TOKEN_ENV_VAR)) {
            (Some(file), _) => HubToken::File(file.clone()),
            (None, Ok(token)) if !token.trim().is_empty() => HubToken::Value(token),
            (None, _) => HubToken::None,
        };
        let folder = CacheDir::open(path).map_err(|error| format!("--adapters-dir: {error}"))?;
        let folder = Arc::new(folder);
        let limits = HubLimits { max_bytes: args.adapter_max_size.0, ..HubLimits::default() };
        let hub = Hub::open(Arc::clone(&folder), &args.hf_endpoint, token, limits);
        let hub = Arc::new(hub.map_err(|error| format!("HF_ENDPOINT: {error}"))?);
        let budget =
            EvictionPolicy { retention: args.adapters_keep.0, max_bytes: args.adapters_max_size.map(|size| size.0) };
        let cache = Self { folder, hub, budget, max_rank: args.max_lora_rank };
        cache.set_constraints(Vec::new());
        Ok(Some(cache))
    }

    /// Returns the adapter source that fetches into this folder.
    pub(crate) fn adapter_source(&self) -> Arc<dyn AdapterSource> {
        Arc::new(SourceDispatcher::new(Arc::clone(&self.hub)))
    }

    fn set_constraints(&self, base_models: Vec<String>) {
        self.hub.set_constraints(ServerConstraints { max_rank: self.max_rank, base_models });
    }

    /// Removes unused adapters periodically. Never returns.
    pub(crate) async fn run_gc(&self, running: watch::Receiver<Option<RunningSidecar>>) {
        loop {
            sleep(GC_INTERVAL).await;
            let status = running.borrow().as_ref().map(|running| running.status.borrow().clone());
            let Some(status) = status else { continue };
            self.set_constraints(status.base_models.clone());
            let Some(protected) = protected_paths(&status, self.hub.as_ref()) else { continue };
            let (folder, budget) = (Arc::clone(&self.folder), self.budget);
            let result = tokio::task::spawn_blocking(move || folder.evict(&protected, &budget, wall_clock_now()));
            match result.await {
                Ok(Ok(removed)) => removed.iter().for_each(|path| log_removed(path)),
                Ok(Err(error)) => tracing::warn!("cannot clean up the folder of fetched adapters: {error}"),
                Err(error) => {
                    tracing::error!(%error, "the cleanup of the folder of fetched adapters failed unexpectedly");
                }
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "compared with file times, which are wall-clock times")]
fn wall_clock_now() -> Timestamp {
    Timestamp::now()
}

fn log_removed(path: &Path) {
    tracing::info!(path = %path.display(), "removed an unused fetched adapter");
}

/// The paths that must be kept: everything that vLLM lists or may load. `None` while that is unknown.
fn protected_paths(status: &SidecarStatus, adapter_source: &dyn AdapterSource) -> Option<BTreeSet<PathBuf>> {
    let is_known = status.server.is_some() && status.config.hash.is_some() && !status.base_models.is_empty();
    let wanted = |adapter: &&AdapterStatus| {
        !matches!(adapter.state, AdapterState::Gone | AdapterState::Rejected | AdapterState::SourceRefused)
    };
    is_known.then(|| {
        let roots = status.adapters.iter().filter_map(|adapter| adapter.root.as_ref()).map(PathBuf::from);
        let sources = status.adapters.iter().filter(wanted).filter_map(|adapter| adapter.source.as_deref());
        sources.map(|source| adapter_source.local_path(&SourceRef::parse(source))).chain(roots).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollora_adapter_source::PathSource;
    use rollora_api::{
        adapters::ContentHash,
        names::AdapterId,
        sidecar_status::{ConfigStatus, ServerIdentity},
    };

    fn adapter_status(id: &str, state: AdapterState, root: Option<&str>) -> AdapterStatus {
        AdapterStatus {
            source: Some(format!("/wanted/{id}")),
            root: root.map(str::to_owned),
            ..AdapterStatus::new(AdapterId::new(id).unwrap(), state)
        }
    }

    fn sidecar_status() -> SidecarStatus {
        SidecarStatus {
            server: Some(ServerIdentity { endpoint: "http://h:1".to_owned(), start: "1".to_owned() }),
            config: ConfigStatus { hash: Some(ContentHash("1".to_owned())), ..ConfigStatus::default() },
            base_models: vec!["base".to_owned()],
            adapters: vec![
                adapter_status("fetching", AdapterState::Fetching, None),
                adapter_status("waiting", AdapterState::AwaitingAdmission, None),
                adapter_status("gone", AdapterState::Gone, None),
                adapter_status("rejected", AdapterState::Rejected, None),
                adapter_status("changed", AdapterState::SourceChanged, Some("/old/changed")),
                adapter_status("stranger", AdapterState::Unlisted, Some("/old/stranger")),
            ],
            ..SidecarStatus::default()
        }
    }

    #[test]
    fn listed_and_loadable_adapters_are_protected() {
        let expected = [
            "/old/changed",
            "/old/stranger",
            "/wanted/changed",
            "/wanted/fetching",
            "/wanted/stranger",
            "/wanted/waiting",
        ];
        assert_eq!(protected_paths(&sidecar_status(), &PathSource).unwrap(), expected.map(PathBuf::from).into());
    }

    #[test]
    fn nothing_is_removed_while_server_or_file_is_unknown() {
        for unknown in [
            SidecarStatus { server: None, ..sidecar_status() },
            SidecarStatus { base_models: Vec::new(), ..sidecar_status() },
            SidecarStatus { config: ConfigStatus::default(), ..sidecar_status() },
        ] {
            assert_eq!(protected_paths(&unknown, &PathSource), None);
        }
    }
}
