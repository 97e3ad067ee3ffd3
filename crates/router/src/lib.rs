//! What happens to a request, without any network: rule, target, splice of the model, guard, counters.
