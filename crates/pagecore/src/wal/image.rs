//! Page images inside records: decompression and the hole (spec wal.md 2.4).

use super::{Compression, ImageRef, WalError};
use crate::BLCKSZ;

/// Returns the page that an image stands for.
///
/// Raises: `WalError::Decode` if the bytes do not decompress to exactly a page without its hole.
pub fn restore(image: &ImageRef<'_>) -> Result<Box<[u8; BLCKSZ]>, WalError> {
    let mut page = Box::new([0; BLCKSZ]);
    restore_into(image, &mut page)?;
    Ok(page)
}

/// Like `restore`, into a page that the caller owns. The page's former contents do not matter.
pub fn restore_into(image: &ImageRef<'_>, page: &mut [u8; BLCKSZ]) -> Result<(), WalError> {
    let hole_start = usize::from(image.hole_offset);
    let hole_length = usize::from(image.hole_length);
    let want = BLCKSZ.saturating_sub(hole_length);
    if hole_start + hole_length > BLCKSZ {
        return Err(WalError::Decode(format!("image with a hole of {hole_length} bytes at {hole_start}")));
    }
    let got = match image.compression {
        Compression::None if image.data.len() == want => {
            page[..want].copy_from_slice(image.data);
            want
        }
        Compression::None => image.data.len(),
        Compression::Pglz => decompress_pglz(image.data, &mut page[..want])?,
        Compression::Lz4 => lz4_flex::block::decompress_into(image.data, &mut page[..want])
            .map_err(|error| WalError::Decode(format!("image does not decompress: {error}")))?,
        Compression::Zstd => zstd::bulk::decompress_to_buffer(image.data, &mut page[..want])
            .map_err(|error| WalError::Decode(format!("image does not decompress: {error}")))?,
    };
    if got != want {
        return Err(WalError::Decode(format!("image decompresses to {got} bytes instead of {want}")));
    }
    if hole_length > 0 {
        page.copy_within(hole_start..want, hole_start + hole_length);
        page[hole_start..hole_start + hole_length].fill(0);
    }
    Ok(())
}

/// Decompresses PostgreSQL's own LZ format; returns the number of bytes written.
///
/// Format: a control byte governs the next eight items, lowest bit first. Bit clear: one literal byte. Bit set: a
/// back reference of two bytes, `oooollll oooooooo` with length `l + 3` and offset `o` (1..4095) back from the end of
/// the output; if `l` is 15, a third byte adds to the length. References may overlap what they produce.
///
/// Raises: `WalError::Decode` if the input ends inside an item, refers before the start, or does not fit.
pub fn decompress_pglz(input: &[u8], out: &mut [u8]) -> Result<usize, WalError> {
    let corrupt = || WalError::Decode("pglz image is corrupt".to_string());
    let (mut at, mut written) = (0, 0);
    while at < input.len() && written < out.len() {
        let control = input[at];
        at += 1;
        for bit in 0..8 {
            if at >= input.len() || written >= out.len() {
                break;
            }
            if control >> bit & 1 == 0 {
                out[written] = input[at];
                at += 1;
                written += 1;
                continue;
            }
            let [first, second] = *input.get(at..at + 2).and_then(|b| b.first_chunk::<2>()).ok_or_else(corrupt)?;
            at += 2;
            let mut length = usize::from(first & 0x0F) + 3;
            let offset = usize::from(first & 0xF0) << 4 | usize::from(second);
            if length == 18 {
                length += usize::from(*input.get(at).ok_or_else(corrupt)?);
                at += 1;
            }
            if offset == 0 || offset > written {
                return Err(corrupt());
            }
            // PostgreSQL clips a last reference that reaches beyond the page.
            let end = out.len().min(written + length);
            while written < end {
                let n = offset.min(end - written);
                out.copy_within(written - offset..written - offset + n, written);
                written += n;
            }
        }
    }
    if at != input.len() {
        return Err(corrupt());
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Vec<u8> {
        let mut page: Vec<u8> = (0..BLCKSZ).map(|i| if i % 3 == 0 { (i / 64) as u8 } else { 7 }).collect();
        page[836..856].fill(0);
        page
    }

    /// A plain pglz encoder: greedy, quadratic, good enough to make test input.
    fn compress_pglz(input: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < input.len() {
            let control_at = out.len();
            out.push(0);
            for bit in 0..8 {
                if at >= input.len() {
                    break;
                }
                let best = (1..=at.min(4095))
                    .map(|o| {
                        let n = (0..273.min(input.len() - at)).take_while(|i| input[at + i] == input[at + i - o]);
                        (n.count(), o)
                    })
                    .max_by_key(|(n, o)| (*n, std::cmp::Reverse(*o)));
                match best {
                    Some((n, o)) if n >= 3 => {
                        out[control_at] |= 1 << bit;
                        let l = (n - 3).min(15);
                        out.extend([(o >> 4) as u8 & 0xF0 | l as u8, o as u8]);
                        if l == 15 {
                            out.push((n - 18) as u8);
                        }
                        at += n;
                    }
                    _ => {
                        out.push(input[at]);
                        at += 1;
                    }
                }
            }
        }
        out
    }

    fn without_hole(page: &[u8]) -> Vec<u8> {
        [&page[..836], &page[856..]].concat()
    }

    #[test]
    fn every_compression_restores_the_page() {
        let page = page();
        let short = without_hole(&page);
        for (compression, data) in [
            (Compression::None, short.clone()),
            (Compression::Pglz, compress_pglz(&short)),
            (Compression::Lz4, lz4_flex::block::compress(&short)),
            (Compression::Zstd, zstd::bulk::compress(&short, 1).unwrap()),
        ] {
            let image = ImageRef { data: &data, hole_offset: 836, hole_length: 20, compression };
            assert_eq!(restore(&image).unwrap()[..], page[..], "{compression:?}");
            let cut = ImageRef { data: &data[..data.len() - 1], ..image };
            assert!(restore(&cut).is_err(), "{compression:?} cut short");
            let short_hole = ImageRef { hole_length: 19, ..image };
            assert!(restore(&short_hole).is_err(), "{compression:?} with a wrong hole");
        }
        let whole = ImageRef { data: &page, hole_offset: 0, hole_length: 0, compression: Compression::None };
        assert_eq!(restore(&whole).unwrap()[..], page[..]);
    }

    #[test]
    fn damaged_pglz_never_panics() {
        let good = compress_pglz(&page());
        let mut out = vec![0; BLCKSZ];
        assert_eq!(decompress_pglz(&good, &mut out).unwrap(), BLCKSZ);
        assert_eq!(out, page());
        for at in 0..good.len().min(600) {
            for flip in [0xFF, 0x01, 0x80] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                let _ = decompress_pglz(&bad, &mut out);
            }
        }
        assert!(decompress_pglz(&[0x01, 0x00, 0x00], &mut out).is_err(), "a reference before the start");
        assert!(decompress_pglz(&[0x02, b'a', 0x00], &mut out).is_err(), "a cut reference");
        assert!(decompress_pglz(&[0x02, b'a', 0x0F, 0x01], &mut out).is_err(), "a cut long reference");
        assert_eq!(decompress_pglz(&[0x02, b'a', 0x01, 0x01], &mut out).unwrap(), 5);
        assert_eq!(&out[..5], b"aaaaa");
    }
}
