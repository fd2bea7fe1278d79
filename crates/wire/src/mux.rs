//! Many byte streams over one pipe, for hosts whose sshd forwards no ports.
//!
//! The agent listens on the machine's loopback itself and carries what arrives there over the
//! stdio of a program on the bulk connection. What is hard about sharing a pipe is that a
//! stream whose reader is slow must not stop the others: so each stream has a window, as an SSH
//! channel has one, and a sender that has used it up waits for credit.

/// Bytes that may be under way in one stream and direction.
pub const WINDOW: usize = 1 << 20;
/// Longest payload of a frame.
pub const MAX_PAYLOAD: usize = 64 << 10;
/// Streams at once.
pub const MAX_STREAMS: usize = 64;

const HEADER: usize = 9;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The first frame: where the agent listens. Its stream is 0.
    Listening(u16),
    /// Somebody connected to it.
    Open,
    Data(Vec<u8>),
    /// The receiver has passed on so many bytes.
    Credit(u32),
    /// No more data in this direction.
    Eof,
    /// Neither side wants this stream any more.
    Reset,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MuxError {
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    #[error("a frame of {0} bytes; the limit is {MAX_PAYLOAD}")]
    TooLong(usize),
    #[error("a frame whose payload is not what its kind needs")]
    Payload,
}

/// One frame as bytes: kind, stream, length, payload; numbers are little-endian.
pub fn encode(stream: u32, frame: &Frame) -> Vec<u8> {
    let port;
    let credit;
    let (kind, payload): (u8, &[u8]) = match frame {
        Frame::Listening(p) => {
            port = p.to_le_bytes();
            (1, &port)
        }
        Frame::Open => (2, &[]),
        Frame::Data(bytes) => (3, bytes),
        Frame::Credit(n) => {
            credit = n.to_le_bytes();
            (4, &credit)
        }
        Frame::Eof => (5, &[]),
        Frame::Reset => (6, &[]),
    };
    let mut out = Vec::with_capacity(HEADER + payload.len());
    out.push(kind);
    out.extend_from_slice(&stream.to_le_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(payload);
    out
}

/// Takes bytes as they arrive and gives whole frames back.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes at the front that were given back already.
    taken: usize,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// `None`: more bytes are needed. After an error the rest means nothing.
    pub fn next_frame(&mut self) -> Result<Option<(u32, Frame)>, MuxError> {
        let rest = &self.buffer[self.taken..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [kind, s0, s1, s2, s3, l0, l1, l2, l3] = *header;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if len > MAX_PAYLOAD {
            return Err(MuxError::TooLong(len));
        }
        let Some(payload) = rest.get(..len) else {
            return Ok(None);
        };
        let frame = match (kind, payload) {
            (1, &[a, b]) => Frame::Listening(u16::from_le_bytes([a, b])),
            (2, []) => Frame::Open,
            (3, bytes) => Frame::Data(bytes.to_vec()),
            (4, &[a, b, c, d]) => Frame::Credit(u32::from_le_bytes([a, b, c, d])),
            (5, []) => Frame::Eof,
            (6, []) => Frame::Reset,
            (1..=6, _) => return Err(MuxError::Payload),
            _ => return Err(MuxError::Kind(kind)),
        };
        self.taken += HEADER + len;
        Ok(Some((u32::from_le_bytes([s0, s1, s2, s3]), frame)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let frames = [
            (0, Frame::Listening(40_000)),
            (7, Frame::Open),
            (7, Frame::Data(vec![1; MAX_PAYLOAD])),
            (7, Frame::Data(Vec::new())),
            (7, Frame::Credit(u32::MAX)),
            (u32::MAX, Frame::Eof),
            (7, Frame::Reset),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(|(s, f)| encode(*s, f)).collect();
        for step in [1, 3, 9, 10, 1_000, bytes.len()] {
            let (mut decoder, mut seen) = (Decoder::default(), Vec::new());
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, frames, "in steps of {step}");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let decode = |bytes: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.push(bytes);
            decoder.next_frame()
        };
        assert_eq!(decode(&[9, 0, 0, 0, 0, 0, 0, 0, 0]), Err(MuxError::Kind(9)));
        assert_eq!(decode(&[4, 0, 0, 0, 0, 1, 0, 0, 0, 5]), Err(MuxError::Payload));
        assert_eq!(
            decode(&[3, 0, 0, 0, 0, 255, 255, 255, 255]),
            Err(MuxError::TooLong(u32::MAX as usize))
        );
        assert_eq!(decode(&[3, 0, 0]), Ok(None));
    }
}
