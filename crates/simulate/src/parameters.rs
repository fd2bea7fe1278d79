//! Every assumption about the market, in one place, with where it comes from.
//!
//! *Measured* values are anchored in something that was observed; *assumed* ones are not, and
//! the sensitivity rows vary those that could matter. There is no public data set of deploy
//! outcomes on GPU marketplaces: the shape is anchored loosely, the levels are assumptions.

use serde::Serialize;

/// One market and the load on it. Times in days, hours or seconds as named.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Parameters {
    /// Length of a run, and the days at its start that teach but are not scored.
    pub days: f64,
    pub warm_up_days: f64,
    /// Assumed; varied (10, 200).
    pub deploys_per_day: f64,

    /// Measured: 268 machines of 121 operators for one GPU model within six hours
    /// (brandonros/vastai-scraper, RTX 5090), about 127 on offer at once, the median machine
    /// present 17 % of the time. A Beta(0.25, 0.28) share of time has mean 0.47 and that median.
    pub machines: usize,
    pub operators: usize,
    pub presence: (f64, f64),
    /// Assumed: a machine comes and goes in cycles of this mean length.
    pub presence_cycle_hours: f64,

    /// Assumed; varied (5 %, 30 %). Delta and SuperBench report a few percent of lemons in
    /// managed clusters; marketplace hosts are anybody's.
    pub lemon_share: f64,
    /// Assumed: an operator's share of lemons is Beta with this total weight, so that bad
    /// machines sit together (one cellar, one person's care).
    pub operator_weight: f64,
    /// Assumed mean chance that a machine becomes ready, good and lemon; the first is varied
    /// (0.88). Anchor: 13 of 15 measured Vast runs reached SSH within five minutes, 62 to 96 %
    /// at 95 % confidence (monygroupcorp/noema benchmarks).
    pub good_success: f64,
    pub lemon_success: f64,
    /// Assumed: how much machines of a kind differ (Beta weight), good and lemon.
    pub success_weight: (f64, f64),
    /// Assumed; varied (10): mean days until a machine's quality is drawn anew (repair,
    /// reinstallation, new owner).
    pub quality_days: f64,
    /// Assumed: lemons ask 10 % less. Prices are lognormal around 1.
    pub lemon_discount: f64,
    pub price_sigma: f64,
    /// Assumed: 1 - the provider's reliability figure is lognormal with these medians (good,
    /// lemon) and sigma. Documented: the figure is uptime, and falls when an instance does not
    /// start, but is not deploy success (vast-ai/docs, guides/concepts, host/hosting-overview).
    pub downtime_median: (f64, f64),
    pub downtime_sigma: f64,

    /// Assumed: of failures, the share that hang in silence, and the share with a hardware error.
    pub hang_share: f64,
    pub hardware_share: f64,
    /// Assumed: when an explicit failure shows, lognormal seconds (median, sigma).
    pub failure_seconds: (f64, f64),

    /// Measured: about 30 s until a cached image runs, fresh pulls of 10 minutes and more (Vast
    /// docs, manage-instances and quickstart); 73 s to running and 12 s more to a login (this
    /// project's public predecessor); ready times of 22, 75, 86, 159 and 167 s (noema).
    /// Lognormal start (median, sigma; 30 + 12 s), plus a pull of the image at the machine's
    /// download speed, times a lognormal factor. Image size and speed are set so that machines
    /// never used before need about 89 s (p50) and 281 s (p90), the levels of the study that
    /// the policy comes from; the report prints what they really come to.
    pub start_seconds: (f64, f64),
    pub pull_sigma: f64,
    /// Assumed; varied. Compressed GB of the images in use (median, sigma), how many there
    /// are, and how much more often the first is used than the second, and so on.
    pub image_gb: (f64, f64),
    pub images: usize,
    pub image_skew: f64,
    /// Assumed: Mbit/s, lognormal (median, sigma), at least 50.
    pub download_mbps: (f64, f64),
    /// Assumed: an image stays cached for this many days on average; other customers have left
    /// it there with this probability.
    pub cache_days: f64,
    pub cached_by_others: f64,

    /// Assumed; varied (none, heavy): incidents of the provider or of our own network, a day,
    /// their mean length, and the share of attempts that fail in them.
    pub incidents_per_day: f64,
    pub incident_hours: f64,
    pub incident_failing: f64,
    /// Assumed: the same for one operator at a time (power, line). These are the hosts' doing
    /// and are scored.
    pub outages_per_day: f64,
    pub outage_hours: f64,
    /// Assumed: broken pushes of one of our images.
    pub broken_images_per_day: f64,
    pub broken_image_hours: f64,
    /// Assumed: an offer was taken between search and rent.
    pub offer_gone: f64,
    /// Assumed: how long a won machine is kept, hours on average.
    pub kept_hours: f64,

    /// What a GPU second is worth in waiting seconds. Measured to be small: GPU time is not
    /// billed while an instance loads, only storage and bandwidth (Vast billing FAQ). Varied (0.3).
    pub gpu_second: f64,
    /// What a deploy without a machine costs beyond the time it took, seconds.
    pub no_machine_seconds: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            days: 60.0,
            warm_up_days: 10.0,
            deploys_per_day: 60.0,
            machines: 300,
            operators: 135,
            presence: (0.25, 0.28),
            presence_cycle_hours: 12.0,
            lemon_share: 0.15,
            operator_weight: 2.0,
            good_success: 0.95,
            lemon_success: 0.30,
            success_weight: (30.0, 8.0),
            quality_days: 60.0,
            lemon_discount: 0.10,
            price_sigma: 0.2,
            downtime_median: (0.006, 0.02),
            downtime_sigma: 1.2,
            hang_share: 0.70,
            hardware_share: 0.03,
            failure_seconds: (40.0, 0.6),
            start_seconds: (42.0, 0.35),
            pull_sigma: 0.4,
            image_gb: (3.5, 0.5),
            images: 6,
            image_skew: 1.0,
            download_mbps: (600.0, 1.1),
            cache_days: 7.0,
            cached_by_others: 0.10,
            incidents_per_day: 0.2,
            incident_hours: 1.5,
            incident_failing: 0.85,
            outages_per_day: 0.5,
            outage_hours: 6.0,
            broken_images_per_day: 0.1,
            broken_image_hours: 3.0,
            offer_gone: 0.03,
            kept_hours: 4.0,
            gpu_second: 0.1,
            no_machine_seconds: 600.0,
        }
    }
}

