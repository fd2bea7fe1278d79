//! The `dumont` binary: the controller (`serve`), the marketplace emulator (`market`), the
//! drill, and every command of the CLI, which talks to a controller over its REST API.

mod badge;
mod cli;
mod client;
mod config;
mod fail;
mod output;
mod progress;
mod settings;
mod turn;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Every TLS user in this process shares one provider. A second install is no error.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut args = <cli::Args as clap::Parser>::parse();
    let json = args.globals.json;
    // Scripts read stderr, too: progress would stand between the JSON of an error.
    args.globals.quiet |= json;
    let result = args.globals.die_with_parent().and_then(|()| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let result = runtime.block_on(cli::run(args));
        // A thread that still reads a file must not hold up the exit.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail::report(&e, json),
    }
}
