//! `dumont completions`, `dumont man`: what packages install beside the binary, made from the
//! command line's own definition, so that it cannot differ from it.

use crate::fail::fail;
use crate::output;
use anyhow::Result;
use clap::{Args, Command};
use clap_complete::Shell;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell to complete for
    pub shell: Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Where to write dumont.1, dumont-serve.1, …; made if need be
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

pub fn completions(mut command: Command, args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "dumont", &mut script);
    match std::io::stdout().write_all(&script) {
        // Whoever reads it has seen enough, e.g. `| head`.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

pub fn man(command: Command, args: &ManArgs) -> Result<()> {
    let write = || {
        std::fs::create_dir_all(&args.dir)?;
        clap_mangen::generate_to(command, &args.dir)
    };
    write().map_err(|e| {
        fail(
            "man_pages",
            format!("cannot write man pages into {}: {e}", args.dir.display()),
            "name a directory that you may write",
        )
    })?;
    output::line(&format!("man pages are in {}", args.dir.display()));
    Ok(())
}
