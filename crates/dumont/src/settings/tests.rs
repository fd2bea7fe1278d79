use super::*;
use crate::fail::body_of;
use dumont_server::Database;
use std::fs;
use tempfile::TempDir;

/// A made-up home with nothing in it.
struct Place {
    dir: TempDir,
    around: Surroundings,
}

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let mut around = Surroundings {
            working_dir: Some(dir.path().join("cwd")),
            ..Surroundings::default()
        };
        let home = dir.path().join("home").display().to_string();
        around.environment.insert("HOME".into(), home);
        Self { dir, around }
    }

    fn env(mut self, pairs: &[(&str, &str)]) -> Self {
        let pairs = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        self.around.environment.extend(pairs);
        self
    }

    fn file(self, path: &str, text: &str) -> Self {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn load(&self) -> Result<Settings> {
        Settings::load(&self.around)
    }

    fn message(&self) -> String {
        let body = body_of(&self.load().err().expect("an error"));
        format!("{} {}", body.message, body.hint)
    }
}

type Step = fn(Place) -> Place;

const USER: &str = "home/.config/dumont/config.toml";
const OWN: &str = "home/.local/share/dumont/config.toml";

#[test]
fn the_nearest_source_wins_and_is_known() {
    let name = "MIN_ATTEMPTS_FOR_BLACKLIST";
    let steps: [(&str, Step); 5] = [
        ("3 default", |p| p),
        ("4 config.toml", |p| {
            p.file(USER, "min_attempts_for_blacklist = 4")
        }),
        ("5 config.toml", |p| {
            p.file(OWN, "min_attempts_for_blacklist = \"5\"")
        }),
        ("6 .env", |p| {
            p.file("cwd/.env", "MIN_ATTEMPTS_FOR_BLACKLIST=6\nOTHERS=x\n")
        }),
        ("7 environment", |p| p.env(&[("MIN_ATTEMPTS_FOR_BLACKLIST", "7")])),
    ];
    let mut place = Place::new();
    for (expected, step) in steps {
        place = step(place);
        let mut settings = place.load().unwrap();
        let value = settings.value(name).unwrap();
        let source = value.source.to_string();
        let source = source.rsplit('/').next().unwrap();
        assert_eq!(format!("{} {source}", value.text), expected);
        settings.given(name, "--option", Some(8));
        assert_eq!(settings.text(name), Some("8"));
        assert_eq!(settings.value(name).unwrap().source.to_string(), "--option");
    }
    let place = place.env(&[(name, " ")]);
    assert_eq!(place.load().unwrap().text(name), Some("6"), "empty is unset");
}

#[test]
fn a_file_that_is_named_is_the_only_one_and_must_be_there() {
    let mut place = Place::new()
        .file(USER, "db_name = 'a'")
        .file("own.toml", "db_user = 'b'");
    place.around.config = Some(place.dir.path().join("own.toml"));
    let settings = place.load().unwrap();
    assert_eq!(
        (settings.text("DB_NAME"), settings.text("DB_USER")),
        (None, Some("b"))
    );
    assert_eq!(settings.files.len(), 1);
    place.around.config = Some(place.dir.path().join("none.toml"));
    assert!(place.message().contains("none.toml"));
}

#[test]
fn the_data_directory_is_found_before_its_file_is_read() {
    let mut place = Place::new().file("data/config.toml", "dumont_listen = '127.0.0.1:1'");
    let data = place.dir.path().join("data").display().to_string();
    place = place.file("cwd/.env", &format!("DUMONT_DATA_DIR={data}"));
    assert_eq!(place.load().unwrap().text("DUMONT_LISTEN"), Some("127.0.0.1:1"));
    place = place.file("data/config.toml", "dumont_data_dir = '/elsewhere'");
    assert!(place.message().contains("moves the data directory"));
    place.around.data_dir = Some(place.dir.path().join("other"));
    let settings = place.load().unwrap();
    assert_eq!(
        settings.value("DUMONT_DATA_DIR").unwrap().source.to_string(),
        "--data-dir"
    );
}

