//! Typed messages from the client: framing, and the bodies of the extended query protocol (spec page-service.md 1.4).

/// Longest message taken from a client, type byte and length included. Commands and pagestream requests are far
/// shorter; the limit keeps a hostile length from reserving memory.
pub const MAX_MESSAGE_LEN: usize = 256 * 1024;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("invalid message length {0}")]
    Length(u32),
    #[error("unknown message type {0:#04x}")]
    MessageType(u8),
    #[error("malformed {0} message")]
    Malformed(&'static str),
}

/// One message; `len` is what it takes of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub tag: u8,
    pub body: &'a [u8],
    pub len: usize,
}

/// The message at the beginning of `input`, or none if it has not arrived completely.
#[inline]
pub fn next_frame(input: &[u8]) -> Result<Option<Frame<'_>>, ProtocolError> {
    let [tag, a, b, c, d, ..] = *input else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]);
    let len = length as usize + 1;
    if length < 4 || len > MAX_MESSAGE_LEN {
        return Err(ProtocolError::Length(length));
    }
    Ok(input.get(5..len).map(|body| Frame { tag, body, len }))
}

/// The name in `unexpected message: <name> during COPY`; none for a byte that is no frontend message of ours.
pub fn message_name(tag: u8) -> Option<&'static str> {
    Some(match tag {
        b'Q' => "Query",
        b'P' => "Parse",
        b'D' => "Describe",
        b'B' => "Bind",
        b'E' => "Execute",
        b'C' => "Close",
        b'S' => "Sync",
        b'X' => "Terminate",
        b'd' => "CopyData",
        b'c' => "CopyDone",
        b'f' => "CopyFail",
        b'p' => "PasswordMessage",
        _ => return None,
    })
}

/// The text up to the first NUL and what follows it.
fn c_string(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = body.iter().position(|b| *b == 0)?;
    Some((&body[..at], &body[at + 1..]))
}

/// The command of a Query message. It must be NUL-terminated.
pub fn query_text(body: &[u8]) -> Result<&[u8], ProtocolError> {
    body.strip_suffix(b"\0").ok_or(ProtocolError::Malformed("Query"))
}

/// The query of a Parse message; the statement name is ignored, parameters are not supported.
pub fn parse_text(body: &[u8]) -> Result<&[u8], ProtocolError> {
    let malformed = ProtocolError::Malformed("Parse");
    let (_name, rest) = c_string(body).ok_or(malformed.clone())?;
    let (text, rest) = c_string(rest).ok_or(malformed.clone())?;
    if rest != [0, 0] {
        return Err(malformed);
    }
    Ok(text)
}

/// Only statements can be described.
pub fn check_describe(body: &[u8]) -> Result<(), ProtocolError> {
    match body.first() {
        Some(b'S') => Ok(()),
        _ => Err(ProtocolError::Malformed("Describe")),
    }
}

/// Only the unnamed portal can be bound.
pub fn check_bind(body: &[u8]) -> Result<(), ProtocolError> {
    match body.first() {
        Some(0) => Ok(()),
        _ => Err(ProtocolError::Malformed("Bind")),
    }
}

/// Only the unnamed portal can be executed, without a row limit.
pub fn check_execute(body: &[u8]) -> Result<(), ProtocolError> {
    match body {
        [0, 0, 0, 0, 0] => Ok(()),
        _ => Err(ProtocolError::Malformed("Execute")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_cut_at_their_length() {
        let input = b"X\0\0\0\x04Q\0\0\0\x06a\0";
        let first = next_frame(input).unwrap().unwrap();
        assert_eq!((first.tag, first.body, first.len), (b'X', &b""[..], 5));
        let second = next_frame(&input[first.len..]).unwrap().unwrap();
        assert_eq!((second.tag, query_text(second.body), second.len), (b'Q', Ok(&b"a"[..]), 7));
        for cut in 5..12 {
            assert_eq!(next_frame(&input[5..cut]).unwrap(), None);
        }
    }

    #[test]
    fn impossible_lengths_are_errors_before_anything_is_reserved() {
        assert_eq!(next_frame(b"d\0\0\0\x03"), Err(ProtocolError::Length(3)));
        assert_eq!(next_frame(b"d\x40\0\0\0"), Err(ProtocolError::Length(1 << 30)));
        assert_eq!(next_frame(b"d\xff\xff\xff\xff"), Err(ProtocolError::Length(u32::MAX)));
    }

    #[test]
    fn extended_protocol_bodies_are_checked() {
        assert_eq!(parse_text(b"\0set x\0\0\0"), Ok(&b"set x"[..]));
        assert_eq!(parse_text(b"name\0set x\0\0\0"), Ok(&b"set x"[..]));
        assert!(parse_text(b"\0set $1\0\0\x01\0\0\0\x19").is_err());
        assert!(parse_text(b"\0set").is_err());
        assert!(check_describe(b"S\0").is_ok() && check_describe(b"P\0").is_err());
        assert!(check_bind(b"\0\0\0\0\0\0\0\0").is_ok() && check_bind(b"p\0").is_err());
        assert!(check_execute(b"\0\0\0\0\0").is_ok() && check_execute(b"\0\0\0\0\x01").is_err());
    }
}
