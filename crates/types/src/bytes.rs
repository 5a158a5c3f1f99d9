//! Bounded reading and writing of fixed little-endian layouts.
//!
//! Every long-lived record is written with these, so that a decoder can neither panic nor allocate
//! more than its input holds.

/// Says that a record ended early, went on too long or held a value its format does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed record: {0}")]
pub struct DecodeError(pub &'static str);

/// Reads a record from its beginning to its end.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Takes `len` bytes.
    ///
    /// # Errors
    /// The record ends before.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self
            .rest
            .split_at_checked(len)
            .ok_or(DecodeError("ends early"))?;
        self.rest = tail;
        Ok(head)
    }

    /// Takes an array.
    ///
    /// # Errors
    /// The record ends before.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(DecodeError("ends early"))?;
        self.rest = tail;
        Ok(*head)
    }

    /// Takes one byte.
    ///
    /// # Errors
    /// The record ends before.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Takes a 16-bit number.
    ///
    /// # Errors
    /// The record ends before.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    /// Takes a 32-bit number.
    ///
    /// # Errors
    /// The record ends before.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Takes a 64-bit number.
    ///
    /// # Errors
    /// The record ends before.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Takes a signed 64-bit number.
    ///
    /// # Errors
    /// The record ends before.
    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        self.array().map(i64::from_le_bytes)
    }

    /// Takes a byte string with a 32-bit length in front, of at most `max` bytes.
    ///
    /// # Errors
    /// The record ends before, or the string is longer than `max`.
    pub fn bytes(&mut self, max: usize) -> Result<&'a [u8], DecodeError> {
        let len = self.u32()? as usize;
        if len > max {
            return Err(DecodeError("field too long"));
        }
        self.take(len)
    }

    /// Ends the record.
    ///
    /// # Errors
    /// Bytes are left.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError("trailing bytes"))
        }
    }
}

/// Appends fixed little-endian fields to a byte vector.
pub trait Write {
    /// Appends one byte.
    fn put_u8(&mut self, value: u8);
    /// Appends a 16-bit number.
    fn put_u16(&mut self, value: u16);
    /// Appends a 32-bit number.
    fn put_u32(&mut self, value: u32);
    /// Appends a 64-bit number.
    fn put_u64(&mut self, value: u64);
    /// Appends a signed 64-bit number.
    fn put_i64(&mut self, value: i64);
    /// Appends a byte string behind its 32-bit length.
    ///
    /// # Panics
    /// The string has 4 GiB or more; every limit is far below.
    fn put_bytes(&mut self, value: &[u8]);
}

impl Write for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }
    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_i64(&mut self, value: i64) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_bytes(&mut self, value: &[u8]) {
        let len = u32::try_from(value.len()).expect("limits keep every field below 4 GiB");
        self.put_u32(len);
        self.extend_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_was_written_and_refuses_the_rest() {
        let mut record = Vec::new();
        record.put_u8(1);
        record.put_u16(2);
        record.put_u32(3);
        record.put_u64(4);
        record.put_i64(-5);
        record.put_bytes(b"six");
        let mut reader = Reader::new(&record);
        assert_eq!(reader.u8(), Ok(1));
        assert_eq!(reader.u16(), Ok(2));
        assert_eq!(reader.u32(), Ok(3));
        assert_eq!(reader.u64(), Ok(4));
        assert_eq!(reader.i64(), Ok(-5));
        assert_eq!(reader.bytes(3), Ok(&b"six"[..]));
        assert_eq!(reader.finish(), Ok(()));

        assert!(Reader::new(&[3, 0, 0, 0, 1, 2, 3]).bytes(2).is_err());
        assert!(
            Reader::new(&[255, 255, 255, 255])
                .bytes(usize::MAX)
                .is_err()
        );
        assert!(Reader::new(&[0]).finish().is_err());
    }
}
