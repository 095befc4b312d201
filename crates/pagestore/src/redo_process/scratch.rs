//! A process's own copy of the scratch data directory; it goes with the process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{chown, DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const BLOCK: usize = 4096;

/// A directory that is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Copies `template` to a new directory `name` beside it, owned by `uid` and `gid` where given.
    pub(super) fn copy(template: &Path, name: &str, uid: Option<u32>, gid: Option<u32>) -> io::Result<Scratch> {
        let parent =
            template.parent().ok_or_else(|| io::Error::other("the scratch template has no parent directory"))?;
        let scratch = Scratch { path: parent.join(name) };
        copy_tree(template, &scratch.path, uid, gid)?;
        Ok(scratch)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is found by the next server (it removes the directories of servers that are gone).
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn copy_tree(from: &Path, to: &Path, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &target, uid, gid)?;
        } else if kind.is_file() {
            copy_file(&entry.path(), &target)?;
            chown(&target, uid, gid)?;
        } else {
            return Err(io::Error::other(format!("{} is neither a file nor a directory", entry.path().display())));
        }
    }
    chown(to, uid, gid)
}

/// Copies a file without its zero blocks: a WAL segment and most of a catalog's pages cost no memory then.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mode = source.metadata()?.permissions().mode();
    let mut target = OpenOptions::new().write(true).create_new(true).mode(mode).open(to)?;
    let mut bytes = Vec::new();
    source.read_to_end(&mut bytes)?;
    for (i, block) in bytes.chunks(BLOCK).enumerate() {
        if block.iter().any(|b| *b != 0) {
            target.seek(SeekFrom::Start((i * BLOCK) as u64))?;
            target.write_all(block)?;
        }
    }
    target.set_len(bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_equal_and_goes_away() {
        let root = std::env::temp_dir().join(format!("redo-scratch-test-{}", std::process::id()));
        let template = root.join("template");
        fs::create_dir_all(template.join("base/1")).unwrap();
        let mut content = vec![0u8; 3 * BLOCK + 5];
        content[BLOCK] = 7;
        fs::write(template.join("base/1/2"), &content).unwrap();
        let scratch = Scratch::copy(&template, "copy", None, None).unwrap();
        assert_eq!(fs::read(scratch.path().join("base/1/2")).unwrap(), content);
        assert!(Scratch::copy(&template, "copy", None, None).is_err(), "a name is used once");
        let path = root.join("copy");
        drop(scratch);
        assert!(!path.exists());
        fs::remove_dir_all(root).unwrap();
    }
}
