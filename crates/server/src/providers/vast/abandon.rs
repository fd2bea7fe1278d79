//! What an instance does when its controller is gone for good: it stops itself.
//!
//! A few lines of shell run beside the workload from the first start on, before our agent is there,
//! and again at each start. As long as a session of the agent runs, a controller is connected to
//! it; when none has run for the lease, the script asks Vast.ai to stop the instance, with the key
//! that Vast.ai itself put into the container. That key acts on this one instance; the account's
//! never goes there. Stopped, not destroyed: the disk is kept, and may hold what no snapshot does.
//!
//! Sessions are found by the name of their process, which needs no file, and so neither a home
//! directory that two programs agree on nor space on a full disk. Time is counted in sleeps.

use crate::ssh::quoted;
use dumont_core::lease::Watch;
use dumont_wire::agent::SESSION;
use std::time::Duration;
use url::Url;

/// Looks between two tries to stop, at most: a provider that refuses is asked once an hour.
const RARELY: u64 = 60;

/// For the start script.
pub(super) fn script(base: &Url, lease: Duration) -> String {
    let Watch { every_s, looks } = Watch::of(lease);
    let api = quoted(&format!(
        "{}/api/v0/instances/",
        base.as_str().trim_end_matches('/')
    ));
    let lease = lease.as_secs();
    format!(
        r#"d=${{HOME:-/root}}/.dumont; mkdir -p "$d"
( trap '' HUP
key=$CONTAINER_API_KEY id=${{CONTAINER_ID:-${{VAST_CONTAINERLABEL#C.}}}}
[ "$key" ] && [ "$id" ] || {{ echo 'CONTAINER_API_KEY or CONTAINER_ID is missing: this instance cannot stop itself'; exit; }}
url={api}$id/ auth="Authorization: Bearer $key" json='Content-Type: application/json' stop='{{"state":"stopped"}}'
attended() {{
for c in /proc/[0-9]*/comm; do
{{ read -r n <"$c"; }} 2>/dev/null && [ "$n" = {SESSION} ] && return
done
return 1
}}
left={looks} pause=1
while sleep {every_s}; do
if attended; then left={looks} pause=1; continue; fi
left=$((left-1))
[ $left -gt 0 ] && continue
echo "no controller for {lease} s: stopping instance $id"
curl -fsS -m 60 -X PUT -H "$auth" -H "$json" -d "$stop" "$url" ||
wget -qO- -T 60 --method=PUT --header="$auth" --header="$json" --body-data="$stop" "$url" ||
python3 -c 'import sys,urllib.request as u
a=sys.argv
print(u.urlopen(u.Request(a[1],a[2].encode(),dict(h.split(": ",1) for h in a[3:]),method="PUT"),timeout=60).read())' \
"$url" "$stop" "$auth" "$json" 'User-Agent: dumont' ||
echo 'not stopped: Vast.ai refused, or cannot be reached, or there is neither curl nor GNU wget nor python3'
left=$pause pause=$((pause*2))
[ $pause -gt {RARELY} ] && pause={RARELY}
done
) </dev/null >>"$d/abandon.log" 2>&1 &
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_names_the_service_and_never_an_account_key() {
        let base = Url::parse("https://console.vast.ai/").unwrap();
        let script = script(&base, Duration::from_secs(86_400));
        assert!(
            script.contains("'https://console.vast.ai/api/v0/instances/'$id/"),
            "{script}"
        );
        assert!(
            script.contains("while sleep 60;") && script.contains("left=1441"),
            "{script}"
        );
        assert!(!script.contains("VAST_API_KEY"), "{script}");
    }

    proptest! {
        /// The service cuts what is too long, or refuses it.
        #[test]
        fn it_leaves_room_for_more(seconds in 1u64..100_000_000) {
            let base = Url::parse("https://console.vast.ai/").unwrap();
            prop_assert!(script(&base, Duration::from_secs(seconds)).len() < 2_048);
        }
    }
}