#[test]
fn mistakes_name_their_place_and_no_secret() {
    let cases = [
        (USER, "min_succes_rate = 0.5", "no setting \"min_succes_rate\""),
        (USER, "x\n\ndb_password = hidden", "line 1"),
        (USER, "db_user = 'u'\ndb_password = hidden", "line 2"),
        (USER, "db_password = ['hidden']", "text or a number"),
        (USER, "min_success_rate = 1.5", "MIN_SUCCESS_RATE"),
        (USER, "temporary_blacklist_hours = -1", "from 1 to 87600"),
        (USER, "blacklist_rules = 'strict'", "one of: default, literal"),
        (
            USER,
            "critical_failure_reasons = 'It broke!'",
            "words with commas",
        ),
        (USER, "release_blacklist_below = 1000", "from 0 to 64"),
        ("cwd/.env", "INTERRUPT_WINDOW_DAYS=0", "from 1 to 365"),
        ("cwd/.env", "DB_PASSWORD=hidden word", "DB_PASSWORD"),
        ("cwd/.env", "DB_PORT=70000", "from 1 to 65535"),
        ("cwd/.env", "DUMONT_LISTEN=everywhere", "DUMONT_LISTEN"),
    ];
    for (file, text, expected) in cases {
        let message = Place::new().file(file, text).message();
        assert!(message.contains(expected), "{text}: {message}");
        assert!(
            message.contains(file.rsplit('/').next().unwrap()),
            "{text}: {message}"
        );
        assert!(!message.contains("hidden"), "{message}");
    }
    // What others write for themselves is theirs.
    Place::new()
        .file("cwd/.env", "GREETING=hello world\n= =\n")
        .load()
        .unwrap();
}

fn database(vars: &[(&str, &str)]) -> Result<Database> {
    Place::new().env(vars).load().unwrap().database()
}

fn url(vars: &[(&str, &str)]) -> String {
    match database(vars).unwrap() {
        Database::Postgres { url } => url,
        Database::Embedded => panic!("embedded"),
    }
}

#[test]
fn any_of_its_variables_asks_for_postgres() {
    assert_eq!(database(&[]).unwrap(), Database::Embedded);
    let both = [("DATABASE_URL", "postgres://u@h/d"), ("DB_PORT", "1")];
    assert_eq!(url(&both), "postgres://u@h/d");
    let least = [("DB_USER", "dumont"), ("DB_NAME", "dumont_cloud")];
    assert_eq!(url(&least), "postgres://dumont@localhost:5432/dumont%5Fcloud");
    for (host, expected) in [
        ("::1", "[::1]"),
        ("db.example", "db.example"),
        ("/run/pg", "%2Frun%2Fpg"),
    ] {
        let url = url(&[
            ("DB_USER", "u"),
            ("DB_NAME", "n"),
            ("DB_HOST", host),
            ("DB_PORT", "6000"),
        ]);
        assert_eq!(url, format!("postgres://u@{expected}:6000/n"));
    }
    for asked in ["DB_USER", "DB_PASSWORD", "DB_HOST", "DB_PORT", "DB_NAME"] {
        let body = body_of(&database(&[(asked, "1")]).unwrap_err());
        let missing = if asked == "DB_USER" { "DB_NAME" } else { "DB_USER" };
        assert_eq!(
            body.message,
            format!("{asked} asks for PostgreSQL, but {missing} is not set")
        );
        assert!(body.hint.contains("(from environment)"), "{}", body.hint);
    }
}

