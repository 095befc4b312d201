//! What comes before the first typed message (spec page-service.md 1.2).

/// A start-up packet may not be longer, its length field included.
pub const MAX_STARTUP_LEN: usize = 10_000;
/// First byte of a TLS ClientHello.
pub const TLS_HANDSHAKE_BYTE: u8 = 0x16;

const REQUEST_MAJOR: u32 = 1234;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Startup {
    SslRequest,
    GssEncRequest,
    CancelRequest,
    Message(StartupParameters),
}

/// What we look at of a StartupMessage; both only for logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartupParameters {
    pub application_name: Option<String>,
    pub options: Vec<(String, String)>,
}

impl StartupParameters {
    /// `primary`, `replica` or `static`, as the compute calls itself.
    pub fn compute_mode(&self) -> Option<&str> {
        self.options.iter().find(|(key, _)| key == "neon.compute_mode").map(|(_, value)| value.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    #[error("invalid startup packet message length {0}")]
    Length(u32),
    #[error("Unrecognized request code {0}")]
    RequestCode(u32),
    #[error("startup packet is not a list of NUL-terminated UTF-8 pairs")]
    Parameters,
    #[error("direct TLS is not supported")]
    DirectTls,
}

/// Takes one start-up packet from the beginning of `input`: its meaning and length, or none if more bytes are needed.
pub fn decode(input: &[u8]) -> Result<Option<(Startup, usize)>, StartupError> {
    if input.first() == Some(&TLS_HANDSHAKE_BYTE) {
        return Err(StartupError::DirectTls);
    }
    let Some(length) = be32(input, 0) else { return Ok(None) };
    let total = length as usize;
    if !(8..=MAX_STARTUP_LEN).contains(&total) {
        return Err(StartupError::Length(length));
    }
    let Some(packet) = input.get(..total) else { return Ok(None) };
    let code = be32(packet, 4).unwrap_or_default();
    let startup = match (code >> 16, code & 0xffff) {
        (REQUEST_MAJOR, 5678) => Startup::CancelRequest,
        (REQUEST_MAJOR, 5679) => Startup::SslRequest,
        (REQUEST_MAJOR, 5680) => Startup::GssEncRequest,
        (REQUEST_MAJOR, minor) => return Err(StartupError::RequestCode(minor)),
        _ => Startup::Message(decode_parameters(&packet[8..])?),
    };
    Ok(Some((startup, total)))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn decode_parameters(body: &[u8]) -> Result<StartupParameters, StartupError> {
    let text = std::str::from_utf8(body).map_err(|_| StartupError::Parameters)?;
    let pairs = text.strip_suffix('\0').ok_or(StartupError::Parameters)?;
    let mut parameters = StartupParameters::default();
    if pairs.is_empty() {
        return Ok(parameters);
    }
    let pairs = pairs.strip_suffix('\0').ok_or(StartupError::Parameters)?;
    let mut fields = pairs.split('\0');
    while let Some(name) = fields.next() {
        let value = fields.next().ok_or(StartupError::Parameters)?;
        match name {
            "application_name" => parameters.application_name = Some(value.to_string()),
            "options" => parameters.options = parse_options(value),
            _ => {}
        }
    }
    Ok(parameters)
}

/// Items `-c key=value` and `-ckey=value`; ends at the first item that does not fit and keeps what came before.
fn parse_options(text: &str) -> Vec<(String, String)> {
    let mut options = Vec::new();
    let mut words = text.split_whitespace();
    while let Some(word) = words.next() {
        let item = match word.strip_prefix("-c") {
            Some("") => words.next().filter(|next| !next.starts_with("-c")),
            other => other,
        };
        let Some((key, value)) = item.and_then(|item| item.split_once('=')) else { break };
        options.push((key.to_string(), value.to_string()));
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &[u8]) -> Vec<u8> {
        let mut packet = (body.len() as u32 + 8).to_be_bytes().to_vec();
        packet.extend_from_slice(&0x0003_0000u32.to_be_bytes());
        packet.extend_from_slice(body);
        packet
    }

    #[test]
    fn requests_are_told_apart_by_their_code() {
        let ssl = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
        assert_eq!(decode(&ssl), Ok(Some((Startup::SslRequest, 8))));
        assert_eq!(decode(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30]), Ok(Some((Startup::GssEncRequest, 8))));
        let cancel = [0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e, 0, 0, 0, 1, 0, 0, 0, 2];
        assert_eq!(decode(&cancel), Ok(Some((Startup::CancelRequest, 16))));
        assert_eq!(decode(&[0, 0, 0, 8, 0x04, 0xd2, 0, 1]), Err(StartupError::RequestCode(1)));
        assert_eq!(decode(&[0x16, 3, 1]), Err(StartupError::DirectTls));
        for cut in 0..8 {
            assert_eq!(decode(&ssl[..cut]), Ok(None));
        }
    }

    #[test]
    fn lengths_outside_8_to_10000_are_refused_before_the_body_arrives() {
        assert_eq!(decode(&7u32.to_be_bytes()), Err(StartupError::Length(7)));
        assert_eq!(decode(&10_001u32.to_be_bytes()), Err(StartupError::Length(10_001)));
        assert_eq!(decode(&10_000u32.to_be_bytes()), Ok(None));
        assert_eq!(
            decode(b"GET / HTTP/1.1\r\n").unwrap_err().to_string(),
            "invalid startup packet message length 1195725856"
        );
    }

    #[test]
    fn parameters_are_read_and_any_version_is_accepted() {
        let packet =
            message(b"user\0cloud_admin\0application_name\x00123\0options\0-c neon.compute_mode=primary -cfoo=bar\0\0");
        let Ok(Some((Startup::Message(parameters), length))) = decode(&packet) else { panic!("no message") };
        assert_eq!(length, packet.len());
        assert_eq!(parameters.application_name.as_deref(), Some("123"));
        assert_eq!(parameters.compute_mode(), Some("primary"));
        assert_eq!(parameters.options[1], ("foo".to_string(), "bar".to_string()));
        assert_eq!(decode(&message(b"\0")), Ok(Some((Startup::Message(StartupParameters::default()), 9))));
        assert_eq!(decode(&message(b"user\0\0")), Err(StartupError::Parameters));
        assert_eq!(decode(&message(b"\xff\0\0\0")), Err(StartupError::Parameters));
    }

    #[test]
    fn odd_options_are_tolerated_up_to_the_first_that_does_not_fit() {
        assert_eq!(parse_options("-c"), []);
        assert_eq!(parse_options("-c a=b -c -c"), [("a".to_string(), "b".to_string())]);
        assert_eq!(parse_options("-c neon.compute_mode"), []);
        assert_eq!(parse_options("hello -c a=b"), []);
    }
}
