//! What others noticed of the server.

use super::Memory;

impl Memory {
    /// A connection of somebody else to the server broke, which may have been the server's end.
    pub fn doubted(&mut self) {
        self.suspect("a connection to vLLM broke".to_owned());
    }
}