#[test]
fn a_password_may_hold_anything() {
    let password = "p@ss:w/rd?#%41 $é&=+";
    let made = url(&[("DB_USER", "u@x"), ("DB_NAME", "n/m"), ("DB_PASSWORD", password)]);
    let read = url::Url::parse(&made).unwrap();
    let decode = |text: &str| {
        percent_encoding::percent_decode_str(text)
            .decode_utf8()
            .unwrap()
            .into_owned()
    };
    assert_eq!(decode(read.password().unwrap()), password);
    assert_eq!(
        (decode(read.username()), decode(read.path())),
        ("u@x".into(), "/n/m".into())
    );
    assert_eq!(redacted(&made), "postgres://u%40x:***@localhost:5432/n%2Fm");
}

#[test]
fn secrets_in_urls_are_hidden() {
    assert_eq!(
        redacted("postgres://u:secret@h:1/d?sslmode=require&password=secret&sslkey=secret"),
        "postgres://u:***@h:1/d?sslmode=require&password=***&sslkey=***"
    );
    for no_url in ["secret", "u:secret@h", "data:secret"] {
        assert_eq!(redacted(no_url), "***");
    }
}

#[test]
fn the_table_is_consistent() {
    for (at, setting) in SETTINGS.iter().enumerate() {
        assert!(
            !SETTINGS[..at].iter().any(|s| s.name == setting.name),
            "{}",
            setting.name
        );
        let secret = ["PASSWORD", "TOKEN", "SECRET", "API_KEY", "APPLICATION_KEY"]
            .iter()
            .any(|word| setting.name.contains(word));
        assert!(
            !secret || setting.shown("secret") == "***",
            "{} is a secret",
            setting.name
        );
    }
    for name in dumont_server::objects::s3::VARIABLES {
        assert!(SETTINGS.iter().any(|s| s.name == *name), "{name} is missing");
    }
    // Whatever the two documents read from their environment.
    for name in [
        "DATABASE_URL",
        "DB_USER",
        "DB_PASSWORD",
        "DB_HOST",
        "DB_PORT",
        "DB_NAME",
        "B2_KEY_ID",
        "B2_APPLICATION_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "PERIODIC_SNAPSHOT_INTERVAL_MINUTES",
    ] {
        assert!(SETTINGS.iter().any(|s| s.name == name), "{name} is missing");
    }
    let defaults = Place::new().load().unwrap();
    let every: u64 = defaults.required("PERIODIC_SNAPSHOT_INTERVAL_MINUTES").unwrap();
    assert_eq!(every, 60, "what the document says");
    let ours = crate::cli::serve::blacklist(&defaults).unwrap();
    assert_eq!(
        ours,
        dumont_core::blacklist::Settings::default(),
        "what the documents say"
    );
}

#[test]
fn every_threshold_of_the_rules_can_be_set() {
    let text = "blacklist_rules = 'literal'\nmin_attempts_for_blacklist = 4\nmin_success_rate = 0.25\n\
                automatic_blacklist_days = 5\ntemporary_blacklist_hours = 6\n\
                consecutive_failures_for_blacklist = 7\ninterrupts_for_blacklist = 8\n\
                interrupt_window_days = 9\ncritical_failure_reasons = 'hardware_error, their_word'\n\
                release_blacklist_below = 0";
    let settings = Place::new().file(USER, text).load().unwrap();
    // Every field is named, so that a new one is missed here.
    let expected = dumont_core::blacklist::Settings {
        rules: dumont_core::blacklist::RuleSet::Literal,
        min_attempts: 4,
        min_success_rate: 0.25,
        automatic_days: 5,
        temporary_hours: 6,
        consecutive_failures: 7,
        interrupts: 8,
        interrupt_days: 9,
        critical: vec!["hardware_error".into(), "their_word".into()],
        release_when_below: Some(0),
    };
    assert_eq!(crate::cli::serve::blacklist(&settings).unwrap(), expected);
    let none = Place::new()
        .file(USER, "critical_failure_reasons = 'none'")
        .load()
        .unwrap();
    assert_eq!(crate::cli::serve::blacklist(&none).unwrap().critical, []);
}
