//! Answers on their way to the socket. Pages are not copied: they stay where the source has them, and one gathering
//! write takes headers and pages in turn.

use std::io::{self, ErrorKind, IoSlice, Write};

use bytes::Bytes;

/// How many pieces one system call takes (IOV_MAX of Linux).
const PIECES_MAX: usize = 1024;

/// Bytes, with pages that belong between them.
#[derive(Default)]
pub(crate) struct Output {
    pub bytes: Vec<u8>,
    /// Each with how many of `bytes` go before it.
    pages: Vec<(usize, Bytes)>,
}

impl Output {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.pages.is_empty()
    }

    /// Adds a page behind what is there so far.
    pub fn push_page(&mut self, page: Bytes) {
        self.pages.push((self.bytes.len(), page));
    }

    /// Forgets everything but keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.pages.clear();
    }

    fn pieces(&self) -> Vec<&[u8]> {
        let mut pieces = Vec::with_capacity(2 * self.pages.len() + 1);
        let mut from = 0;
        for (until, page) in &self.pages {
            pieces.push(&self.bytes[from..*until]);
            pieces.push(page);
            from = *until;
        }
        pieces.push(&self.bytes[from..]);
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }

    /// Writes everything; it stays here.
    pub fn write_to(&self, mut stream: impl Write) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = self.pieces().into_iter().map(IoSlice::new).collect();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            match stream.write_vectored(&rest[..rest.len().min(PIECES_MAX)]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => IoSlice::advance_slices(&mut rest, n),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// All of it in one piece.
    pub fn into_bytes(self) -> Vec<u8> {
        match self.pages.is_empty() {
            true => self.bytes,
            false => self.pieces().concat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a few bytes at a time, also across pieces.
    struct Narrow(Vec<u8>, usize);

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.write_vectored(&[IoSlice::new(bytes)])
        }

        fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            assert!(slices.len() <= PIECES_MAX);
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).take(self.1).collect();
            self.0.extend_from_slice(&all);
            Ok(all.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn headers_and_pages_leave_in_order_however_little_the_socket_takes() {
        for (pages, at_once) in [(0, 1), (1, 1), (3, 7), (2000, 100_000)] {
            let mut output = Output::default();
            let mut expected = Vec::new();
            for n in 0..pages {
                output.bytes.extend_from_slice(b"head");
                output.push_page(Bytes::from(vec![n as u8; 10]));
                expected.extend_from_slice(b"head");
                expected.resize(expected.len() + 10, n as u8);
            }
            output.bytes.extend_from_slice(b"tail");
            expected.extend_from_slice(b"tail");
            let mut socket = Narrow(Vec::new(), at_once);
            output.write_to(&mut socket).unwrap();
            assert_eq!(socket.0, expected);
            assert_eq!(output.into_bytes(), expected);
        }
    }

    #[test]
    fn a_socket_that_takes_nothing_is_an_error() {
        let output = Output { bytes: vec![1], pages: Vec::new() };
        assert_eq!(output.write_to(Narrow(Vec::new(), 0)).unwrap_err().kind(), ErrorKind::WriteZero);
    }
}
