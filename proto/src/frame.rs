//! Framing: a 32-bit little-endian length, then a postcard message or an object.

use img_types::limits::{FRAME_LEN_MAX, OBJECT_LEN_MAX};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Length of the prefix of every frame.
pub const PREFIX_LEN: usize = 4;

/// Why a frame cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame is longer than its limit.
    #[error("a frame of {len} bytes is over the limit of {max}")]
    TooLong {
        /// What was announced.
        len: usize,
        /// What is allowed.
        max: usize,
    },
    /// The message inside does not parse.
    #[error("a frame does not parse")]
    Malformed,
}

/// Encodes a message with its prefix. Answers that carry lists may exceed [`FRAME_LEN_MAX`] and are
/// read by devices under [`REPLY_LEN_MAX`].
///
/// # Errors
/// The message is longer than `max`.
pub fn encode<M: Serialize>(message: &M, max: usize) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; PREFIX_LEN];
    frame = postcard::to_extend(message, frame).map_err(|_| FrameError::Malformed)?;
    let len = frame.len() - PREFIX_LEN;
    if len > max {
        return Err(FrameError::TooLong { len, max });
    }
    let prefix = u32::try_from(len).map_err(|_| FrameError::TooLong { len, max })?;
    frame[..PREFIX_LEN].copy_from_slice(&prefix.to_le_bytes());
    Ok(frame)
}

/// Decodes the message of a frame whose prefix was taken off; every byte must be used.
///
/// # Errors
/// The bytes are no such message.
pub fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, FrameError> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(FrameError::Malformed),
    }
}

/// Reads a prefix and checks it against a limit.
///
/// # Errors
/// The announced length is over the limit.
pub fn length(prefix: [u8; PREFIX_LEN], max: usize) -> Result<usize, FrameError> {
    let len = u32::from_le_bytes(prefix) as usize;
    if len > max {
        Err(FrameError::TooLong { len, max })
    } else {
        Ok(len)
    }
}

/// Largest request: 1,024 ids and a signed record fit.
pub const REQUEST_LEN_MAX: usize = 2 * FRAME_LEN_MAX;
/// Largest reply: 256 records of the largest kind do not fit, so a home pages its answers below it.
pub const REPLY_LEN_MAX: usize = 4 * 1024 * 1024;
/// Largest object frame. An object frame of length zero says that the object is absent.
pub const OBJECT_FRAME_LEN_MAX: usize = OBJECT_LEN_MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Answer, Call, Class, Refusal, Reply, Request};
    use img_types::{InviteId, ObjectId, UploadId};
    use proptest::prelude::*;

    #[test]
    fn messages_round_trip_and_trailing_bytes_are_refused() {
        let request = Request {
            id: None,
            call: Call::Fetch {
                ids: vec![ObjectId::from_bytes([1; 32])],
                class: Class::Demand,
            },
        };
        let frame = encode(&request, REQUEST_LEN_MAX).unwrap();
        let len = length(frame[..4].try_into().unwrap(), REQUEST_LEN_MAX).unwrap();
        assert_eq!(len, frame.len() - PREFIX_LEN);
        assert_eq!(decode::<Request>(&frame[4..]), Ok(request));
        let long = [&frame[4..], &[0]].concat();
        assert_eq!(decode::<Request>(&long), Err(FrameError::Malformed));
    }

    #[test]
    fn frozen_bytes() {
        let poll = Request {
            id: None,
            call: Call::JoinPoll {
                invite: InviteId::from_bytes([2; 32]),
            },
        };
        let mut expected = vec![34, 0, 0, 0, 0, 3];
        expected.extend([2; 32]);
        assert_eq!(encode(&poll, 64).unwrap(), expected);
        let reply = Reply {
            at: None,
            result: Err(Refusal::NotMember),
        };
        assert_eq!(encode(&reply, 64).unwrap(), [3, 0, 0, 0, 0, 1, 4]);
        let answer = Reply {
            at: None,
            result: Ok(Answer::Upload {
                upload: UploadId::from_bytes([3; 32]),
            }),
        };
        assert_eq!(encode(&answer, 64).unwrap()[..7], [35, 0, 0, 0, 0, 0, 11]);
    }

    #[test]
    fn limits_are_enforced_before_anything_is_allocated() {
        assert!(length([255; 4], OBJECT_FRAME_LEN_MAX).is_err());
        assert!(length([0, 0, 0, 0], 0).is_ok());
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Reply>(&bytes);
        }
    }
}
