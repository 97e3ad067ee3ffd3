//! The edit of the adapters file: one entry moves, every other byte stays.
