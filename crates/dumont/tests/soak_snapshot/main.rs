//! Impossible to lose: many small lives of a workspace in bad weather, each with a seed.
//!
//! A few seeds run with the tests; `scripts/soak-snapshot` runs hundreds. Everything is real: the
//! binary as a user starts it, machines reached over SSH, S3 servers that check signatures. Half
//! of the seeds use `s3s-fs` (no versions), half SeaweedFS with a versioned bucket; of each, half are
//! encrypted.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a soak that cannot run ends"
)]

#[path = "../../../server/tests/world/agents.rs"]
mod agents;
#[path = "../../../server/tests/world/bucket.rs"]
#[allow(dead_code, reason = "each test uses a part")]
mod bucket;
#[path = "../../src/cli/drill/compare.rs"]
#[allow(dead_code, reason = "the drill uses the rest")]
mod compare;
mod procs;
#[path = "../proxy/mod.rs"]
mod proxy;
mod run;
mod tree;
#[path = "../world/mod.rs"]
mod world;

use bucket::{InProcess, Weed};
use proxy::Proxy;
use run::{Bucket, Place, Run};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().expect("a number"))
}

fn place(runtime: &tokio::runtime::Handle, bucket: &Arc<Bucket>) -> Place {
    let config = bucket.config();
    let store = config.endpoint.socket_addrs(|| None).unwrap()[0];
    let proxy = runtime.block_on(Proxy::start(store));
    let env = [
        ("S3_BUCKET", config.bucket.clone()),
        ("S3_ADDRESSING", "path".into()),
        ("AWS_ENDPOINT_URL", format!("http://{}", proxy.addr)),
        ("AWS_REGION", config.region),
        ("AWS_ACCESS_KEY_ID", config.key_id),
        ("AWS_SECRET_ACCESS_KEY", config.secret),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let mut world = world::World::without_server(12, env);
    world.serve();
    Place {
        world,
        proxy,
        runtime: runtime.clone(),
        bucket: bucket.clone(),
    }
}

#[test]
fn every_visible_snapshot_comes_back_or_is_named() {
    let (first, runs) = (setting("SOAK_FIRST", 3), setting("SOAK_RUNS", 2));
    let jobs = setting("SOAK_JOBS", 2);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let buckets = runtime.block_on(async {
        let mut weed = Weed::start().await;
        weed.make_bucket(bucket::VERSIONED).await;
        let mut config = weed.config();
        config.bucket = bucket::VERSIONED.into();
        bucket::keep_versions(&config).await;
        [Bucket::Files(InProcess::start().await), Bucket::Versions(weed)].map(Arc::new)
    });
    let failed = AtomicU64::new(0);
    std::thread::scope(|s| {
        for job in 0..jobs {
            let (buckets, runtime, failed) = (&buckets, runtime.handle(), &failed);
            s.spawn(move || {
                // A world for each bucket: its runs follow each other in it.
                let mut places: [Option<Place>; 2] = [None, None];
                for seed in (first..first + runs).filter(|seed| seed % jobs == job) {
                    let which = (seed / 2 % 2) as usize;
                    let place = places[which].get_or_insert_with(|| place(runtime, &buckets[which]));
                    if !held(place, seed) {
                        failed.fetch_add(1, Relaxed);
                        // What it left behind must not meet the next one.
                        places[which] = None;
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    println!("{} of {runs} runs held", runs - failed);
    assert_eq!(failed, 0, "{failed} runs did not hold");
}

fn held(place: &mut Place, seed: u64) -> bool {
    let (began, before) = (Instant::now(), place.proxy.counts());
    let mut run = Run::new(place, seed);
    let result = run.go();
    let story = std::mem::take(&mut run.story);
    let after = place.proxy.counts();
    println!(
        "seed {seed:4}  {:5.1} s  {:4} requests {:3} faults {:2} rotten  {} kills {} machines lost  {} visible {} damaged  {}",
        began.elapsed().as_secs_f64(),
        after[0] - before[0],
        after[1] - before[1],
        after[2] - before[2],
        story.kills,
        story.lost,
        story.visible,
        story.damaged,
        if result.is_ok() { "held" } else { "FAILED" },
    );
    if let Err(why) = &result {
        println!("  {}\n  {why}", story.lines.join("\n  "));
        let log = place.world.log("serve");
        let tail: Vec<_> = log.lines().rev().take(40).collect();
        println!(
            "  server: {}",
            tail.into_iter().rev().collect::<Vec<_>>().join("\n    ")
        );
    }
    result.is_ok()
}
