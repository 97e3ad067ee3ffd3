//! What the other parts are tried with: a simulated vLLM ([`sim`]), and a test bed that starts the real programs as
//! processes and speaks of them in the words of the guide.
//!
//! A scenario says what a person does and then sees, over a [`bed::Bed`]: `bed.list(V2)`, `bed.sees(split(…))`. Clients
//! ([`traffic`]) keep a record of every request, [`rules`] one of every rule that was in force, and [`judge`] compares
//! the two. Nothing here sleeps and hopes: it waits for conditions ([`seen`]), and says everything there is to see when
//! one does not come true.

pub mod bed;
mod clock;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod demo;
pub mod files;
pub mod guide;
pub mod http;
pub mod judge;
pub mod machine;
pub mod ports;
pub mod process;
pub mod rollora;
pub mod rules;
pub mod scenario;
pub mod seen;
pub mod server;
pub mod sim;
pub mod traffic;
