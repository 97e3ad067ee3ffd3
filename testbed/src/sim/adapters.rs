//! Which adapters the server knows, and which of them its worker still holds.
//!
//! Two tables, as in vLLM: the API server's list of names, which only load and unload change, and the worker's cache of
//! weights, which forgets the one unused for longest when it is full and reads the source again when it is needed.
//! Whoever generates with an adapter keeps its weights, so an unload disturbs nobody, and an in-place load is heard
//! in the middle of a stream.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::text::TextGenerator;

/// An adapter's weights as those see them who use it.
#[derive(Debug)]
pub(super) struct LoadedWeights(Mutex<TextGenerator>);

impl LoadedWeights {
    pub(super) fn new(voice: TextGenerator) -> Arc<Self> {
        Arc::new(Self(Mutex::new(voice)))
    }

    pub(super) fn text(&self) -> TextGenerator {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn replace(&self, voice: TextGenerator) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = voice;
    }
}

/// An adapter that the server knows.
#[derive(Clone, Debug)]
pub(super) struct LoadedAdapter {
    pub(super) name: String,
    pub(super) source: String,
    pub(super) weights: Arc<LoadedWeights>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct AdapterTable {
    loaded: Vec<LoadedAdapter>,
    /// The weights that the worker holds, the one used last at the end.
    cached: VecDeque<Arc<LoadedWeights>>,
    cache_capacity: usize,
}

impl AdapterTable {
    /// None, with a worker that holds as many as `slots`.
    pub(super) fn new(cache_capacity: usize) -> Self {
        Self { loaded: Vec::new(), cached: VecDeque::new(), cache_capacity }
    }

    /// In the order in which they were loaded.
    pub(super) fn iter(&self) -> impl Iterator<Item = &LoadedAdapter> {
        self.loaded.iter()
    }

    pub(super) fn get(&self, name: &str) -> Option<&LoadedAdapter> {
        self.loaded.iter().find(|adapter| adapter.name == name)
    }

    /// Adds an adapter, or gives the one of that name another source and other weights.
    pub(super) fn load(&mut self, name: &str, source: &str, voice: TextGenerator) {
        let weights = if let Some(adapter) = self.loaded.iter_mut().find(|adapter| adapter.name == name) {
            source.clone_into(&mut adapter.source);
            adapter.weights.replace(voice);
            Arc::clone(&adapter.weights)
        } else {
            let weights = LoadedWeights::new(voice);
            let (name, source) = (name.to_owned(), source.to_owned());
            self.loaded.push(LoadedAdapter { name, source, weights: Arc::clone(&weights) });
            weights
        };
        self.mark_used(&weights);
    }

    /// Forgets a name; whether there was such a one.
    pub(super) fn unload(&mut self, name: &str) -> bool {
        let before = self.loaded.len();
        self.loaded.retain(|adapter| adapter.name != name);
        self.loaded.len() < before
    }

    /// Whether the worker holds these weights.
    pub(super) fn is_cached(&self, weights: &Arc<LoadedWeights>) -> bool {
        self.cached.iter().any(|held| Arc::ptr_eq(held, weights))
    }

    /// Makes these weights the ones used last.
    pub(super) fn mark_used(&mut self, weights: &Arc<LoadedWeights>) {
        self.cached.retain(|held| !Arc::ptr_eq(held, weights));
        self.cached.push_back(Arc::clone(weights));
        if self.cached.len() > self.cache_capacity {
            self.cached.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_forgets_the_weights_unused_for_longest() {
        let mut adapters = AdapterTable::new(2);
        for name in ["a", "b"] {
            adapters.load(name, name, TextGenerator::from_weights(name.as_bytes()));
        }
        let [first, second] = ["a", "b"].map(|name| Arc::clone(&adapters.get(name).expect("loaded").weights));
        adapters.mark_used(&first);
        adapters.load("c", "c", TextGenerator::from_weights(b"c"));
        assert!(adapters.is_cached(&first));
        assert!(!adapters.is_cached(&second));
        assert!(adapters.get("b").is_some(), "the name is still known");
    }

    #[test]
    fn an_in_place_load_reaches_those_who_use_the_weights_and_an_unload_does_not() {
        let mut adapters = AdapterTable::new(2);
        adapters.load("a", "old", TextGenerator::from_weights(b"old"));
        let in_use = Arc::clone(&adapters.get("a").expect("loaded").weights);
        adapters.load("a", "new", TextGenerator::from_weights(b"new"));
        assert_eq!(in_use.text(), TextGenerator::from_weights(b"new"));
        assert_eq!(adapters.get("a").expect("loaded").source, "new");
        assert!(adapters.unload("a"));
        assert!(!adapters.unload("a"));
        adapters.load("a", "newest", TextGenerator::from_weights(b"newest"));
        assert_eq!(in_use.text(), TextGenerator::from_weights(b"new"));
    }
}
