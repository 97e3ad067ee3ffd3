//! Messages to and from bytes, under tonic.

use super::{HealthCheckRequest, HealthCheckResponse, ProcessingRequest, ProcessingResponse, Reply};
use bytes::BufMut;
use prost::Message;
use std::marker::PhantomData;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Something that is written as a message.
pub(crate) trait ToWire {
    fn write(&self, buffer: &mut impl BufMut);
}

macro_rules! to_wire {
    ($($message:ty),*) => {$(
        impl ToWire for $message {
            fn write(&self, buffer: &mut impl BufMut) {
                // tonic's buffer grows as needed.
                self.encode_raw(buffer);
            }
        }
    )*};
}

to_wire!(HealthCheckResponse, HealthCheckRequest, ProcessingRequest, ProcessingResponse);

impl ToWire for Reply {
    fn write(&self, buffer: &mut impl BufMut) {
        match self {
            Self::Encoded(bytes) => buffer.put_slice(bytes),
            Self::Message(message) => message.write(buffer),
            Self::Body(part) => part.write(buffer),
        }
    }
}

/// Reads `D` and writes `E`.
#[derive(Debug)]
pub(crate) struct Wire<E, D>(PhantomData<fn(E) -> D>);

impl<E, D> Wire<E, D> {
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<E, D> Codec for Wire<E, D>
where
    E: ToWire + Send + 'static,
    D: Message + Default + 'static,
{
    type Encode = E;
    type Decode = D;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::new()
    }

    fn decoder(&mut self) -> Self {
        Self::new()
    }
}

impl<E: ToWire, D> Encoder for Wire<E, D> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, item: E, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.write(buffer);
        Ok(())
    }
}

impl<E, D: Message + Default> Decoder for Wire<E, D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        let message = D::decode(buffer);
        message.map(Some).map_err(|error| Status::invalid_argument(format!("not a message of this method: {error}")))
    }
}
