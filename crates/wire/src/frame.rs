//! Length-prefixed JSON frames: a little-endian `u32` length, then that many bytes.
//!
//! JSON because these are control messages only: bulk goes over signed URLs, and a frame
//! that a person can read in a log is worth more than the bytes. Both ends bound the length,
//! because the peer is not trusted.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest accepted frame, bytes.
pub const MAX_FRAME: usize = 16 << 20;

/// What the agent prints once before its first frame. Hosts print banners, tmux notices and
/// shell noise into a session; the controller skips everything up to this marker.
pub const MARKER: &[u8] = b"\0DUMONT-AGENT-1\n";

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the peer announced a frame of {0} bytes; the limit is {MAX_FRAME}")]
    TooLong(usize),
    #[error("the peer sent a frame that is not a known message: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("connection: {0}")]
    Io(#[from] std::io::Error),
}

/// One message as bytes, length first.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut out = vec![0; 4];
    serde_json::to_writer(&mut out, message)?;
    let len = out.len() - 4;
    if len > MAX_FRAME {
        return Err(FrameError::TooLong(len));
    }
    out[..4].copy_from_slice(&(len as u32).to_le_bytes());
    Ok(out)
}

/// Takes bytes as they arrive and gives whole messages back.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Whether everything before the marker has been skipped (or none is expected).
    in_sync: bool,
}

impl Decoder {
    /// For the controller's side: skips noise up to [`MARKER`].
    pub fn after_marker() -> Self {
        Self::default()
    }

    /// For the agent's side: frames from the first byte.
    pub fn plain() -> Self {
        Self {
            buffer: Vec::new(),
            in_sync: true,
        }
    }

    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// What was received and is not a frame yet; for error messages about a host's noise.
    pub fn pending(&self) -> &[u8] {
        &self.buffer
    }

    /// The next whole message, or `None` until more bytes come.
    pub fn next_frame<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        if !self.in_sync && !self.skip_to_marker()? {
            return Ok(None);
        }
        let Some(head) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes(*head) as usize;
        if len > MAX_FRAME {
            return Err(FrameError::TooLong(len));
        }
        if self.buffer.len() < 4 + len {
            return Ok(None);
        }
        let message = serde_json::from_slice(&self.buffer[4..4 + len]);
        self.buffer.drain(..4 + len);
        Ok(Some(message?))
    }

    fn skip_to_marker(&mut self) -> Result<bool, FrameError> {
        if let Some(at) = self.buffer.windows(MARKER.len()).position(|w| w == MARKER) {
            self.buffer.drain(..at + MARKER.len());
            self.in_sync = true;
            return Ok(true);
        }
        if self.buffer.len() > 256 << 10 {
            return Err(FrameError::TooLong(self.buffer.len()));
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_before_the_marker_is_skipped_and_frames_may_be_split() {
        let mut bytes = b"Welcome to vast.ai.\r\n[tmux] \0DUM".to_vec();
        bytes.extend_from_slice(MARKER);
        bytes.extend(encode(&"one").unwrap());
        bytes.extend(encode(&"two").unwrap());
        let mut decoder = Decoder::after_marker();
        let mut got: Vec<String> = Vec::new();
        for byte in bytes {
            decoder.push(&[byte]);
            while let Some(m) = decoder.next_frame().unwrap() {
                got.push(m);
            }
        }
        assert_eq!(got, ["one", "two"]);
    }

    #[test]
    fn a_hostile_length_is_refused_before_memory_is_spent() {
        let mut decoder = Decoder::plain();
        decoder.push(&u32::MAX.to_le_bytes());
        assert!(matches!(
            decoder.next_frame::<String>(),
            Err(FrameError::TooLong(_))
        ));
    }

    #[test]
    fn endless_noise_is_refused() {
        let mut decoder = Decoder::after_marker();
        decoder.push(&vec![b'x'; 300 << 10]);
        assert!(decoder.next_frame::<String>().is_err());
    }
}
