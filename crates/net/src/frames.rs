//! Reading and writing frames on a stream.

use bytes::Bytes;
use img_proto::frame::{self, FrameError, OBJECT_FRAME_LEN_MAX, PREFIX_LEN};
use quinn::{ReadExactError, RecvStream, SendStream, WriteError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::transport::frame_time_max;

/// Memory taken for a frame before its bytes have come.
const READ_STEP: usize = 128 * 1024;

/// Why a frame did not come or go.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameFault {
    /// The stream or its connection has ended.
    #[error("the stream has ended")]
    Gone,
    /// The frame had begun and did not go on.
    #[error("a frame comes too slowly")]
    TooSlow,
    /// The frame is over its limit or does not parse.
    #[error(transparent)]
    Malformed(#[from] FrameError),
}

/// Reads the next frame; nothing if the stream ended before it. Waits for its first byte without a limit.
pub(crate) async fn read(stream: &mut RecvStream, max: usize) -> Result<Option<Bytes>, FrameFault> {
    let mut prefix = [0; PREFIX_LEN];
    match stream.read_exact(&mut prefix).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(_) => return Err(FrameFault::Gone),
    }
    let len = frame::length(prefix, max)?;
    timeout(frame_time_max(len), read_body(stream, len))
        .await
        .map_err(|_| FrameFault::TooSlow)?
        .map(Some)
}

/// Reads the next frame as a message; nothing if the stream ended before it.
pub(crate) async fn read_message<M: DeserializeOwned>(
    stream: &mut RecvStream,
    max: usize,
) -> Result<Option<M>, FrameFault> {
    match read(stream, max).await? {
        Some(frame) => Ok(Some(frame::decode(&frame)?)),
        None => Ok(None),
    }
}

/// Writes a message as a frame.
pub(crate) async fn write_message<M: Serialize>(
    stream: &mut SendStream,
    message: &M,
    max: usize,
) -> Result<(), FrameFault> {
    let frame = frame::encode(message, max)?;
    stream.write_chunk(frame.into()).await.map_err(gone)
}

/// Writes an object frame without copying the object; an empty one says that it is absent.
pub(crate) async fn write_object(stream: &mut SendStream, object: Bytes) -> Result<(), FrameFault> {
    let max = OBJECT_FRAME_LEN_MAX;
    let len = object.len();
    let prefix = u32::try_from(len)
        .ok()
        .filter(|_| len <= max)
        .ok_or(FrameError::TooLong { len, max })?;
    let prefix = Bytes::copy_from_slice(&prefix.to_le_bytes());
    stream
        .write_all_chunks(&mut [prefix, object])
        .await
        .map_err(gone)
}

async fn read_body(stream: &mut RecvStream, len: usize) -> Result<Bytes, FrameFault> {
    let mut body = Vec::new();
    while body.len() < len {
        let start = body.len();
        body.resize(len.min(start + READ_STEP.max(start)), 0);
        let read = stream.read_exact(&mut body[start..]).await;
        read.map_err(|_| FrameFault::Gone)?;
    }
    Ok(body.into())
}

fn gone(_: WriteError) -> FrameFault {
    FrameFault::Gone
}
