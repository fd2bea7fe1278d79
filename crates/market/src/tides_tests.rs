use super::*;
use crate::offers::Universe;
use crate::presets::Preset;

const FRESH: Image<'_> = Image {
    name: "pytorch/pytorch:latest",
    idle_h: None,
};

fn with<T>(preset: Preset, machines: usize, what: impl FnOnce(&Universe, &Tides<'_>) -> T) -> T {
    let universe = Universe::from_seed(3, machines);
    let weather = preset.weather().expect("a market with weather");
    let tides = Tides {
        seed: 3,
        weather: &weather,
        operators: machines / 2,
    };
    what(&universe, &tides)
}

fn share(hits: usize, of: usize) -> f64 {
    hits as f64 / of as f64
}

#[test]
fn as_many_work_as_the_model_says_and_the_same_for_the_same_seed() {
    with(Preset::Vast, 2_000, |universe, tides| {
        let fates = |nth| -> Vec<Fate> {
            let all = universe.machines.iter();
            all.map(|m| tides.fate(m, nth, FRESH, 5.0)).collect()
        };
        assert_eq!(fates(0), fates(0));
        assert_ne!(fates(0), fates(1));
        let works = fates(0).iter().filter(|f| f.outcome == Outcome::Works).count();
        // 0.85 x 0.95 + 0.15 x 0.30, less the offers that are gone and what breaks together.
        let works = share(works, 2_000);
        assert!((0.72..0.86).contains(&works), "{works} of deploys work");
    });
    with(Preset::Hell, 2_000, |universe, tides| {
        let works = universe
            .machines
            .iter()
            .filter(|m| tides.fate(m, 0, FRESH, 5.0).outcome == Outcome::Works);
        let works = share(works.count(), 2_000);
        assert!(works < 0.5, "{works} work in hell");
    });
}

#[test]
fn a_second_pull_is_faster_than_the_first() {
    with(Preset::Vast, 1_000, |universe, tides| {
        let median = |idle_h| {
            let image = Image { idle_h, ..FRESH };
            let all = universe.machines.iter();
            let mut all: Vec<f64> = all.map(|m| tides.fate(m, 0, image, 5.0).boot.loading_s).collect();
            all.sort_by(f64::total_cmp);
            all[500]
        };
        assert!(
            median(None) > 1.2 * median(Some(1.0)),
            "{} {}",
            median(None),
            median(Some(1.0))
        );
        assert_eq!(median(None), median(Some(24.0 * 30.0)));
    });
}

#[test]
fn lemons_heal_and_hosts_rot_and_bad_ones_sit_together() {
    with(Preset::Vast, 2_000, |universe, tides| {
        let bad = |m: &Machine, hour| tides.quality(m, hour) < 0.5;
        let all = || universe.machines.iter();
        let lemons = share(all().filter(|m| bad(m, 0.0)).count(), 2_000);
        assert!((0.10..0.20).contains(&lemons), "{lemons} are lemons");
        let year = 24.0 * 365.0;
        assert!(all().any(|m| bad(m, 0.0) && !bad(m, year)));
        assert!(all().any(|m| !bad(m, 0.0) && bad(m, year)));
        assert!(all().all(|m| bad(m, 0.0) == bad(m, 0.0)));
        // A machine whose neighbour at the same host is a lemon is one itself more often.
        let host_has = |m: &Machine| {
            all().any(|o| o.host_id == m.host_id && o.machine_id != m.machine_id && bad(o, 0.0))
        };
        let near = all().filter(|m| host_has(m)).count();
        let both = all().filter(|m| host_has(m) && bad(m, 0.0)).count();
        assert!(share(both, near) > 1.3 * lemons, "{both} of {near}");
    });
}

#[test]
fn offers_come_and_go() {
    with(Preset::Vast, 1_000, |universe, tides| {
        let present = |hour| {
            universe
                .machines
                .iter()
                .filter(|m| tides.present(m, hour))
                .count()
        };
        let now = share(present(0.0), 1_000);
        // Beta(0.25, 0.28) has mean 0.47.
        assert!((0.40..0.54).contains(&now), "{now} are on offer");
        let stay = universe
            .machines
            .iter()
            .filter(|m| tides.present(m, 0.0) && tides.present(m, 24.0))
            .count();
        assert!(share(stay, present(0.0)) < 0.95);
    });
}

#[test]
fn an_operator_loses_all_his_machines_at_once() {
    with(Preset::Hell, 300, |universe, tides| {
        let all = || universe.machines.iter();
        let hours = (0..100).map(f64::from);
        let first = |hour: f64| Some((hour, all().find(|m| tides.outage(m, hour))?));
        let (hour, lost) = hours
            .filter_map(first)
            .next()
            .expect("in hell somebody is down some day");
        for machine in all().filter(|m| m.host_id == lost.host_id) {
            assert!(tides.outage(machine, hour));
        }
        assert!(all().any(|m| !tides.outage(m, hour)));
    });
}

#[test]
fn bids_and_prices_move() {
    with(Preset::Hell, 200, |universe, tides| {
        let rivals = universe
            .machines
            .iter()
            .filter(|m| tides.rival(m, 1.0) > 1.0)
            .count();
        assert!((0.3..0.5).contains(&share(rivals, 200)), "{rivals} of 200");
        let machine = &universe.machines[0];
        let seen: std::collections::BTreeSet<u64> = (0..50)
            .map(|h| tides.price_factor(machine, f64::from(h)).to_bits())
            .collect();
        assert!(seen.len() > 20);
    });
}

#[test]
fn registries() {
    assert_eq!(registry("ghcr.io/a/b:c"), "ghcr.io");
    assert_eq!(registry("pytorch/pytorch"), "docker.io");
    assert_eq!(registry("ubuntu"), "docker.io");
}
