//! Messages to the client, appended to an output buffer (spec page-service.md 1.4).

pub const AUTHENTICATION_OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";
pub const READY_FOR_QUERY: &[u8] = b"Z\0\0\0\x05I";
pub const COPY_BOTH_RESPONSE: &[u8] = b"W\0\0\0\x07\0\0\0";
pub const COPY_OUT_RESPONSE: &[u8] = b"H\0\0\0\x07\0\0\0";
pub const COPY_DONE: &[u8] = b"c\0\0\0\x04";
pub const COMMAND_COMPLETE_SELECT_1: &[u8] = b"C\0\0\0\x0dSELECT 1\0";
pub const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
pub const BIND_COMPLETE: &[u8] = b"2\0\0\0\x04";
pub const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";
/// ParameterDescription with no parameters, then NoData.
pub const NO_PARAMETERS_NO_DATA: &[u8] = b"t\0\0\0\x06\0\0n\0\0\0\x04";

/// Room for a length that [`end`] fills in.
fn begin(out: &mut Vec<u8>, tag: u8) -> usize {
    out.push(tag);
    out.extend_from_slice(&[0; 4]);
    out.len() - 4
}

fn end(out: &mut [u8], length_at: usize) {
    // No message of ours comes near 4 GiB: the longest is one CopyData of 34 + 262144 bytes.
    let length = (out.len() - length_at) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
}

fn c_string(out: &mut Vec<u8>, text: &str) {
    // A NUL inside would end the field early and shift all that follows.
    out.extend(text.bytes().filter(|b| *b != 0));
    out.push(0);
}

pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    let at = begin(out, b'S');
    c_string(out, name);
    c_string(out, value);
    end(out, at);
}

/// Exactly three fields: severity, SQLSTATE, message.
pub fn error_response(out: &mut Vec<u8>, sqlstate: &str, message: &str) {
    let at = begin(out, b'E');
    out.push(b'S');
    c_string(out, "ERROR");
    out.push(b'C');
    c_string(out, sqlstate);
    out.push(b'M');
    c_string(out, message);
    out.push(0);
    end(out, at);
}

pub fn copy_data(out: &mut Vec<u8>, payload: &[u8]) {
    let at = begin(out, b'd');
    out.extend_from_slice(payload);
    end(out, at);
}

/// The answer to `lease lsn`: one text column, epoch milliseconds or NULL (spec 1.5).
pub fn lease_row(out: &mut Vec<u8>, valid_until_millis: Option<u64>) {
    let at = begin(out, b'T');
    out.extend_from_slice(&1u16.to_be_bytes());
    c_string(out, "valid_until");
    out.extend_from_slice(&[0; 6]); // table oid, column number
    out.extend_from_slice(&25u32.to_be_bytes()); // text
    out.extend_from_slice(&[0xff; 6]); // type length -1, type modifier -1
    out.extend_from_slice(&[0; 2]); // text format
    end(out, at);
    let at = begin(out, b'D');
    out.extend_from_slice(&1u16.to_be_bytes());
    match valid_until_millis {
        None => out.extend_from_slice(&[0xff; 4]),
        Some(millis) => {
            let text = millis.to_string();
            out.extend_from_slice(&(text.len() as u32).to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        }
    }
    end(out, at);
}

/// The messages after a successful log-in without password (spec 1.3).
pub fn trust_greeting(out: &mut Vec<u8>) {
    out.extend_from_slice(AUTHENTICATION_OK);
    parameter_status(out, "client_encoding", "UTF8");
    parameter_status(out, "integer_datetimes", "on");
    // Constant whatever version a timeline has; some drivers refuse to work without one they can parse.
    parameter_status(out, "server_version", "14.1");
    out.extend_from_slice(READY_FOR_QUERY);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        out.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn messages_have_the_bytes_of_the_specification() {
        assert_eq!(
            hex(|o| parameter_status(o, "client_encoding", "UTF8")),
            "5300000019636c69656e745f656e636f64696e67005554463800"
        );
        assert_eq!(
            hex(|o| parameter_status(o, "integer_datetimes", "on")),
            "5300000019696e74656765725f6461746574696d6573006f6e00"
        );
        assert_eq!(
            hex(|o| parameter_status(o, "server_version", "14.1")),
            "53000000187365727665725f76657273696f6e0031342e3100"
        );
        assert_eq!(
            hex(|o| error_response(o, "57P01", "shutdown")),
            "450000001d534552524f520043353750303100 4d73687574646f776e0000".replace(' ', "")
        );
        assert_eq!(
            hex(|o| error_response(o, "08006", "reconnect")),
            "450000001e534552524f520043303830303600 4d7265636f6e6e6563740000".replace(' ', "")
        );
        assert_eq!(
            hex(|o| lease_row(o, Some(1735689600000))),
            "54000000240001 76616c69645f756e74696c00 00000000 0000 00000019 ffff ffffffff 0000 \
             44 00000017 0001 0000000d 31373335363839363030303030"
                .replace(' ', "")
        );
        assert!(hex(|o| lease_row(o, None)).ends_with("440000000a0001ffffffff"));
        assert_eq!(hex(|o| o.extend_from_slice(COMMAND_COMPLETE_SELECT_1)), "430000000d53454c454354203100");
        assert_eq!(hex(|o| o.extend_from_slice(NO_PARAMETERS_NO_DATA)), "740000000600006e00000004");
        assert_eq!(hex(|o| copy_data(o, b"ab")), "64000000066162");
    }

    #[test]
    fn a_nul_inside_a_message_cannot_forge_fields() {
        assert_eq!(
            hex(|o| error_response(o, "XX000", "a\0b")),
            "4500000017534552524f520043585830303000 4d61620000".replace(' ', "")
        );
    }
}
