//! Body modes of a filter, from the first message of a stream.

use crate::proto;

/// Body mode of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyMode {
    /// The filter does not send the body.
    None,
    /// Chunk by chunk, with one reply for each.
    Streamed,
    /// The whole body in one message.
    Buffered,
    /// Chunk by chunk, with replies at any time.
    FullDuplexStreamed,
    /// A mode that does not show the complete body.
    Unsupported,
}

/// Body modes of both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BodyModes {
    pub(super) request: BodyMode,
    pub(super) response: BodyMode,
}

impl BodyModes {
    /// Reads the modes. A data plane that does not send them is assumed to use full duplex mode: this is how upstream's
    /// own servers, which never read them, are configured everywhere.
    pub(super) fn from_config(config: Option<&proto::ProtocolConfiguration>) -> Self {
        match config {
            Some(config) => {
                Self { request: config.request_body_mode.into(), response: config.response_body_mode.into() }
            }
            None => Self { request: BodyMode::FullDuplexStreamed, response: BodyMode::FullDuplexStreamed },
        }
    }
}

/// Modes of later protocol versions are unsupported.
impl From<i32> for BodyMode {
    fn from(number: i32) -> Self {
        match proto::BodySendMode::try_from(number) {
            Ok(proto::BodySendMode::None) => Self::None,
            Ok(proto::BodySendMode::Streamed) => Self::Streamed,
            Ok(proto::BodySendMode::Buffered) => Self::Buffered,
            Ok(proto::BodySendMode::FullDuplexStreamed) => Self::FullDuplexStreamed,
            Ok(proto::BodySendMode::BufferedPartial | proto::BodySendMode::Grpc) | Err(_) => Self::Unsupported,
        }
    }
}
