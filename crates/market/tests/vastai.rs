//! The real `vastai` client, unchanged, against the market; what it *prints* is what counts.

// Helpers of tests are tests, which clippy cannot see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/vastai.rs"]
mod client;
mod common;

use client::{Said, Vastai};
use common::{World, exec, world, world_with};
use serde_json::{Value, json};

/// `Started. {'success': True, 'new_contract': 7000001, …`
fn contract(said: &Said) -> u64 {
    let rest = said.stdout.split("'new_contract': ").nth(1);
    let digits: String = rest
        .unwrap_or_else(|| panic!("no contract: {said:?}"))
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().unwrap()
}

async fn cheapest(world: &World, gpus: u64, nth: usize) -> Value {
    let query = json!({"num_gpus": {"eq": gpus}, "order": [["dph_total", "asc"]]});
    world.offers(query).await[nth].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_searches() {
    let world = world_with(|c| c.machines = 300).await;
    let vastai = Vastai::new(world.url());
    let said = vastai.run("search offers").await;
    assert!(said.stdout.lines().next().unwrap().contains("ID"), "{said:?}");
    assert!(
        said.stdout.contains("RTX_4090") && said.stdout.lines().count() > 50,
        "{said:?}"
    );

    let rows = |value: Value| value.as_array().unwrap().clone();
    let found = rows(
        vastai
            .raw("search offers gpu_name=RTX_4090 num_gpus>=2 dph_total<3 reliability>0.9 gpu_ram>20 -o dph_total --limit 5")
            .await,
    );
    assert!(!found.is_empty() && found.len() <= 5);
    assert!(found.is_sorted_by_key(|r| r["dph_total"].as_f64().unwrap()));
    for row in &found {
        assert_eq!(
            (&row["gpu_name"], &row["verification"]),
            (&json!("RTX 4090"), &json!("verified"))
        );
        assert!(row["num_gpus"].as_u64().unwrap() >= 2 && row["gpu_ram"].as_f64().unwrap() > 20_000.0);
    }
    let found = rows(
        vastai
            .raw("search offers -n gpu_name!=H100_SXM num_gpus<=2 driver_version>=550.1.1 inet_down>=100 -o num_gpus-,dph_total")
            .await,
    );
    assert!(found.len() > 20);
    for row in &found {
        assert!(row["gpu_name"] != "H100 SXM" && row["num_gpus"].as_u64().unwrap() <= 2);
        assert!(
            row["driver_vers"].as_u64().unwrap() >= 550_001_001,
            "{}",
            row["driver_version"]
        );
    }
    assert!(found.iter().any(|r| r["verification"] == "unverified"));
    let lists = [
        "search",
        "offers",
        "geolocation notin [US,CA] gpu_name in [RTX_3090,RTX_5090]",
        "--raw",
    ];
    let found: Vec<Value> = serde_json::from_str(&vastai.args(&lists).await.stdout).unwrap();
    assert!(!found.is_empty());
    for row in &found {
        let (place, gpu) = (
            row["geolocation"].as_str().unwrap(),
            row["gpu_name"].as_str().unwrap(),
        );
        assert!(!place.ends_with("US") && !place.ends_with("CA"), "{place}");
        assert!(gpu == "RTX 3090" || gpu == "RTX 5090", "{gpu}");
    }
    let bids = rows(vastai.raw("search offers -t bid").await);
    assert!(!bids.is_empty() && bids.iter().all(|r| r["dph_base"] == r["min_bid"]));
    let new = rows(vastai.raw("search offers --new num_gpus=1").await);
    assert!(!new.is_empty() && new.iter().all(|r| r["num_gpus"] == 1));
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_rents_and_runs_a_life() {
    let world = world().await;
    let vastai = Vastai::new(world.url());
    let offer = cheapest(&world, 1, 0).await["id"].to_string();
    let said = vastai
        .args(&[
            "create",
            "instance",
            &offer,
            "--image",
            "pytorch/pytorch:latest",
            "--disk",
            "20",
            "--ssh",
            "--direct",
            "--env",
            "-e GREETING=hello -p 8000:8000",
            "--label",
            "unit a",
            "--onstart-cmd",
            "touch ~/.no_auto_tmux; echo hello from onstart; echo second",
        ])
        .await;
    assert!(
        said.stdout.starts_with("Started. {") && said.stdout.contains("'success': True"),
        "{said:?}"
    );
    let id = contract(&said);
    world.until_status(id, "running").await;

    let row = vastai.raw(&format!("show instance {id}")).await;
    assert_eq!(
        row["extra_env"],
        json!({"GREETING": "hello", "-p 8000:8000": "1"})
    );
    assert_eq!(
        (&row["label"], &row["image_runtype"]),
        (&json!("unit a"), &json!("ssh ssh_direc ssh_proxy"))
    );
    let said = vastai.run(&format!("show instance {id}")).await;
    assert!(
        said.stdout.contains("running") && said.stdout.contains("pytorch/pytorch:latest"),
        "{said:?}"
    );
    let said = vastai.run("show instances").await;
    for word in [id.to_string().as_str(), "running", "unit a", "--status:", "1x "] {
        assert!(said.stdout.contains(word), "no {word} in {said:?}");
    }
    let url = vastai.run(&format!("ssh-url {id}")).await.stdout;
    let port = row["ports"]["22/tcp"][0]["HostPort"].as_str().unwrap();
    let address = row["public_ipaddr"].as_str().unwrap().trim();
    assert_eq!(url.trim(), format!("ssh://root@{address}:{port}"));
    let ssh = world.login(port.parse().unwrap()).await.unwrap();
    assert_eq!(exec(&ssh, "echo $GREETING").await.text(), "hello\n");

    let said = vastai.run(&format!("logs {id} --tail 2")).await;
    assert!(
        said.stdout.ends_with("hello from onstart\nsecond\n\n"),
        "{said:?}"
    );
    let said = vastai.run(&format!("logs {id} --filter second")).await;
    assert!(
        !said.stdout.contains("hello") && said.stdout.contains("second"),
        "{said:?}"
    );
    let said = vastai.run(&format!("logs {id} --daemon-logs")).await;
    assert!(
        said.stdout.contains("loading") && said.stdout.contains("success, running"),
        "{said:?}"
    );

    let done = async |line: String, says: &str| {
        let said = vastai.run(&line).await;
        assert!(said.stdout.contains(says), "{line}: {said:?}");
    };
    done(
        format!("label instance {id} other"),
        &format!("label for {id} set to other."),
    )
    .await;
    assert_eq!(world.show(id).await["label"], "other");
    done(format!("stop instance {id}"), &format!("stopping instance {id}.")).await;
    let row = world.show(id).await;
    assert_eq!(
        (&row["intended_status"], &row["cur_state"]),
        (&json!("stopped"), &json!("stopped"))
    );
    done(format!("start instances {id}"), "starting instance").await;
    world.until_status(id, "running").await;
    let row = world.show(id).await;
    let ssh = world.login(common::port(&row)).await.unwrap();
    assert_eq!(
        exec(&ssh, "grep -c second ~/onstart.log; touch /root/kept")
            .await
            .text(),
        "2\n"
    );
    done(
        format!("reboot instance {id}"),
        &format!("Rebooting instance {id}."),
    )
    .await;
    let row = world.until_status(id, "running").await;
    let ssh = world.login(common::port(&row)).await.unwrap();
    assert_eq!(exec(&ssh, "ls /root/kept").await.text(), "/root/kept\n");
    done(
        format!("recycle instance {id}"),
        &format!("Recycling instance {id}."),
    )
    .await;
    let row = world.until_status(id, "running").await;
    let ssh = world.login(common::port(&row)).await.unwrap();
    assert_eq!(exec(&ssh, "ls /root/kept").await.text(), "");
    done(
        format!("destroy instance {id} -y"),
        &format!("destroying instance {id}."),
    )
    .await;
    let said = vastai.run(&format!("show instance {id}")).await;
    assert!(said.stderr.contains("not found or no longer exists"), "{said:?}");
    assert_eq!(world.ledger().await["alive"], 0);
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_pages_and_filters() {
    let world = world_with(|c| {
        c.machines = 60;
        c.isolation = dumont_market::Isolation::Directory;
    })
    .await;
    let vastai = Vastai::new(world.url());
    let mut ids = Vec::new();
    for n in 0..28 {
        ids.push(
            world
                .rent(json!({"label": if n < 3 { json!("few") } else { Value::Null }}))
                .await,
        );
    }
    for id in &ids {
        world.until_status(*id, "running").await;
    }
    let numbers = |said: Said| -> Vec<u64> {
        said.stdout
            .lines()
            .filter_map(|l| l.trim().parse().ok())
            .collect()
    };
    assert_eq!(numbers(vastai.run("show instances -q").await), ids);
    let raw = vastai.raw("show instances").await;
    assert_eq!(raw.as_array().unwrap().len(), 28);
    assert!(raw[0]["extra_env"].is_object() && raw[0]["ports"]["22/tcp"].is_array());
    assert_eq!(
        numbers(vastai.run("show instances -q --label few").await),
        ids[..3]
    );
    let said = vastai.args(&["show", "instances", "-q", "--label", ""]).await;
    assert_eq!(numbers(said), ids[3..]);
    let page = vastai.raw("show instances --limit 5 --status running").await;
    assert_eq!(
        (&page["instances_found"], &page["label_counts"]),
        (&json!(28), &json!({"": 25, "few": 3}))
    );
    let token = page["next_token"].as_str().unwrap();
    let next = vastai
        .raw(&format!("show instances --limit 5 --next-token {token}"))
        .await;
    assert_eq!(next["instances"][0]["id"], ids[5]);
    let said = vastai.run("show instances --status exited").await;
    assert!(
        said.stdout.contains("No instances matched your filters."),
        "{said:?}"
    );
    let (one, two) = (ids[0].to_string(), ids[1].to_string());
    let said = vastai.args(&["destroy", "instances", &one, &two, "-y"]).await;
    assert!(
        said.stdout
            .contains(&format!("destroying instance [{one}, {two}].")),
        "{said:?}"
    );
    let said = vastai.run(&format!("stop instances {} {}", ids[2], ids[3])).await;
    assert!(said.stdout.contains("stopping instance ["), "{said:?}");
    assert_eq!(
        numbers(vastai.run("show instances -q --status exited").await),
        ids[2..4]
    );
    assert_eq!(world.ledger().await["alive"], 26);
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_creates_in_every_form() {
    let world = world().await;
    let vastai = Vastai::new(world.url());
    let offer = async |nth| cheapest(&world, 1, nth).await;
    let first = offer(0).await["id"].clone();
    let jupyter = vastai
        .run(&format!(
            "create instance {first} --image img:1 --jupyter --jupyter-lab"
        ))
        .await;
    let jupyter = contract(&jupyter);
    let row = world.until_status(jupyter, "running").await;
    assert_eq!(row["image_runtype"], "jupyter_proxy ssh_proxy");
    assert!(row["ports"].get("22/tcp").is_none(), "{}", row["ports"]);
    let port = row["ssh_port"].as_u64().unwrap() + 1;
    let url = vastai.run(&format!("ssh-url {jupyter}")).await.stdout;
    assert!(
        url.trim().ends_with(&format!(":{port}")),
        "{url} is not at {port}"
    );
    assert!(world.login(u16::try_from(port).unwrap()).await.is_ok());

    let second = offer(0).await["id"].to_string();
    let said = vastai
        .args(&[
            "create",
            "instance",
            &second,
            "--image",
            "img:1",
            "--onstart-cmd",
            "bash",
            "--args",
            "-c",
            "echo from args; sleep 0.2; exit 3",
        ])
        .await;
    let args = contract(&said);
    let row = world.until_status(args, "exited").await;
    assert_eq!(
        (&row["image_runtype"], &row["image_args"][0]),
        (&json!("args"), &json!("-c"))
    );
    assert!(
        row["status_msg"].as_str().unwrap().contains("exited with 3"),
        "{}",
        row["status_msg"]
    );
    let said = vastai.run(&format!("logs {args}")).await;
    assert!(said.stdout.contains("from args"), "{said:?}");
    let said = vastai.run(&format!("ssh-url {args}")).await;
    assert!(said.stdout.contains("ssh port not found"), "{said:?}");

    let third = offer(0).await["id"].clone();
    let said = vastai
        .run(&format!(
            "create instance {third} --template_hash 4e17788f74f075dd9aab7d0d4427968f"
        ))
        .await;
    let row = world.until_status(contract(&said), "running").await;
    assert_eq!(row["template_hash_id"], "4e17788f74f075dd9aab7d0d4427968f");

    let ask = offer(0).await;
    let bid = ask["min_bid"].as_f64().unwrap() * 1.5;
    let said = vastai
        .run(&format!(
            "create instance {} --image img:1 --ssh --bid_price {bid:.3} --cancel-unavail",
            ask["id"]
        ))
        .await;
    let spot = contract(&said);
    let row = world.until_status(spot, "running").await;
    assert_eq!(
        (&row["is_bid"], &row["dph_base"]),
        (&json!(true), &json!(format!("{bid:.3}").parse::<f64>().unwrap()))
    );
    world
        .admin(
            reqwest::Method::POST,
            &format!("/admin/instances/{spot}/outbid"),
            None,
        )
        .await;
    let row = world.show(spot).await;
    let (actual, intended) = (&row["actual_status"], &row["intended_status"]);
    assert_eq!((actual, intended), (&json!("exited"), &json!("stopped")));
    let said = vastai.run(&format!("start instance {spot}")).await;
    assert!(said.stdout.contains("state change queued"), "{said:?}");
    let said = vastai.run(&format!("change bid {spot}")).await;
    assert!(said.stdout.contains("Per gpu bid price changed"), "{said:?}");
    world.until_status(spot, "running").await;
    assert!(world.show(spot).await["dph_base"].as_f64().unwrap() > bid * 1.2);
    let said = vastai.run(&format!("change bid {jupyter} --price 0.2")).await;
    assert!(said.stderr.contains("not interruptible"), "{said:?}");

    let (a, b) = (offer(0).await["id"].clone(), offer(3).await["id"].clone());
    let said = vastai
        .run(&format!("create instances {a} {b} --image img:1 --ssh"))
        .await;
    assert!(said.stdout.contains("'new_contracts': [7"), "{said:?}");
    assert_eq!(world.ledger().await["alive"], 6);
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_volumes() {
    let world = world().await;
    let vastai = Vastai::new(world.url());
    let said = vastai
        .args(&["search", "volumes", "disk_space>50 inet_up>10"])
        .await;
    assert!(
        said.stdout.contains("$/Gb/Month") && said.stdout.lines().count() > 10,
        "{said:?}"
    );
    let offer = cheapest(&world, 1, 0).await;
    let ask = vastai
        .raw(&format!("search volumes machine_id={}", offer["machine_id"]))
        .await[0]
        .clone();
    assert_eq!(ask["id"], offer["avail_vol_ask_id"]);
    let said = vastai
        .run(&format!("create volume {} -s 20 -n data", ask["id"]))
        .await;
    assert!(
        said.stdout
            .contains("Created. {'success': True, 'volume_name': 'data'}"),
        "{said:?}"
    );
    let shown = vastai.raw("show volumes").await[0].clone();
    assert_eq!(
        (&shown["label"], &shown["disk_space"]),
        (&json!("data"), &json!(20.0))
    );
    let volume = shown["id"].clone();
    let create = format!(
        "create instance {} --image img:1 --ssh --direct --link-volume {volume} --mount-path /data",
        offer["id"]
    );
    let id = contract(&vastai.run(&create).await);
    let row = world.until_status(id, "running").await;
    assert_eq!(row["volume_info"][0]["id"], volume);
    let ssh = world.login(common::port(&row)).await.unwrap();
    let at = if world.admin(reqwest::Method::GET, "/admin/market", None).await["isolation"] == "directory" {
        "../data"
    } else {
        "/data"
    };
    exec(&ssh, &format!("echo kept > {at}/file")).await;
    let said = vastai.run("show volumes").await;
    assert!(
        said.stdout.contains("data") && said.stdout.contains(&id.to_string()),
        "{said:?}"
    );
    let said = vastai.run(&format!("delete volume {volume}")).await;
    assert!(said.stderr.contains("in use"), "{said:?}");
    vastai.run(&format!("destroy instance {id} -y")).await;
    let again = cheapest(&world, 1, 0).await;
    assert_eq!(again["machine_id"], offer["machine_id"]);
    let id = contract(
        &vastai
            .run(&create.replace(&offer["id"].to_string(), &again["id"].to_string()))
            .await,
    );
    let row = world.until_status(id, "running").await;
    let ssh = world.login(common::port(&row)).await.unwrap();
    assert_eq!(exec(&ssh, &format!("cat {at}/file")).await.text(), "kept\n");
    vastai.run(&format!("destroy instance {id} -y")).await;
    let said = vastai.run(&format!("delete volume {volume}")).await;
    assert!(said.stdout.contains("Deleted"), "{said:?}");
    assert_eq!(vastai.raw("show volumes").await, json!([]));
    let elsewhere = cheapest(&world, 1, 3).await["id"].clone();
    let said = vastai
        .run(&format!(
            "create instance {elsewhere} --image img:1 --ssh --link-volume {volume} --mount-path /data"
        ))
        .await;
    assert!(said.stderr.contains("volume_info names no volume"), "{said:?}");
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_manages_keys_and_says_who_it_is() {
    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDummyDummyDummyDummyDummyDummyDummyDummyDumm me@x";
    let world = world_with(|c| c.api_keys = vec!["some-key".to_owned()]).await;
    let vastai = Vastai::new(world.url());
    let said = vastai.run("show user").await;
    assert!(
        said.stdout.contains("renter@example.com") && said.stdout.contains("1000.00"),
        "{said:?}"
    );
    assert_eq!(vastai.raw("show user").await["id"], 1);
    let said = vastai.args(&["create", "ssh-key", KEY]).await;
    assert!(
        said.stdout.contains("ssh-key created {") && said.stdout.contains("'success': True"),
        "{said:?}"
    );
    let keys = vastai.raw("show ssh-keys").await;
    assert_eq!(
        (keys.as_array().unwrap().len(), &keys[1]["key"]),
        (2, &json!(KEY))
    );
    let id = world.rent(json!({})).await;
    let said = vastai.args(&["attach", "ssh", &id.to_string(), KEY]).await;
    assert!(said.stdout.contains("attached successfully"), "{said:?}");
    let attached = world
        .api(
            reqwest::Method::GET,
            &format!("/api/v0/instances/{id}/ssh/"),
            None,
        )
        .await
        .1;
    let attached: Value = serde_json::from_str(attached["ssh_keys"].as_str().unwrap()).unwrap();
    let said = vastai
        .run(&format!("detach ssh {id} {}", attached[0]["id"]))
        .await;
    assert!(said.stdout.contains("detached successfully"), "{said:?}");
    let said = vastai.run(&format!("delete ssh-key {}", keys[1]["id"])).await;
    assert!(said.stdout.contains("'success': True"), "{said:?}");
    let said = vastai.run("destroy instance 5 -y").await;
    assert!(said.stderr.contains("Instance 5 not found."), "{said:?}");
    let said = vastai.run("create instance 5 --image x --ssh").await;
    assert!(said.stderr.contains("no_such_ask"), "{said:?}");
    let stranger = Vastai::with_key(world.url(), "wrong");
    let said = stranger.run("show instances").await;
    assert!(said.stderr.contains("Invalid user key"), "{said:?}");
    world.shutdown().await;
}

/// As Vast.ai's guide has it, from inside: with what lies in the container's environment.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_stops_itself_with_its_own_key() {
    let world = world_with(|c| c.api_keys = vec!["some-key".to_owned()]).await;
    let (id, ssh) = world.machine(json!({})).await;
    let env = exec(&ssh, "echo $CONTAINER_ID $CONTAINER_API_KEY").await.text();
    let (own, key) = env.trim().split_once(' ').unwrap();
    assert_eq!(own, id.to_string());
    let inside = Vastai::with_key(world.url(), key);
    let said = inside.run("show instances").await;
    assert!(
        said.stderr.contains("Unable to authorize instance API key"),
        "{said:?}"
    );
    let said = inside.run(&format!("stop instance {own}")).await;
    assert!(
        said.stdout.contains(&format!("stopping instance {id}.")),
        "{said:?}"
    );
    assert_eq!(world.show(id).await["actual_status"], "exited");
    world.shutdown().await;
}
