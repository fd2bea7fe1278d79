//! `dumont deploy` without arguments: asks for what a deploy needs, shows what is on the
//! market with each machine's record, and rents nothing before the last yes.

use super::{OnArgs, show_record};
use crate::badge;
use crate::cli::offers::{self, HEADER, RIGHT, rows};
use crate::cli::spec::{self, SpecArgs};
use crate::cli::workspace::{self, Creation, gpu};
use crate::client::Client;
use crate::config::Globals;
use crate::fail::{fail, usage};
use crate::output::{self, Styled, safe};
use anyhow::Result;
use dialoguer::theme::{ColorfulTheme, SimpleTheme, Theme};
use dialoguer::{Confirm, Input, Select};
use dumont_core::id::WorkspaceName;
use dumont_core::level::{Action, Colour};
use dumont_core::spec::WorkspaceSpec;
use dumont_wire::offers::{Offer, OfferPage, OfferQuery};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// Offers shown: as many as a person reads.
const SHOWN: u32 = 10;
/// Machines of a race that has no width of its own.
const RACE: usize = 3;

pub async fn run(globals: &Globals) -> Result<()> {
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Err(usage(
            "without arguments `dumont deploy` asks questions, and there is no terminal to ask on",
            "say it all at once: dumont deploy NAME --gpu \"RTX 4090\" --max-price 0.50 --from DIR",
        ));
    }
    let client = globals.client()?;
    let tidy = leave_tidily();
    let market = offers::ask(
        &client,
        &OfferQuery {
            limit: Some(500),
            ..OfferQuery::default()
        },
    )
    .await?;
    let gpu = ask_gpu(&market)?;
    let max_price = ask_price()?;
    let from = ask_directory()?;
    let name = ask_name(from.as_deref())?;
    let spec = spec::build(
        &name,
        &SpecArgs {
            gpu,
            max_price,
            image: Some(ask_image()?),
            start: ask_start()?,
            ..SpecArgs::default()
        },
    )?;
    let page = shown_offers(&client, &spec).await?;
    let on = ask_machine(&page.items, &spec)?;
    show_record(globals, &client, &on, spec.gpu.cuda).await?;
    if !confirmed(&spec, &on, &page.items)? {
        return Err(nothing_rented());
    }
    // From here on Ctrl-C only stops the waiting.
    tidy.abort();
    let wanted = Creation {
        spec,
        from,
        deploy: Some(on.body()),
        wait: true,
    };
    workspace::create(globals, &client, wanted).await
}

fn nothing_rented() -> anyhow::Error {
    fail(
        "not_confirmed",
        "nothing was rented",
        "run `dumont deploy` again when you are ready",
    )
}

/// A terminal that goes away in the middle.
fn broken(e: dialoguer::Error) -> anyhow::Error {
    let hint = "say it all at once: `dumont deploy --help`";
    fail("no_terminal", format!("the terminal does not answer: {e}"), hint)
}

fn theme() -> Box<dyn Theme> {
    if output::coloured_err() {
        Box::new(ColorfulTheme::default())
    } else {
        Box::new(SimpleTheme)
    }
}

/// One of a list; Esc leaves.
fn choose<T: Display>(question: &str, mut choices: Vec<T>) -> Result<T> {
    let theme = theme();
    let chosen = Select::with_theme(theme.as_ref())
        .with_prompt(question)
        .items(&choices)
        .default(0)
        .max_length(12)
        .interact_opt()
        .map_err(broken)?;
    match chosen {
        Some(at) if at < choices.len() => Ok(choices.swap_remove(at)),
        _ => Err(nothing_rented()),
    }
}

/// A line of text that `check` accepts; it is asked for until it does. `default` stands in for
/// an empty one.
fn ask(question: &str, default: &str, check: impl Fn(&str) -> Result<(), String>) -> Result<String> {
    let theme = theme();
    let mut input = Input::<String>::with_theme(theme.as_ref())
        .with_prompt(question)
        .allow_empty(true)
        .validate_with(|text: &String| check(text.trim()));
    if !default.is_empty() {
        input = input.default(default.to_owned());
    }
    Ok(input.interact_text().map_err(broken)?.trim().to_owned())
}

/// One line of the list of GPUs.
struct GpuChoice {
    /// `None` is any.
    name: Option<String>,
    text: String,
}

impl Display for GpuChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// What is there now, by name, each with its lowest price.
fn gpu_choices(market: &[Offer]) -> Vec<GpuChoice> {
    let mut by_name: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    for offer in market {
        let (machines, least) = by_name.entry(&offer.gpu_name).or_insert((0, f64::INFINITY));
        *machines += 1;
        *least = least.min(offer.dph_total);
    }
    let any = GpuChoice {
        name: None,
        text: "any GPU".into(),
    };
    let named = by_name.into_iter().map(|(name, (machines, least))| GpuChoice {
        name: Some(name.to_owned()),
        text: format!(
            "{}  from ${least:.3}/h, {}",
            safe(name),
            output::count(machines as u64, "machine")
        ),
    });
    std::iter::once(any).chain(named).collect()
}

