//! The agent: one static program that a rented machine needs nothing for.
//!
//! Threads instead of an async runtime: there are a handful of transfers and one pipe, and
//! without tokio the program is a third smaller and every stack trace is the whole story.
//! It is linked statically against glibc, which must never look up names or users (it would
//! load the host's NSS modules into a foreign libc and crash), so nothing here does.

mod bulk;
mod clock;
mod engine;
mod environment;
mod exec;
mod facts;
mod home;
mod hooks;
mod http;
mod job;
mod lock;
mod logfile;
mod objects;
mod out;
mod probe;
mod procs;
mod session;
mod supervisor;
mod tls;
mod workload;

use std::process::ExitCode;

const USAGE: &str = "usage: dumont-agent [session | bulk | supervise DIR | --version]";

const CLOCK_OFFSET: &str = "--clock-offset-ms";

fn offset(text: &std::ffi::OsStr) -> Option<i64> {
    text.to_str()?.parse().ok()
}

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let word = args.first().and_then(|a| a.to_str()).unwrap_or("session");
    let result = match (word, args.get(1)) {
        ("--version" | "-V", None) => {
            let version = env!("CARGO_PKG_VERSION");
            println!("dumont-agent {version} protocol {}", dumont_wire::agent::PROTOCOL);
            Ok(())
        }
        ("session", None) => session::run(Box::new(clock::System)),
        // Not in the usage either: a drill's machine whose clock is wrong.
        ("session", Some(flag)) if flag == CLOCK_OFFSET && args.len() == 3 => match offset(&args[2]) {
            Some(offset_ms) => session::run(Box::new(clock::Shifted { offset_ms })),
            None => Err(std::io::Error::other(format!(
                "{CLOCK_OFFSET} takes milliseconds"
            ))),
        },
        ("bulk", None) => bulk::run(),
        ("supervise", Some(dir)) if args.len() == 2 => supervisor::run(dir.as_ref()),
        // Not in the usage: how the agent starts other programs so that they die with it.
        (exec::BOUND, Some(parent)) if args.len() == 3 => exec::become_shell(parent, &args[2]),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("dumont-agent: {e}");
            ExitCode::FAILURE
        }
    }
}
