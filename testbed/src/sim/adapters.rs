//! The loaded adapters, and the worker's cache of their weights.
//!
//! As in vLLM, there are two tables: the API server's list of adapters, which only load and unload change, and the
//! worker's cache of weights, which evicts the least recently used ones when it is full and reads them from the source
//! again when they are needed.
//! A running generation keeps its weights. An unload does not affect it, but an in-place load changes its text in the
//! middle of a stream.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::text::TextGenerator;

/// Weights of an adapter, shared with the generations that use them.
#[derive(Debug)]
pub(super) struct LoadedWeights(Mutex<TextGenerator>);

impl LoadedWeights {
    pub(super) fn new(generator: TextGenerator) -> Arc<Self> {
        Arc::new(Self(Mutex::new(generator)))
    }

    pub(super) fn text(&self) -> TextGenerator {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn replace(&self, generator: TextGenerator) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = generator;
    }
}

/// An adapter that was loaded through the API.
#[derive(Clone, Debug)]
pub(super) struct LoadedAdapter {
    pub(super) name: String,
    pub(super) source: String,
    pub(super) weights: Arc<LoadedWeights>,
}

/// All loaded adapters, and the worker's cache.
#[derive(Debug)]
pub(super) struct AdapterTable {
    loaded: Vec<LoadedAdapter>,
    /// Weights in the worker's cache, the most recently used last.
    cached: VecDeque<Arc<LoadedWeights>>,
    cache_capacity: usize,
}

impl AdapterTable {
    /// Creates an empty table whose cache holds `cache_capacity` adapters.
    pub(super) fn new(cache_capacity: usize) -> Self {
        Self { loaded: Vec::new(), cached: VecDeque::new(), cache_capacity }
    }

    /// Returns the adapters in the order in which they were loaded.
    pub(super) fn iter(&self) -> impl Iterator<Item = &LoadedAdapter> {
        self.loaded.iter()
    }

    pub(super) fn get(&self, name: &str) -> Option<&LoadedAdapter> {
        self.loaded.iter().find(|adapter| adapter.name == name)
    }

    /// Adds an adapter, or replaces source and weights of the one with that name.
    pub(super) fn load(&mut self, name: &str, source: &str, generator: TextGenerator) {
        let weights = if let Some(adapter) = self.loaded.iter_mut().find(|adapter| adapter.name == name) {
            source.clone_into(&mut adapter.source);
            adapter.weights.replace(generator);
            Arc::clone(&adapter.weights)
        } else {
            let weights = LoadedWeights::new(generator);
            let (name, source) = (name.to_owned(), source.to_owned());
            self.loaded.push(LoadedAdapter { name, source, weights: Arc::clone(&weights) });
            weights
        };
        self.mark_used(&weights);
    }

    /// Removes an adapter. Returns whether it was loaded.
    pub(super) fn unload(&mut self, name: &str) -> bool {
        let before = self.loaded.len();
        self.loaded.retain(|adapter| adapter.name != name);
        self.loaded.len() < before
    }

    /// Returns whether the weights are in the worker's cache.
    pub(super) fn is_cached(&self, weights: &Arc<LoadedWeights>) -> bool {
        self.cached.iter().any(|held| Arc::ptr_eq(held, weights))
    }

    /// Marks the weights as the most recently used ones, and evicts others if the cache is full.
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
    fn worker_evicts_the_least_recently_used_weights() {
        let mut adapters = AdapterTable::new(2);
        for name in ["a", "b"] {
            adapters.load(name, name, TextGenerator::from_weights(name.as_bytes()));
        }
        let [first, second] = ["a", "b"].map(|name| Arc::clone(&adapters.get(name).expect("loaded").weights));
        adapters.mark_used(&first);
        adapters.load("c", "c", TextGenerator::from_weights(b"c"));
        assert!(adapters.is_cached(&first));
        assert!(!adapters.is_cached(&second));
        assert!(adapters.get("b").is_some(), "the adapter must stay loaded");
    }

    #[test]
    fn in_place_load_affects_running_requests_but_unload_does_not() {
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
