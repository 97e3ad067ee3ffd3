//! The folder that adapters of a hub are fetched into: who fetches, and what is removed when.

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

/// The variable that every client of the hub reads.
const TOKEN_ENV_VAR: &str = "HF_TOKEN";
/// How often it is looked for what may go.
const GC_INTERVAL: Duration = Duration::from_mins(1);

/// The folder, and the hub that it is filled from.
#[derive(Debug)]
pub(crate) struct AdapterCache {
    folder: Arc<CacheDir>,
    hub: Arc<Hub>,
    budget: EvictionPolicy,
    max_rank: Option<u32>,
}

impl AdapterCache {
    /// The one of the command line; none where vLLM is to download itself.
    pub(crate) fn open(args: &Args) -> Result<Option<Self>, String> {
        let Some(path) = &args.adapters_dir else { return Ok(None) };
        if !path.is_absolute() {
            let path = path.display();
            return Err(format!(
                "--adapters-dir: {path} is relative, and vLLM has another folder: write it from the /"
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
        let shelf = Self { folder, hub, budget, max_rank: args.max_lora_rank };
        shelf.set_constraints(Vec::new());
        Ok(Some(shelf))
    }

    /// What fetches.
    pub(crate) fn adapter_source(&self) -> Arc<dyn AdapterSource> {
        Arc::new(SourceDispatcher::new(Arc::clone(&self.hub)))
    }

    fn set_constraints(&self, base_models: Vec<String>) {
        self.hub.set_constraints(ServerConstraints { max_rank: self.max_rank, base_models });
    }

    /// Removes what may go, for as long as it is polled.
    pub(crate) async fn run_gc(&self, view: watch::Receiver<Option<RunningSidecar>>) {
        loop {
            sleep(GC_INTERVAL).await;
            let status = view.borrow().as_ref().map(|view| view.status.borrow().clone());
            let Some(status) = status else { continue };
            self.set_constraints(status.base_models.clone());
            let Some(protected) = protected_paths(&status, self.hub.as_ref()) else { continue };
            let (folder, budget) = (Arc::clone(&self.folder), self.budget);
            let swept = tokio::task::spawn_blocking(move || folder.evict(&protected, &budget, wall_clock_now()));
            match swept.await {
                Ok(Ok(removed)) => removed.iter().for_each(|path| log_removed(path)),
                Ok(Err(error)) => tracing::warn!("the folder of fetched adapters cannot be cleaned: {error}"),
                Err(error) => tracing::error!(%error, "cleaning the folder of fetched adapters ended badly"),
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "times of files are compared with it, and those are the wall clock's")]
fn wall_clock_now() -> Timestamp {
    Timestamp::now()
}

fn log_removed(path: &Path) {
    tracing::info!(path = %path.display(), "removed a fetched adapter that nobody has wanted for long");
}

/// What must stay: everything that vLLM has, and everything that may be loaded. None while that is not known.
fn protected_paths(status: &SidecarStatus, store: &dyn AdapterSource) -> Option<BTreeSet<PathBuf>> {
    let known = status.server.is_some() && status.config.hash.is_some() && !status.base_models.is_empty();
    let wanted = |adapter: &&AdapterStatus| {
        !matches!(adapter.state, AdapterState::Gone | AdapterState::Rejected | AdapterState::SourceRefused)
    };
    known.then(|| {
        let roots = status.adapters.iter().filter_map(|adapter| adapter.root.as_ref()).map(PathBuf::from);
        let sources = status.adapters.iter().filter(wanted).filter_map(|adapter| adapter.source.as_deref());
        sources.map(|source| store.local_path(&SourceRef::parse(source))).chain(roots).collect()
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
    fn what_vllm_has_and_what_may_be_loaded_stays() {
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
    fn nothing_is_removed_while_it_is_not_known_what_vllm_has_or_what_is_wanted() {
        for unknown in [
            SidecarStatus { server: None, ..sidecar_status() },
            SidecarStatus { base_models: Vec::new(), ..sidecar_status() },
            SidecarStatus { config: ConfigStatus::default(), ..sidecar_status() },
        ] {
            assert_eq!(protected_paths(&unknown, &PathSource), None);
        }
    }
}
