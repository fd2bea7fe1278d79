//! Waiting for long work: each step as it ends, its log, and a bar while bytes move.
//!
//! On a terminal the running step is a line that moves; elsewhere (a log file, CI) only
//! finished steps are printed. `--quiet` prints nothing. All of it goes to stderr.

use crate::client::{Client, encode, is_unreachable};
use crate::fail::fail;
use crate::output::{self, Styled};
use anyhow::Result;
use dumont_core::level::Colour;
use dumont_core::snapshot::Progress;
use dumont_core::workflow::Step;
use dumont_wire::rest::{ErrorBody, Workflow, WorkflowStatus};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(150);
/// How long a server may be away (a restart) before waiting for it is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a search is looked at by one who does not wait.
const SEARCH_SHOWN: Duration = Duration::from_secs(10);

/// What moves on the terminal.
pub struct Show {
    bar: Option<ProgressBar>,
    quiet: bool,
    seen_steps: usize,
    last_log: Vec<String>,
}

impl Show {
    pub fn new(quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(0).with_style(spinner());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self {
            bar,
            quiet,
            seen_steps: 0,
            last_log: Vec::new(),
        }
    }

    /// A line that stays, above the moving one.
    pub fn line(&self, text: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.suspend(|| output::note(text)),
            None => output::note(text),
        }
    }

    /// What is being done now.
    pub fn doing(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_style(spinner());
            bar.set_message(text.to_owned());
        }
    }

    /// Bytes that move under the name of a step.
    pub fn bytes(&self, step: &str, progress: &Progress) {
        let Some(bar) = &self.bar else { return };
        if progress.total_bytes == 0 {
            return self.doing(step);
        }
        if let Ok(style) = ProgressStyle::with_template(
            "  {msg:<10} [{bar:28}] {decimal_bytes}/{decimal_total_bytes}  {elapsed}",
        ) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(step.to_owned());
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes.min(progress.total_bytes));
    }

    /// Prints what a workflow did since the last look.
    pub fn workflow(&mut self, wf: &Workflow) {
        for text in new_lines(&self.last_log, &wf.log) {
            if self.bar.is_some() && text.starts_with("Downloading: ") {
                // The bar says the same.
                continue;
            }
            // Lines quote providers and hosts.
            let text = output::safe(text);
            self.line(&if is_warning(&text) {
                format!("    {}", output::paint_err(&Styled::new(text, Colour::Orange)))
            } else {
                format!("    {}", output::dim_err(&text))
            });
        }
        self.last_log.clone_from(&wf.log);
        let over = wf.status != WorkflowStatus::Running;
        let ended = if over {
            wf.steps.len()
        } else {
            wf.steps.len().saturating_sub(1)
        };
        // Before the first look at a longer list, steps may have been dropped: never go back.
        for (i, step) in wf.steps.iter().enumerate().take(ended).skip(self.seen_steps) {
            let failed = wf.status == WorkflowStatus::Failed && i + 1 == wf.steps.len();
            let mark = if failed {
                output::red_err("x")
            } else {
                output::green_err("+")
            };
            let took = output::millis(i64::try_from(step.elapsed_ms).unwrap_or(i64::MAX));
            self.line(&format!("  {mark} {:<10} {}", step.step, output::dim_err(&took)));
        }
        self.seen_steps = self.seen_steps.max(ended);
        if over {
            return;
        }
        match &wf.progress {
            Some(p) if p.total_bytes > 0 => self.bytes(&wf.step, p),
            _ => self.doing(&wf.step),
        }
    }

    /// Takes the moving line away.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        self.end();
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("  {spinner} {msg}  {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .tick_chars("|/-\\ ")
}

/// What the search says of machines that only a lack of better ones brings into a race.
fn is_warning(line: &str) -> bool {
    ["went below the bar", "the best that is left"]
        .iter()
        .any(|start| line.starts_with(start))
}

