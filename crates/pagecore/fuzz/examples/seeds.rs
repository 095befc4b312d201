//! `seeds unpack FILE DIRECTORY`, `seeds pack DIRECTORY FILE`: the committed seeds as a corpus, and back.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use pagecore_fuzz::{pack_seeds, unpack_seeds};

fn main() -> io::Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["unpack", file, directory] => {
            fs::create_dir_all(directory)?;
            for (number, seed) in unpack_seeds(&fs::read(file)?)?.iter().enumerate() {
                fs::write(Path::new(directory).join(format!("seed-{number:04}")), seed)?;
            }
            Ok(())
        }
        ["pack", directory, file] => {
            let mut paths: Vec<PathBuf> =
                fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
            paths.sort();
            let seeds = paths.iter().map(fs::read).collect::<io::Result<Vec<_>>>()?;
            fs::write(file, pack_seeds(&seeds)?)
        }
        _ => Err(io::Error::other("usage: seeds unpack FILE DIRECTORY | seeds pack DIRECTORY FILE")),
    }
}
