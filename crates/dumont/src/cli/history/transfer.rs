//! `dumont history export|import`: what a team learned, as JSON lines.

use crate::client::query_of;
use crate::config::Globals;
use crate::fail::{fail, usage};
use crate::output;
use anyhow::{Context, Result};
use clap::Args;
use dumont_wire::history::{ExportQuery, ImportQuery, ImportReport};
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

/// Sent at a time; the server takes four times as much.
const PART: usize = 8 << 20;

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// What `dumont history export` wrote; `-` is standard input
    pub file: PathBuf,
    /// Take over blocks, too: an import blocks no machine otherwise
    #[arg(long)]
    pub blacklist: bool,
}

/// Writes to the file whole or not at all, else to stdout.
pub async fn export(globals: &Globals, file: Option<&Path>, period: Option<String>) -> Result<()> {
    let client = globals.client()?;
    let query = query_of(&ExportQuery {
        provider: None,
        period,
    });
    let path = format!("/machines/history/export{query}");
    let Some(file) = file else {
        client.download(&path, &mut std::io::stdout().lock()).await?;
        return Ok(());
    };
    let beside = file
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut out =
        tempfile::NamedTempFile::new_in(beside).with_context(|| format!("write in {}", beside.display()))?;
    let bytes = client.download(&path, &mut out).await?;
    out.flush()?;
    out.persist(file)
        .with_context(|| format!("write {}", file.display()))?;
    if !globals.quiet {
        output::note(&format!(
            "{} written to {}.",
            output::bytes(bytes),
            file.display()
        ));
    }
    Ok(())
}

pub async fn import(globals: &Globals, args: &ImportArgs) -> Result<()> {
    let mut source: Box<dyn BufRead> = if args.file == Path::new("-") {
        if std::io::stdin().is_terminal() {
            return Err(usage(
                "nothing to import: standard input is a terminal",
                "name a file, or use a pipe",
            ));
        }
        Box::new(BufReader::new(std::io::stdin()))
    } else {
        let open = File::open(&args.file);
        let file = open.map_err(|e| {
            usage(
                format!("cannot read {}: {e}", args.file.display()),
                "check the path",
            )
        })?;
        Box::new(BufReader::new(file))
    };
    let client = globals.client()?;
    let query = query_of(&ImportQuery {
        blacklist: args.blacklist.then_some(true),
    });
    let path = format!("/machines/history/import{query}");
    let mut all = ImportReport::default();
    while let Some(part) = next_part(source.as_mut())? {
        let one: ImportReport = client.post_lines(&path, part).await?;
        all.attempts += one.attempts;
        all.counted += one.counted;
        all.known += one.known;
        all.too_old += one.too_old;
        all.blacklisted += one.blacklisted;
        all.entries_skipped += one.entries_skipped;
    }
    if globals.json {
        return output::json(&all);
    }
    output::line(&format!(
        "{} taken over, {} more as counts, {} known already, {} too old; {} taken over, {} left out.",
        output::count(all.attempts, "attempt"),
        all.counted,
        all.known,
        all.too_old,
        output::count(all.blacklisted, "block"),
        all.entries_skipped
    ));
    if all.entries_skipped > 0 && !args.blacklist && !globals.quiet {
        output::note("Blocks are taken over with --blacklist only.");
    }
    Ok(())
}

/// Whole lines, about [`PART`] bytes of them; `None` at the end.
fn next_part(source: &mut dyn BufRead) -> Result<Option<Vec<u8>>> {
    let mut part = Vec::new();
    while part.len() < PART {
        // A line that never ends must not fill the memory.
        let read = source.take(PART as u64).read_until(b'\n', &mut part)?;
        if read == PART && part.last() != Some(&b'\n') {
            return Err(fail(
                "line_too_long",
                "a line is over 8 MB",
                "this is no export of dumont's",
            ));
        }
        if read == 0 {
            break;
        }
    }
    Ok(Some(part).filter(|p| !p.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_holds_whole_lines() {
        let line = format!("{}\n", "x".repeat(999));
        let text = line.repeat(20_000);
        let mut source = text.as_bytes();
        let (mut parts, mut whole) = (0, Vec::new());
        while let Some(part) = next_part(&mut source).unwrap() {
            assert!(part.ends_with(b"\n") && part.len() < PART + 1_000);
            whole.extend(part);
            parts += 1;
        }
        assert_eq!((parts, whole == text.as_bytes()), (3, true));
        assert!(next_part(&mut &vec![b'x'; PART + 1][..]).is_err());
        assert_eq!(next_part(&mut &b"last"[..]).unwrap(), Some(b"last".to_vec()));
    }
}
