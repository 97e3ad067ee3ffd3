//! Which adapters the server knows, and which of them its worker still holds.
//!
//! Two tables, as in vLLM: the API server's list of names, which only load and unload change, and the worker's cache of
//! weights, which forgets the one unused for longest when it is full and reads the source again when it is needed.
//! Whoever generates with an adapter keeps its weights, so an unload disturbs nobody, and an in-place load is heard
//! in the middle of a stream.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::voice::Voice;

/// An adapter's weights as those see them who use it.
#[derive(Debug)]
pub(super) struct Weights(Mutex<Voice>);

impl Weights {
    pub(super) fn new(voice: Voice) -> Arc<Self> {
        Arc::new(Self(Mutex::new(voice)))
    }

    pub(super) fn voice(&self) -> Voice {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn replace(&self, voice: Voice) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = voice;
    }
}

/// An adapter that the server knows.
#[derive(Clone, Debug)]
pub(super) struct Adapter {
    pub(super) name: String,
    pub(super) source: String,
    pub(super) weights: Arc<Weights>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Adapters {
    known: Vec<Adapter>,
    /// The weights that the worker holds, the one used last at the end.
    held: VecDeque<Arc<Weights>>,
    slots: usize,
}

impl Adapters {
    /// None, with a worker that holds as many as `slots`.
    pub(super) fn new(slots: usize) -> Self {
        Self { known: Vec::new(), held: VecDeque::new(), slots }
    }

    /// In the order in which they were loaded.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Adapter> {
        self.known.iter()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Adapter> {
        self.known.iter().find(|adapter| adapter.name == name)
    }

    /// Adds an adapter, or gives the one of that name another source and other weights.
    pub(super) fn load(&mut self, name: &str, source: &str, voice: Voice) {
        let weights = if let Some(adapter) = self.known.iter_mut().find(|adapter| adapter.name == name) {
            source.clone_into(&mut adapter.source);
            adapter.weights.replace(voice);
            Arc::clone(&adapter.weights)
        } else {
            let weights = Weights::new(voice);
            let (name, source) = (name.to_owned(), source.to_owned());
            self.known.push(Adapter { name, source, weights: Arc::clone(&weights) });
            weights
        };
        self.hold(&weights);
    }

    /// Forgets a name; whether there was such a one.
    pub(super) fn unload(&mut self, name: &str) -> bool {
        let before = self.known.len();
        self.known.retain(|adapter| adapter.name != name);
        self.known.len() < before
    }

    /// Whether the worker holds these weights.
    pub(super) fn holds(&self, weights: &Arc<Weights>) -> bool {
        self.held.iter().any(|held| Arc::ptr_eq(held, weights))
    }

    /// Makes these weights the ones used last.
    pub(super) fn hold(&mut self, weights: &Arc<Weights>) {
        self.held.retain(|held| !Arc::ptr_eq(held, weights));
        self.held.push_back(Arc::clone(weights));
        if self.held.len() > self.slots {
            self.held.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_forgets_the_weights_unused_for_longest() {
        let mut adapters = Adapters::new(2);
        for name in ["a", "b"] {
            adapters.load(name, name, Voice::of(name.as_bytes()));
        }
        let [first, second] = ["a", "b"].map(|name| Arc::clone(&adapters.get(name).expect("loaded").weights));
        adapters.hold(&first);
        adapters.load("c", "c", Voice::of(b"c"));
        assert!(adapters.holds(&first));
        assert!(!adapters.holds(&second));
        assert!(adapters.get("b").is_some(), "the name is still known");
    }

    #[test]
    fn an_in_place_load_reaches_those_who_use_the_weights_and_an_unload_does_not() {
        let mut adapters = Adapters::new(2);
        adapters.load("a", "old", Voice::of(b"old"));
        let in_use = Arc::clone(&adapters.get("a").expect("loaded").weights);
        adapters.load("a", "new", Voice::of(b"new"));
        assert_eq!(in_use.voice(), Voice::of(b"new"));
        assert_eq!(adapters.get("a").expect("loaded").source, "new");
        assert!(adapters.unload("a"));
        assert!(!adapters.unload("a"));
        adapters.load("a", "newest", Voice::of(b"newest"));
        assert_eq!(in_use.voice(), Voice::of(b"new"));
    }
}
