//! How an instance reads in the Vast protocol: pure.

use serde_json::{Value, json};

use crate::market::seconds;
use crate::offers::hardware_fields;
use crate::state::{Instance, State, Status};
use crate::switches::Padding;
use crate::volumes::Volumes;

/// The row of one instance.
pub fn instance_row(market: &State, instance: &Instance, now_ms: i64) -> Value {
    let Some(machine) = market.universe.machines.get(instance.machine) else {
        return Value::Null;
    };
    let order = &instance.order;
    let running = instance.status == Status::Running;
    let wanted = if instance.intended_running || instance.queued {
        "running"
    } else {
        "stopped"
    };
    let state = match instance.status {
        Status::Running | Status::Rebooting => "running",
        Status::Exited | Status::Stopped => "stopped",
        _ => "unloaded",
    };
    let ssh_port = instance.ssh_port().filter(|_| running && order.injects_ssh());
    let address = instance
        .live
        .as_ref()
        .map_or_else(|| "127.0.0.1".to_owned(), |m| m.address().to_string());
    let public = match market.switches.padding {
        Padding::Newline => format!("{address}\n"),
        Padding::None => address.clone(),
    };
    // The proxy is this host's; without one the machine itself is reached.
    let proxy = if instance.proxy_port.is_some() {
        "127.0.0.1"
    } else {
        &address
    };
    let runtype = image_runtype(&order.runtype);
    // Clients add one to the proxy port of a Jupyter instance.
    let proxy_port = instance.proxy_port.filter(|_| ssh_port.is_some()).or(ssh_port);
    let proxy_port = proxy_port.map(|port| port - u16::from(runtype.contains("jupyter")));
    let price = instance.price;
    let end = seconds(instance.ends_ms);
    let min_bid = market.quote(instance.machine, now_ms).min_bid * instance.gpus.len() as f64;
    let rest = json!({
        "id": instance.id, "label": order.label, "bundle_id": 900_000_000 + instance.offer_id,
        "actual_status": instance.status.as_str(), "intended_status": wanted, "cur_state": state,
        "next_state": wanted, "status_msg": instance.status_msg,
        "is_bid": order.bid.is_some(), "min_bid": min_bid,
        "image_uuid": order.image, "image_args": order.args, "image_runtype": runtype,
        "extra_env": order.env.iter().map(|(k, v)| json!([k, v])).collect::<Vec<_>>(), "onstart": order.onstart,
        "template_id": null, "template_hash_id": order.template, "template_name": null,
        "jupyter_token": format!("{:016x}", instance.id),
        "ssh_host": ssh_port.map(|_| proxy), "ssh_idx": "1", "ssh_port": proxy_port,
        "machine_dir_ssh_port": ssh_port, "public_ipaddr": public, "local_ipaddrs": address,
        "direct_port_start": -1, "direct_port_end": -1,
        "start_date": seconds(instance.created_ms), "end_date": end,
        "duration": (end - seconds(now_ms)).max(0.0),
        "uptime_mins": running.then(|| instance.meter.running_seconds(now_ms) / 60.0),
        "client_run_time": 1.1, "host_run_time": 2_592_000.0,
        "gpu_util": running.then_some(0.0), "gpu_temp": running.then_some(33.0),
        "cpu_util": 0.0, "mem_usage": running.then_some(0.5), "mem_limit": machine.cpu_ram_mb as f64 / 1000.0,
        "vmem_usage": running.then_some(0.0), "disk_space": order.disk_gb,
        "disk_usage": if running { 0.1 } else { -1.0 }, "disk_util": if running { 0.01 } else { -1.0 },
        "dph_base": price.dph_base, "dph_total": price.dph_total(), "search": price.as_search_value(),
        "instance": price.as_search_value(), "storage_cost": machine.storage_cost,
        "storage_total_cost": price.storage_total_cost,
        "country_code": machine.geolocation.rsplit(", ").next(), "credit_balance": null,
        "volume_info": volume_info(&market.volumes, instance),
    });
    let mut row = hardware_fields(machine, &instance.gpus);
    if let Value::Object(rest) = rest {
        row.extend(rest);
    }
    if running {
        let opened = order.env.iter().map(|(k, _)| k.as_str());
        let direct = ssh_port.filter(|_| order.direct);
        row.insert("ports".to_owned(), ports(opened, direct));
    }
    Value::Object(row)
}

fn volume_info(volumes: &Volumes, instance: &Instance) -> Value {
    let mounted = instance.volume.iter().filter_map(|(id, path)| {
        let volume = volumes.alive(*id)?;
        Some(json!({
            "id": id, "name": volume.name(), "mount_path": path, "total_space": volume.size_gb,
            "avail_space": volume.size_gb,
        }))
    });
    mounted.collect()
}

/// What rows report for a requested run type.
fn image_runtype(asked: &str) -> String {
    match asked {
        "" => "ssh ssh_proxy".to_owned(),
        "args" => "args".to_owned(),
        other if other.starts_with("ssh ") || other == "ssh" || other.contains("jupyter") => other.to_owned(),
        other => format!("ssh {other}"),
    }
}

/// Docker's port map. A machine shares the host's loopback, so what it opens is
/// reached under the same number; only SSH has a port of its own, where it is direct.
fn ports<'a>(env_keys: impl Iterator<Item = &'a str>, ssh: Option<u16>) -> Value {
    let binding =
        |port: &str| json!([{"HostIp": "0.0.0.0", "HostPort": port}, {"HostIp": "::", "HostPort": port}]);
    let mut map = serde_json::Map::new();
    if let Some(ssh) = ssh {
        map.insert("22/tcp".to_owned(), binding(&ssh.to_string()));
    }
    for option in env_keys.filter_map(|k| k.strip_prefix("-p ")) {
        let inside = option.trim().rsplit(':').next().unwrap_or_default();
        let (port, protocol) = inside.split_once('/').unwrap_or((inside, "tcp"));
        if port != "22" && port.parse::<u16>().is_ok() {
            map.insert(format!("{port}/{protocol}"), binding(port));
        }
    }
    Value::Object(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_run_types() {
        let map = ports(
            ["-p 8000:8000", "-p 9000:9000/udp", "A", "-p x:y", "-p 70:22"].into_iter(),
            Some(41022),
        );
        assert_eq!(
            map["22/tcp"][0],
            json!({"HostIp": "0.0.0.0", "HostPort": "41022"})
        );
        assert_eq!(map["8000/tcp"][0]["HostPort"], "8000");
        assert_eq!(map["9000/udp"][1]["HostPort"], "9000");
        assert_eq!(map.as_object().map(|m| m.len()), Some(3));
        assert_eq!(image_runtype("ssh_direc ssh_proxy"), "ssh ssh_direc ssh_proxy");
        assert_eq!(image_runtype("ssh"), "ssh");
    }
}
