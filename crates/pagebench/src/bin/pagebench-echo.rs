//! `pagebench-echo ADDRESS`: the ceiling of the page service. Answers every GetPage with the same page.
//!
//! What a page server cannot do without and nothing else: one thread per connection, one read for all requests that
//! have arrived, one write for all their answers. It knows no tenant, no LSN and no block; it understands just enough
//! of the protocol that `pagebench` can drive it.
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

const PAGE: [u8; 8192] = [0x5a; 8192];
const GREETING: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
const COPY_BOTH: &[u8] = b"W\0\0\0\x07\0\0\0";
const SSL_REQUEST: u32 = 80_877_103;
/// GetPage request of pagestream v3 with its frame.
const REQUEST_LEN: usize = 5 + 42;
/// What a response repeats: id, both LSNs, relation, block.
const ECHOED: std::ops::Range<usize> = 6..REQUEST_LEN;

fn main() -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:64001".to_string());
    let listener = TcpListener::bind(address)?;
    println!("{}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = serve(stream) {
                eprintln!("pagebench-echo: {error}");
            }
        });
    }
    Ok(())
}

fn serve(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    greet(&mut stream)?;
    let mut response = vec![b'd'];
    response.extend_from_slice(&(4 + 42 + PAGE.len() as u32).to_be_bytes());
    response.push(102);
    let mut input = vec![0; 1 << 20];
    let mut output = Vec::with_capacity(1 << 20);
    let mut have = 0;
    loop {
        let n = stream.read(&mut input[have..])?;
        if n == 0 {
            return Ok(());
        }
        have += n;
        let whole = have / REQUEST_LEN * REQUEST_LEN;
        for request in input[..whole].chunks_exact(REQUEST_LEN) {
            if request[..6] != *b"d\0\0\0\x2e\x02" {
                return Err(Error::new(ErrorKind::InvalidData, "only GetPage of pagestream_v3 is answered"));
            }
            output.extend_from_slice(&response);
            output.extend_from_slice(&request[ECHOED]);
            output.extend_from_slice(&PAGE);
        }
        input.copy_within(whole..have, 0);
        have -= whole;
        stream.write_all(&output)?;
        output.clear();
    }
}

/// Start-up packets, then one query of any text.
fn greet(stream: &mut TcpStream) -> Result<()> {
    while u32_of(&sized(stream)?) == SSL_REQUEST {
        stream.write_all(b"N")?;
    }
    stream.write_all(GREETING)?;
    let mut tag = [0];
    stream.read_exact(&mut tag)?;
    sized(stream)?;
    stream.write_all(COPY_BOTH)
}

/// The rest of a message whose length comes next.
fn sized(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if !(4..=10_000).contains(&length) {
        return Err(Error::new(ErrorKind::InvalidData, "impossible message length"));
    }
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn u32_of(bytes: &[u8]) -> u32 {
    bytes.first_chunk::<4>().map_or(0, |head| u32::from_be_bytes(*head))
}
