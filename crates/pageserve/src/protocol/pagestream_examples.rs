//! Every example of spec page-service.md 2.5, both ways, and what must be refused.

use super::*;

const REL: RelTag = RelTag { spcnode: 1663, dbnode: 13010, relnode: 1259, forknum: 0 };
const HEADER: Header = Header { id: 0x3039_0000_0001, request_lsn: Lsn(u64::MAX), not_modified_since: Lsn(0x16B9188) };
const ZERO_PAGE: [u8; BLCKSZ] = [0; BLCKSZ];
const BAD_LSN: &str = "Bad request: invalid LSN(0) in request";

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b' ').collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// Encodes and decodes both messages and compares with the bytes of the specification.
fn check(version: Version, body: Body<'_>, request: &str, answer: Answer<'_>, response: &str, page_follows: bool) {
    check_with(version, HEADER, body, request, answer, response, page_follows);
}

fn check_with(
    version: Version,
    header: Header,
    body: Body<'_>,
    request: &str,
    answer: Answer<'_>,
    response: &str,
    page_follows: bool,
) {
    let header = Header { id: if version == Version::V2 { 0 } else { header.id }, ..header };
    let made = Request { header, body };
    let request = unhex(request);
    let mut out = Vec::new();
    made.encode(version, &mut out);
    assert_eq!(out, request);
    assert_eq!(Request::decode(version, &request[5..]), Ok(made));

    let mut response = unhex(response);
    if page_follows {
        response.extend_from_slice(&ZERO_PAGE);
    }
    out.clear();
    made.respond(version, &answer, &mut out);
    assert_eq!(out, response);
    let read = Response::decode(version, &response[5..]).unwrap();
    assert_eq!(read.answer, answer);
    let is_error = matches!(answer, Answer::Error(_));
    assert_eq!(read.header, (version == Version::V3).then_some(header));
    assert_eq!(read.echo, (version == Version::V3 && !is_error).then_some(body));

    for cut in 0..request.len() - 5 {
        assert!(Request::decode(version, &request[5..5 + cut]).is_err(), "cut at {cut}");
    }
    let mut longer = request[5..].to_vec();
    longer.push(7);
    assert_eq!(Request::decode(version, &longer), Ok(made), "bytes after the last field are ignored");
}

#[test]
fn version_2_messages_have_the_bytes_of_the_specification() {
    let v = Version::V2;
    check(
        v,
        Body::Exists { rel: REL },
        "64 00000022 00 ffffffffffffffff 00000000016b9188 0000067f 000032d2 000004eb 00",
        Answer::Exists(true),
        "64 00000006 64 01",
        false,
    );
    check(
        v,
        Body::Nblocks { rel: REL },
        "64 00000022 01 ffffffffffffffff 00000000016b9188 0000067f 000032d2 000004eb 00",
        Answer::Nblocks(14),
        "64 00000009 65 0000000e",
        false,
    );
    check(
        v,
        Body::GetPage { rel: REL, block: 7 },
        "64 00000026 02 ffffffffffffffff 00000000016b9188 0000067f 000032d2 000004eb 00 00000007",
        Answer::Page(&ZERO_PAGE),
        "64 00002005 66",
        true,
    );
    check(
        v,
        Body::DbSize { dbnode: 13010 },
        "64 00000019 03 ffffffffffffffff 00000000016b9188 000032d2",
        Answer::DbSize(7340032),
        "64 0000000d 68 0000000000700000",
        false,
    );
    check(
        v,
        Body::SlruSegment { kind: 0, segno: 1 },
        "64 0000001a 04 ffffffffffffffff 00000000016b9188 00 00000001",
        Answer::SlruSegment(&ZERO_PAGE),
        "64 00002009 69 00000001",
        true,
    );
    check_with(
        v,
        Header::default(),
        Body::Exists { rel: REL },
        "64 00000022 00 0000000000000000 0000000000000000 0000067f 000032d2 000004eb 00",
        Answer::Error(BAD_LSN),
        "64 0000002c 67 42616420726571756573743a20696e76616c6964204c534e28302920696e2072657175657374 00",
        false,
    );
    check(
        v,
        Body::Test { batch_key: 42, message: b"ping" },
        "64 00000029 63 ffffffffffffffff 00000000016b9188 000000000000002a 0000000000000004 70696e67",
        Answer::Test(b"ping"),
        "64 00000019 c7 000000000000002a 0000000000000004 70696e67",
        false,
    );
}

#[test]
fn version_3_messages_have_the_bytes_of_the_specification() {
    let v = Version::V3;
    let echo = "0000303900000001 ffffffffffffffff 00000000016b9188 0000067f 000032d2 000004eb 00";
    check(
        v,
        Body::Exists { rel: REL },
        &format!("64 0000002a 00 {echo}"),
        Answer::Exists(true),
        &format!("64 0000002b 64 {echo} 01"),
        false,
    );
    check(
        v,
        Body::Nblocks { rel: REL },
        &format!("64 0000002a 01 {echo}"),
        Answer::Nblocks(14),
        &format!("64 0000002e 65 {echo} 0000000e"),
        false,
    );
    check(
        v,
        Body::GetPage { rel: REL, block: 7 },
        &format!("64 0000002e 02 {echo} 00000007"),
        Answer::Page(&ZERO_PAGE),
        &format!("64 0000202e 66 {echo} 00000007"),
        true,
    );
    let header = "0000303900000001 ffffffffffffffff 00000000016b9188";
    check(
        v,
        Body::DbSize { dbnode: 13010 },
        &format!("64 00000021 03 {header} 000032d2"),
        Answer::DbSize(7340032),
        &format!("64 00000029 68 {header} 000032d2 0000000000700000"),
        false,
    );
    check(
        v,
        Body::SlruSegment { kind: 0, segno: 1 },
        &format!("64 00000022 04 {header} 00 00000001"),
        Answer::SlruSegment(&ZERO_PAGE),
        &format!("64 00002026 69 {header} 00 00000001 00000001"),
        true,
    );
    let zeros = "0000303900000001 0000000000000000 0000000000000000";
    check_with(
        v,
        Header { id: HEADER.id, ..Header::default() },
        Body::Exists { rel: REL },
        &format!("64 0000002a 00 {zeros} 0000067f 000032d2 000004eb 00"),
        Answer::Error(BAD_LSN),
        &format!(
            "64 00000044 67 {zeros} 42616420726571756573743a20696e76616c6964204c534e28302920696e2072657175657374 00"
        ),
        false,
    );
    check(
        v,
        Body::Test { batch_key: 42, message: b"ping" },
        &format!("64 00000031 63 {header} 000000000000002a 0000000000000004 70696e67"),
        Answer::Test(b"ping"),
        &format!("64 00000031 c7 {header} 000000000000002a 0000000000000004 70696e67"),
        false,
    );
}

#[test]
fn unknown_tags_and_hostile_lengths_are_refused() {
    assert_eq!(Request::decode(Version::V3, &[]), Err(DecodeError::Short));
    assert_eq!(Request::decode(Version::V3, &[7]).unwrap_err().to_string(), "invalid tag 7");
    let mut test = vec![TAG_TEST];
    test.extend_from_slice(&[0; 24]);
    test.extend_from_slice(&[0; 8]);
    test.extend_from_slice(&u64::MAX.to_be_bytes());
    assert_eq!(Request::decode(Version::V3, &test), Err(DecodeError::Short));
}
