//! What has arrived from a client and has not been taken yet.

/// A window over a buffer that grows only when one message needs more than it has.
#[derive(Default)]
pub(crate) struct InputBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

const INITIAL_LEN: usize = 8 * 1024;

impl InputBuffer {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Room for reading at least one byte. Call `filled` with how much was read.
    ///
    /// The caller refuses messages longer than its limit before their body arrives, which bounds the growth.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.bytes.len() {
            self.bytes.resize((self.bytes.len() * 2).max(INITIAL_LEN), 0);
        }
        &mut self.bytes[self.end..]
    }

    pub fn filled(&mut self, n: usize) {
        self.end = (self.end + n).min(self.bytes.len());
    }

    /// Gives the memory back if nothing is waiting.
    pub fn release_if_empty(&mut self) {
        if self.start == self.end {
            *self = InputBuffer::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_consuming_and_growing() {
        let mut input = InputBuffer::default();
        for round in 0..3u8 {
            let space = input.space();
            let n = space.len();
            space.fill(round);
            input.filled(n);
        }
        assert_eq!(input.bytes().len(), 4 * INITIAL_LEN);
        input.consume(INITIAL_LEN);
        assert_eq!(input.bytes()[0], 1);
        input.space();
        assert_eq!(input.bytes()[0], 1);
        input.consume(usize::MAX / 2);
        assert!(input.bytes().is_empty());
        input.release_if_empty();
        assert!(input.bytes.is_empty());
    }
}