fn ask_gpu(market: &OfferPage) -> Result<Option<String>> {
    let mut choices = gpu_choices(&market.items);
    choices.push(GpuChoice {
        name: Some(String::new()),
        text: "another one, by name".into(),
    });
    let chosen = choose("Which GPU? (of the cheapest on the market now)", choices)?;
    match chosen.name {
        Some(name) if name.is_empty() => ask("Its marketplace name, e.g. H100 SXM", "", required).map(Some),
        other => Ok(other),
    }
}

fn required(text: &str) -> Result<(), String> {
    if text.is_empty() {
        Err("say something, or press Ctrl-C to leave".into())
    } else {
        Ok(())
    }
}

/// Dollars per hour; nothing is no limit.
fn price(text: &str) -> Result<Option<f64>, &'static str> {
    match text.trim().trim_start_matches('$') {
        "" => Ok(None),
        number => match number.parse::<f64>() {
            Ok(n) if n.is_finite() && n > 0.0 => Ok(Some(n)),
            _ => Err("a number of dollars like 0.50, or nothing for no limit"),
        },
    }
}

fn ask_price() -> Result<Option<f64>> {
    let check = |text: &str| price(text).map(drop).map_err(str::to_owned);
    let text = ask("The most to pay, dollars per hour (empty: no limit)", "", check)?;
    Ok(price(&text).unwrap_or(None))
}

fn ask_directory() -> Result<Option<PathBuf>> {
    let check = |text: &str| {
        if text.is_empty() || Path::new(text).is_dir() {
            Ok(())
        } else {
            Err("there is no such directory".to_owned())
        }
    };
    let text = ask("Directory to start from (empty: none)", "", check)?;
    Ok(Some(PathBuf::from(text)).filter(|p| !p.as_os_str().is_empty()))
}

/// A name that follows the rules, out of the directory's.
fn suggested(from: Option<&Path>) -> String {
    let stem = from
        .and_then(|p| p.canonicalize().ok())
        .and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()))
        .unwrap_or_default();
    let dashed: String = stem
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(40)
        .collect();
    let name = dashed.trim_matches('-');
    if name.is_empty() {
        "workspace".into()
    } else {
        name.into()
    }
}

fn ask_name(from: Option<&Path>) -> Result<WorkspaceName> {
    let check = |text: &str| match text.parse::<WorkspaceName>() {
        Ok(_) => Ok(()),
        Err(e) => Err(e.rule.to_owned()),
    };
    Ok(ask("What to call the workspace", &suggested(from), check)?.parse()?)
}

fn ask_image() -> Result<String> {
    ask("Container image", "pytorch/pytorch:latest", required)
}

fn ask_start() -> Result<Option<String>> {
    let text = ask(
        "Command that starts your workload (empty: only keep the files)",
        "",
        |_| Ok(()),
    )?;
    Ok(Some(text).filter(|t| !t.is_empty()))
}

/// Asks the market again, for what was said, and shows the best.
async fn shown_offers(client: &Client, spec: &WorkspaceSpec) -> Result<OfferPage> {
    let query = OfferQuery {
        gpu: spec.gpu.name.clone(),
        gpu_count: Some(spec.gpu.count),
        max_price: spec.max_price,
        disk_gb: Some(spec.disk_gb),
        cuda: spec.gpu.cuda,
        limit: Some(SHOWN),
        ..OfferQuery::default()
    };
    let page = offers::ask(client, &query).await?;
    if page.items.is_empty() {
        return Err(fail(
            "no_offers",
            format!(
                "no offer fits: {} found, {} blacklisted",
                page.found, page.blacklisted_hidden
            ),
            "ask again with a higher price or another GPU; `dumont offers` shows the market",
        ));
    }
    output::note("");
    for line in output::styled_lines(&HEADER, &RIGHT, &rows(&page.items), output::coloured_err()) {
        output::note(&line);
    }
    if page.blacklisted_hidden > 0 {
        let left_out = output::count(page.blacklisted_hidden, "blacklisted machine");
        output::note(&format!("{left_out} left out."));
    }
    if let Some(warning) = warning(&page.items, racers(spec)) {
        output::note(&output::paint_err(&warning));
    }
    output::note("");
    Ok(page)
}

/// What is said when the machines that a race would take have a bad record.
fn warning(offers: &[Offer], racers: usize) -> Option<Styled> {
    let raced: Vec<&Offer> = offers.iter().take(racers).collect();
    let doubtful = raced
        .iter()
        .filter(|o| {
            matches!(
                badge::level_of(&o.reliability_status).action(),
                Action::Warn | Action::Alert
            )
        })
        .count();
    let text = match doubtful {
        0 => return None,
        n if n == raced.len() => "warning: only machines with a poor record are left; a higher price or another GPU may find better ones".into(),
        n => format!("warning: {n} of the {} machines to race have failed often before", raced.len()),
    };
    Some(Styled::new(text, Colour::Orange))
}

