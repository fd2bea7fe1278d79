//! `dumont token`: who may use the API.

use crate::client::encode;
use crate::config::Globals;
use crate::fail::fail;
use crate::output;
use anyhow::Result;
use clap::Subcommand;
use dumont_wire::rest::{CreateToken, NewToken, Token};

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it; it is shown this once
    ///
    /// Every token may do everything. Give each person and each program one of its own, so that
    /// one can be taken away. Who has lost them all starts `dumont serve` again: it puts a new
    /// one into admin.token in its data directory.
    Create {
        /// Whose it is, for the list
        name: String,
    },
    /// List the tokens, revoked ones too, without their secrets
    List,
    /// Take a token out of force, from the next request on
    Revoke {
        /// Its id, or its name if only one token in force has it
        #[arg(value_name = "ID|NAME")]
        which: String,
    },
}

pub async fn run(globals: &Globals, command: TokenCommand) -> Result<()> {
    match command {
        TokenCommand::Create { name } => create(globals, name).await,
        TokenCommand::List => list(globals).await,
        TokenCommand::Revoke { which } => revoke(globals, &which).await,
    }
}

async fn create(globals: &Globals, name: String) -> Result<()> {
    let made: NewToken = globals.client()?.post("/tokens", &CreateToken { name }).await?;
    if globals.json {
        return output::json(&made);
    }
    // Alone on stdout: DUMONT_TOKEN=$(dumont token create ci)
    output::line(&made.token);
    if !globals.quiet {
        output::note(&format!(
            "Keep it now, it is not shown again. Give it as DUMONT_TOKEN; take it back with `dumont token revoke {}`.",
            made.id
        ));
    }
    Ok(())
}

async fn list(globals: &Globals) -> Result<()> {
    let all: Vec<Token> = globals.client()?.list("/tokens").await?;
    if globals.json {
        return output::json(&all);
    }
    let rows: Vec<_> = all
        .iter()
        .map(|t| {
            vec![
                t.id.clone(),
                t.name.clone(),
                output::ago(t.created_at),
                output::or_dash(t.last_used_at.map(output::ago)),
                t.revoked_at
                    .map_or_else(|| "in force".into(), |at| format!("revoked {}", output::ago(at))),
            ]
        })
        .collect();
    output::table(&["ID", "NAME", "MADE", "LAST USED", "STATE"], &[], &rows);
    Ok(())
}

async fn revoke(globals: &Globals, which: &str) -> Result<()> {
    let client = globals.client()?;
    let all: Vec<Token> = client.list("/tokens").await?;
    let id = chosen(&all, which)?;
    let revoked: Token = client.delete(&format!("/tokens/{}", encode(id))).await?;
    if globals.json {
        return output::json(&revoked);
    }
    output::note(&format!("Token {} ({}) is revoked.", revoked.name, revoked.id));
    Ok(())
}

/// By id, else by a name that only one token in force has.
fn chosen<'a>(all: &'a [Token], wanted: &str) -> Result<&'a str> {
    if let Some(found) = all.iter().find(|t| t.id == wanted) {
        return Ok(&found.id);
    }
    let mut named = all.iter().filter(|t| t.name == wanted && t.revoked_at.is_none());
    match (named.next(), named.next()) {
        (Some(only), None) => Ok(&only.id),
        (Some(_), Some(_)) => Err(fail(
            "token_ambiguous",
            format!("several tokens are called {wanted:?}"),
            "name one by its id: dumont token list",
        )),
        _ => Err(fail(
            "token_not_found",
            format!("no token in force has the id or name {wanted:?}"),
            "`dumont token list` shows those there are",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dumont_core::time::Timestamp;

    fn token(id: &str, name: &str, revoked: bool) -> Token {
        Token {
            id: id.into(),
            name: name.into(),
            created_at: Timestamp(1),
            last_used_at: None,
            revoked_at: revoked.then_some(Timestamp(2)),
        }
    }

    #[test]
    fn a_name_must_say_which_one() {
        let all = [
            token("1", "ci", true),
            token("2", "ci", false),
            token("3", "me", false),
            token("4", "me", false),
            token("5", "old", true),
        ];
        assert_eq!(chosen(&all, "ci").unwrap(), "2");
        assert_eq!(chosen(&all, "1").unwrap(), "1");
        let code = |wanted| crate::fail::body_of(&chosen(&all, wanted).unwrap_err()).code;
        assert_eq!(code("me"), "token_ambiguous");
        assert_eq!(code("old"), "token_not_found");
    }
}
