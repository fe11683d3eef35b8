//! Container logs in the format of the CRI: `2026-11-21T07:00:00.000000000Z stdout F a line`.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

/// A longer line is written in parts, as containerd does.
const MAX_PART: usize = 16 * 1024;
/// A log that grows beyond this is set aside, as upstream's default has it …
pub(crate) const MAX_SIZE: u64 = 10 << 20;
/// … and so many are kept, with the newest.
const MAX_FILES: u32 = 5;

/// Where a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Out => "stdout",
            Self::Err => "stderr",
        }
    }
}

/// A log that is being written.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Log {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let file = File::options().append(true).create(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size })
    }

    fn write(&mut self, stream: Stream, line: &[u8]) -> io::Result<()> {
        let (tag, line) = match line.strip_suffix(b"\n") {
            Some(line) => ('F', line),
            None => ('P', line),
        };
        let now = Timestamp::now();
        let mut record = format!("{now:.9} {} {tag} ", stream.name()).into_bytes();
        record.extend_from_slice(line);
        record.push(b'\n');
        self.file.write_all(&record)?;
        self.size += u64::try_from(record.len()).unwrap_or(0);
        if self.size > MAX_SIZE { self.rotate() } else { Ok(()) }
    }

    fn rotate(&mut self) -> io::Result<()> {
        set_aside(&self.path)?;
        *self = Self::open(&self.path)?;
        Ok(())
    }
}

/// Puts a log beside those before it, of which the oldest goes.
pub(crate) fn set_aside(path: &Path) -> io::Result<()> {
    for n in (1..MAX_FILES - 1).rev() {
        let (old, older) = (rotated(path, n), rotated(path, n + 1));
        if old.exists() {
            fs::rename(old, older)?;
        }
    }
    fs::rename(path, rotated(path, 1))
}

fn rotated(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

/// Writes what a container says, line by line, until it has said everything.
pub(crate) fn copy(from: impl Read, stream: Stream, log: &Mutex<Log>) -> io::Result<()> {
    let mut from = BufReader::with_capacity(MAX_PART, from);
    let mut line = Vec::new();
    loop {
        line.clear();
        let n = from.by_ref().take(MAX_PART as u64).read_until(b'\n', &mut line)?;
        if n == 0 {
            return Ok(());
        }
        log.lock().unwrap_or_else(PoisonError::into_inner).write(stream, &line)?;
    }
}

/// One record of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) time: Timestamp,
    pub(crate) time_text: &'a str,
    pub(crate) is_error: bool,
    /// Whether the line goes on in the next record.
    pub(crate) is_part: bool,
    pub(crate) text: &'a [u8],
}

impl<'a> Record<'a> {
    /// Reads one line of a log, with or without its end.
    pub(crate) fn parse(line: &'a [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let time_text = std::str::from_utf8(parts.next()?).ok()?;
        let stream = parts.next()?;
        let tag = parts.next()?;
        Some(Self {
            time: time_text.parse().ok()?,
            time_text,
            is_error: stream == b"stderr",
            is_part: tag == b"P",
            text: parts.next().unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c/0.log");
        let log = Mutex::new(Log::open(&path).unwrap());
        copy(&b"one two\nno end"[..], Stream::Err, &log).unwrap();
        let text = fs::read(&path).unwrap();
        let records: Vec<Record<'_>> =
            text.split_inclusive(|byte| *byte == b'\n').filter_map(Record::parse).collect();
        assert_eq!(records.len(), 2);
        assert_eq!((records[0].text, records[0].is_part), (&b"one two"[..], false));
        assert_eq!((records[1].text, records[1].is_part), (&b"no end"[..], true));
        assert!(records[0].is_error && records[0].time <= Timestamp::now());
        assert!(records[0].time_text.len() == "2026-11-21T07:00:00.000000000Z".len());
    }

    #[test]
    fn a_long_line_is_written_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let log = Mutex::new(Log::open(&dir.path().join("0.log")).unwrap());
        let mut long = vec![b'x'; MAX_PART + 10];
        long.push(b'\n');
        copy(long.as_slice(), Stream::Out, &log).unwrap();
        let text = fs::read(dir.path().join("0.log")).unwrap();
        let parts: Vec<bool> = text
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| Record::parse(line).unwrap().is_part)
            .collect();
        assert_eq!(parts, [true, false]);
    }

    #[test]
    fn a_full_log_is_set_aside_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path).unwrap();
        for n in 0..8 {
            log.size = MAX_SIZE;
            log.write(Stream::Out, format!("{n}\n").as_bytes()).unwrap();
        }
        let kept = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(kept, usize::try_from(MAX_FILES).unwrap());
        assert!(fs::read_to_string(rotated(&path, 1)).unwrap().ends_with("7\n"));
    }
}