/// The lines of `now` that were not in `before`; the server keeps only the newest 100.
fn new_lines<'a>(before: &[String], now: &'a [String]) -> &'a [String] {
    for start in 0..=before.len() {
        let tail = &before[start..];
        if now.starts_with(tail) {
            return &now[tail.len()..];
        }
    }
    now
}

/// Waits for a workflow to end and shows what it does.
///
/// # Errors
/// The workflow's own error, under the name of the step it failed in; a server that stays
/// away for half a minute; Ctrl-C, which only stops the waiting.
pub async fn follow(client: &Client, id: &str, quiet: bool) -> Result<Workflow> {
    let wf = until_ended(client, id, quiet).await?;
    match wf.status {
        WorkflowStatus::Failed => Err(error_of(&wf)),
        WorkflowStatus::Running | WorkflowStatus::Done => Ok(wf),
    }
}

/// The same for whoever only needs it out of the way: its own error is none.
pub async fn until_ended(client: &Client, id: &str, quiet: bool) -> Result<Workflow> {
    let interrupted = tokio::signal::ctrl_c();
    tokio::select! {
        biased;
        done = watch(client, id, quiet) => done,
        _ = interrupted => Err(fail(
            "interrupted",
            format!("stopped waiting; the server goes on with workflow {id}"),
            "see `dumont workspace list`; a workspace that is not needed: `dumont workspace delete NAME`",
        )),
    }
}

/// For whoever does not wait for a deploy: what it says while it looks for machines, warnings
/// among them, and its error if it finds none. A server that goes away meanwhile, or a search
/// that takes long, ends the looking and is no error.
pub async fn until_chosen(client: &Client, id: &str, quiet: bool) -> Result<()> {
    if quiet {
        return Ok(());
    }
    let mut show = Show::new(quiet);
    let path = workflow_path(id);
    let begin = Instant::now();
    while begin.elapsed() < SEARCH_SHOWN {
        let Ok(wf) = client.get::<Workflow>(&path).await else {
            break;
        };
        show.workflow(&wf);
        match wf.status {
            WorkflowStatus::Failed => return Err(error_of(&wf)),
            WorkflowStatus::Running if wf.step == Step::Search.as_str() => {}
            _ => break,
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn workflow_path(id: &str) -> String {
    format!("/workflows/{}", encode(id))
}

async fn watch(client: &Client, id: &str, quiet: bool) -> Result<Workflow> {
    let mut show = Show::new(quiet);
    let path = workflow_path(id);
    let mut away: Option<Instant> = None;
    loop {
        match client.get::<Workflow>(&path).await {
            Ok(wf) => {
                away = None;
                show.workflow(&wf);
                if wf.status != WorkflowStatus::Running {
                    return Ok(wf);
                }
            }
            Err(e) if is_unreachable(&e) => {
                let since = *away.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    return Err(e);
                }
                show.doing("the server is away, waiting for it");
            }
            Err(e) => return Err(e),
        }
        tokio::time::sleep(POLL).await;
    }
}

fn error_of(wf: &Workflow) -> anyhow::Error {
    let what = format!(
        "{} of {} failed in step {}",
        output::word(&wf.kind),
        wf.workspace,
        wf.step
    );
    match &wf.error {
        Some(body) => ErrorBody {
            message: format!("{what}: {}", body.message),
            ..body.clone()
        }
        .into(),
        None => fail("workflow_failed", what, "look at the server's log"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rolling_log_shows_each_line_once() {
        let lines = |r: std::ops::Range<u32>| r.map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(new_lines(&[], &lines(0..3)), lines(0..3));
        assert_eq!(new_lines(&lines(0..3), &lines(0..5)), lines(3..5));
        assert_eq!(new_lines(&lines(0..100), &lines(2..102)), lines(100..102));
        assert_eq!(new_lines(&lines(0..3), &lines(0..3)), lines(0..0));
        assert_eq!(new_lines(&lines(0..3), &lines(200..203)), lines(200..203));
    }
}
