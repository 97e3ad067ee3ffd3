//! How bodies come, as the first message of a stream says.

use crate::proto::{BodySendMode, ProtocolConfiguration};

/// How the bodies of one direction come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyMode {
    /// Not at all.
    None,
    /// Piece by piece, one reply for each.
    Streamed,
    /// As a whole.
    Buffered,
    /// Piece by piece, with replies whenever there are some.
    FullDuplexStreamed,
    /// In a way that does not show the whole of it.
    Unsupported,
}

/// How the bodies of both directions come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BodyModes {
    pub(super) request: BodyMode,
    pub(super) response: BodyMode,
}

impl BodyModes {
    /// A data plane that says nothing is taken for one that streams in full duplex: that is what upstream's own
    /// servers, which never ask, are set up with everywhere.
    pub(super) fn from_config(config: Option<&ProtocolConfiguration>) -> Self {
        match config {
            Some(config) => {
                Self { request: config.request_body_mode.into(), response: config.response_body_mode.into() }
            }
            None => Self { request: BodyMode::FullDuplexStreamed, response: BodyMode::FullDuplexStreamed },
        }
    }
}

/// A mode of later versions is one that is not understood.
impl From<i32> for BodyMode {
    fn from(number: i32) -> Self {
        match BodySendMode::try_from(number) {
            Ok(BodySendMode::None) => Self::None,
            Ok(BodySendMode::Streamed) => Self::Streamed,
            Ok(BodySendMode::Buffered) => Self::Buffered,
            Ok(BodySendMode::FullDuplexStreamed) => Self::FullDuplexStreamed,
            Ok(BodySendMode::BufferedPartial | BodySendMode::Grpc) | Err(_) => Self::Unsupported,
        }
    }
}