/// One line of the list of machines.
struct MachineChoice {
    on: OnArgs,
    text: String,
}

impl Display for MachineChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// Machines looked at as those that a race takes; by default the race widens as it goes.
fn racers(spec: &WorkspaceSpec) -> usize {
    spec.failover.racers.map_or(RACE, |n| n as usize)
}

fn machine_choices(offers: &[Offer], racers: usize) -> Vec<MachineChoice> {
    let race = MachineChoice {
        on: OnArgs::default(),
        text: match racers.min(offers.len()) {
            0 | 1 => "rent the best".into(),
            _ => "race the best, keep the first that is ready".into(),
        },
    };
    let each = offers.iter().filter_map(|o| {
        let machine = format!("{}:{}", o.provider, o.machine_id).parse().ok()?;
        let record = match o.successful_attempts + o.failed_attempts {
            0 => "never tried".to_owned(),
            _ => badge::rate(o.successful_attempts, o.failed_attempts).text,
        };
        Some(MachineChoice {
            text: format!(
                "only {machine}  {}, ${:.3}/h, {record}",
                safe(&gpu(&o.gpu_name, o.num_gpus)),
                o.dph_total
            ),
            on: OnArgs {
                machine: Some(machine),
                allow_blacklisted: false,
            },
        })
    });
    std::iter::once(race).chain(each).collect()
}

fn ask_machine(offers: &[Offer], spec: &WorkspaceSpec) -> Result<OnArgs> {
    let choices = machine_choices(offers, racers(spec));
    Ok(choose("Which machines?", choices)?.on)
}

fn confirmed(spec: &WorkspaceSpec, on: &OnArgs, offers: &[Offer]) -> Result<bool> {
    let most = offers
        .iter()
        .filter(|o| on.machine.as_ref().is_none_or(|m| m.machine_id == o.machine_id))
        .take(racers(spec))
        .map(|o| o.dph_total)
        .fold(0.0, f64::max);
    let what = match &on.machine {
        Some(machine) => format!("rent {machine}"),
        None => "race".to_owned(),
    };
    let question = format!(
        "Deploy {}: {what}, up to ${most:.3}/h for the one that is kept?",
        spec.name
    );
    let theme = theme();
    let answer = Confirm::with_theme(theme.as_ref())
        .with_prompt(question)
        .default(true)
        .interact_opt()
        .map_err(broken)?;
    Ok(answer.unwrap_or(false))
}

/// Ctrl-C ends the process by its signal; the cursor that a list has hidden comes back first.
fn leave_tidily() -> tokio::task::AbortHandle {
    let watch = async {
        if tokio::signal::ctrl_c().await.is_ok() {
            let _ = dialoguer::console::Term::stderr().show_cursor();
            output::note("\nnothing was rented");
            std::process::exit(130);
        }
    };
    tokio::spawn(watch).abort_handle()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::offers::tests::offer;

    #[test]
    fn gpus_are_listed_once_with_the_lowest_price() {
        let mut cheap = offer("2", 0, 0, "unknown");
        cheap.dph_total = 0.2;
        let choices = gpu_choices(&[offer("1", 0, 0, "unknown"), cheap]);
        let texts: Vec<String> = choices.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["any GPU", "RTX 4090  from $0.200/h, 2 machines"]);
    }

    #[test]
    fn prices_are_read_as_people_write_them() {
        assert_eq!(price(" $0.5 "), Ok(Some(0.5)));
        assert_eq!(price(""), Ok(None));
        assert!(
            price("0").is_err() && price("-1").is_err() && price("cheap").is_err() && price("inf").is_err()
        );
    }

    #[test]
    fn a_name_is_suggested_that_follows_the_rules() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("My_Project (2)");
        std::fs::create_dir(&odd).unwrap();
        assert_eq!(suggested(Some(&odd)), "my-project--2");
        assert_eq!(suggested(None), "workspace");
        assert!(suggested(Some(&odd)).parse::<WorkspaceName>().is_ok());
    }

    #[test]
    fn it_warns_when_what_is_left_has_a_bad_record() {
        let (good, fair, poor) = (
            offer("1", 9, 1, "good"),
            offer("2", 5, 5, "fair"),
            offer("3", 3, 7, "poor"),
        );
        assert_eq!(warning(std::slice::from_ref(&good), 3), None);
        let some = warning(&[good, fair.clone(), poor.clone()], 3).unwrap().text;
        assert!(some.contains("2 of the 3"), "{some}");
        let all = warning(&[fair, poor], 3).unwrap().text;
        assert!(all.contains("only machines with a poor record"), "{all}");
    }
}