/// One row of the sensitivity table: the market with one assumption changed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Row {
    pub name: &'static str,
    pub parameters: Parameters,
}

/// The assumptions that could decide, each varied by itself.
pub fn sensitivity(base: Parameters) -> Vec<Row> {
    let row = |name, change: &dyn Fn(&mut Parameters)| {
        let mut parameters = base;
        change(&mut parameters);
        Row { name, parameters }
    };
    vec![
        row("10 deploys a day", &|p| p.deploys_per_day = 10.0),
        row("200 deploys a day", &|p| p.deploys_per_day = 200.0),
        row("5 % lemons", &|p| p.lemon_share = 0.05),
        row("30 % lemons", &|p| p.lemon_share = 0.30),
        row("good machines at 88 %", &|p| p.good_success = 0.88),
        row("no incidents", &|p| {
            (p.incidents_per_day, p.broken_images_per_day) = (0.0, 0.0);
        }),
        row("heavy incidents", &|p| {
            (p.incidents_per_day, p.broken_images_per_day) = (1.0, 0.5);
        }),
        row("small images", &|p| p.image_gb.0 = 1.0),
        row("huge images", &|p| p.image_gb.0 = 15.0),
        row("hosts change in 10 days", &|p| p.quality_days = 10.0),
        row("GPU seconds 3x dearer", &|p| p.gpu_second = 0.3),
    ]
}
