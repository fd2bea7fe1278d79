//! What only machines of one's own have: a door with a lock, a file that names them, and dirt.

use super::bench::{Bench, machine, query};
use super::sshd::Sshd;
use dumont_core::time::Timestamp;
use dumont_server::providers::own::OwnMachines;
use dumont_server::providers::{ErrorClass, InstanceStatus, Provider, ProviderInstance};
use dumont_store::Store;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Scene {
    own: OwnMachines,
    store: Store,
    line: String,
    dir: tempfile::TempDir,
}

async fn scene(file: bool) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("dumont.db")).await.unwrap();
    let key = dumont_server::ssh::load_or_create(&dir.path().join("key")).unwrap();
    let line = dumont_server::ssh::public_line(key.public_key()).unwrap();
    let path = file.then(|| dir.path().join("machines.toml"));
    Scene {
        own: OwnMachines::new(store.clone(), Arc::new(key), line.clone(), path),
        store,
        line,
        dir,
    }
}

impl Scene {
    async fn add(&self, name: &str, sshd: &Sshd) {
        let machine = machine(name, sshd);
        self.store.put_own_machine(&machine, Timestamp(1)).await.unwrap();
    }

    async fn rent(&self, label: &str) -> String {
        let offers = self.own.search(&query()).await.unwrap();
        let request = dumont_server::providers::RentRequest {
            offer: offers.into_iter().next().unwrap(),
            label: label.into(),
            image: "none".into(),
            disk_gb: 20,
            env: Default::default(),
            ports: Vec::new(),
            onstart: String::new(),
            bid: None,
            lease: None,
            withdrawn: Default::default(),
        };
        self.own.rent(&request).await.unwrap()
    }

    async fn names(&self) -> Vec<String> {
        let offers = self.own.search(&query()).await.unwrap();
        offers.into_iter().map(|o| o.machine.to_string()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_does_not_know_us_says_which_line_it_needs() {
    let (scene, sshd) = (scene(false).await, Sshd::new());
    scene.add("a", &sshd).await;
    let refused = scene.own.search(&query()).await.unwrap_err();
    assert_eq!(refused.class, ErrorClass::Auth);
    assert!(refused.message.contains(&scene.line), "{refused}");
    assert!(refused.message.contains("authorized_keys"), "{refused}");
    // One that is closed does not hide another that is open.
    let open = Sshd::new();
    open.let_in(&scene.line);
    scene.add("b", &open).await;
    assert_eq!(scene.names().await, ["ssh:b"]);
    sshd.let_in(&scene.line);
    assert_eq!(scene.names().await, ["ssh:a", "ssh:b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_key_is_pinned_for_good_until_the_owner_says_another() {
    let (scene, sshd) = (scene(false).await, Sshd::new());
    sshd.let_in(&scene.line);
    scene.add("a", &sshd).await;
    assert_eq!(scene.names().await, ["ssh:a"]);
    sshd.new_host_key();
    // The listener reads its key when it starts.
    let mut sshd = sshd;
    sshd.stop();
    sshd.start();
    let refused = scene.own.search(&query()).await.unwrap_err();
    assert_eq!(refused.class, ErrorClass::Auth, "{refused}");
    assert!(
        refused.message.contains("another machine answers there"),
        "{refused}"
    );
    scene.own.forget_host_key(&machine("a", &sshd)).await.unwrap();
    assert_eq!(scene.names().await, ["ssh:a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_in_force_as_it_stands() {
    let (scene, sshd) = (scene(true).await, Sshd::new());
    sshd.let_in(&scene.line);
    let path = scene.dir.path().join("machines.toml");
    let about = |name: &str| {
        let m = machine(name, &sshd);
        format!(
            "[[machines]]\nmachine = \"{}\"\nhost = \"{}\"\nport = {}\nuser = \"{}\"\n",
            m.machine, m.host, m.port, m.user
        )
    };
    fs::write(&path, about("filed")).unwrap();
    scene.add("told", &sshd).await;
    assert_eq!(scene.names().await, ["ssh:filed", "ssh:told"]);
    fs::write(&path, format!("{}{}", about("filed"), about("later"))).unwrap();
    assert_eq!(scene.names().await, ["ssh:filed", "ssh:later", "ssh:told"]);
    // A slip of the pen is said, and is no empty inventory.
    fs::write(
        &path,
        "[[machines]]\nmachine = \"ssh:x\"\nhost = \"-oProxyCommand=x\"\n",
    )
    .unwrap();
    let wrong = scene.own.search(&query()).await.unwrap_err();
    assert!(
        wrong.message.contains("machines.toml") && wrong.message.contains("host"),
        "{wrong}"
    );
    assert!(scene.own.check_file().is_err());
}

/// Every process that carries a text in its environment or stands below that directory.
fn alive(text: &str) -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let knows = |pid: &Path| {
        let environ = fs::read(pid.join("environ")).unwrap_or_default();
        let cwd = fs::read_link(pid.join("cwd")).unwrap_or_default();
        String::from_utf8_lossy(&environ).contains(text) || cwd.to_string_lossy().contains(text)
    };
    entries.filter(|e| knows(&e.path())).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lease_left_is_ended_and_wiped_and_nothing_else() {
    let (scene, sshd) = (scene(false).await, Sshd::new());
    sshd.let_in(&scene.line);
    scene.add("a", &sshd).await;
    let (goes, stays) = (scene.rent("dumont/c/w/1").await, scene.rent("dumont/c/w/2").await);
    let home = |id: &str| sshd.home().join(".dumont-leases").join(id);
    for id in [&goes, &stays] {
        let seen = scene.own.get(id).await.unwrap().unwrap();
        assert_eq!(seen.status, InstanceStatus::Running);
        assert_eq!(seen.access.home.as_deref(), home(id).to_str());
        // A workload, one that hides from its session and ignores requests, and one without environment.
        for script in ["exec sleep 1000", "trap '' TERM; setsid sleep 1000 & sleep 1000"] {
            let mut command = Command::new("sh");
            command
                .args(["-c", script])
                .env("HOME", home(id))
                .stdin(Stdio::null());
            std::mem::forget(command.spawn().unwrap());
        }
        let mut bare = Command::new("sleep");
        bare.arg("1000").env_clear().current_dir(home(id));
        std::mem::forget(bare.spawn().unwrap());
        fs::create_dir_all(home(id).join("workspace/closed")).unwrap();
        fs::write(home(id).join("workspace/closed/file"), "x").unwrap();
        let mut closed = fs::metadata(home(id).join("workspace/closed"))
            .unwrap()
            .permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut closed, 0o500);
        fs::set_permissions(home(id).join("workspace/closed"), closed).unwrap();
    }
    let path = sshd.home().join("outside");
    std::os::unix::fs::symlink(home(&goes).join("workspace"), &path).unwrap();
    fs::write(home(&goes).join("link"), path.to_str().unwrap()).unwrap();
    // One, a shell with two, and the bare one.
    let deadline = Instant::now() + Duration::from_secs(20);
    while [&goes, &stays].iter().any(|id| alive(id) != 5) {
        assert!(
            Instant::now() < deadline,
            "{} and {}",
            alive(&goes),
            alive(&stays)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    scene.own.destroy(&goes).await.unwrap();
    assert_eq!(alive(&goes), 0);
    assert!(!home(&goes).exists() && fs::symlink_metadata(&path).is_err());
    assert_eq!(alive(&stays), 5, "the neighbour's processes");
    assert!(home(&stays).join("workspace/closed/file").exists());
    scene.own.destroy(&stays).await.unwrap();
    assert_eq!(alive(&stays), 0);
    assert!(!sshd.home().join(".dumont-leases").exists());
    assert!(sshd.authorized_keys().exists());
}

/// A machine that was away when it was given back is cleaned when it returns, and offered then.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_could_not_be_cleaned_is_offered_to_nobody() {
    let (scene, mut sshd) = (scene(false).await, Sshd::new());
    sshd.let_in(&scene.line);
    scene.add("a", &sshd).await;
    let id = scene.rent("dumont/c/w/1").await;
    scene.own.get(&id).await.unwrap().unwrap();
    let home = sshd.home().join(".dumont-leases").join(&id);
    assert!(home.is_dir());
    sshd.stop();
    let away = scene.own.destroy(&id).await.unwrap_err();
    assert_eq!(away.class, ErrorClass::Transient, "{away}");
    assert!(scene.own.get(&id).await.unwrap().is_some(), "it is not forgotten");
    sshd.start();
    assert_eq!(
        scene.names().await,
        Vec::<String>::new(),
        "dirty, though there are places"
    );
    scene.own.destroy(&id).await.unwrap();
    assert!(!home.exists());
    assert_eq!(scene.names().await, ["ssh:a"]);
}

/// Nothing was done there yet, so nothing needs a machine that is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_never_touched_its_machine_needs_no_cleaning() {
    let mut bench = Bench::ssh().await;
    let id = bench.rent("dumont/c/w/1").await;
    bench.silence().await;
    bench.provider().destroy(&id).await.unwrap();
    assert_eq!(bench.provider().get(&id).await.unwrap(), None);
}

/// One that is silent is called offline only while we can be heard by another.
#[tokio::test(flavor = "multi_thread")]
async fn silence_of_all_is_not_the_word_of_any() {
    let scene = scene(false).await;
    let (mut a, mut b) = (Sshd::new(), Sshd::new());
    for (name, sshd) in [("a", &a), ("b", &b)] {
        sshd.let_in(&scene.line);
        scene.add(name, sshd).await;
    }
    let id = scene.rent("dumont/c/w/1").await;
    assert_eq!(
        scene.own.get(&id).await.unwrap().unwrap().status,
        InstanceStatus::Running
    );
    a.stop();
    assert_eq!(
        scene.own.get(&id).await.unwrap().unwrap().status,
        InstanceStatus::Offline
    );
    b.stop();
    let silent = scene.own.get(&id).await.unwrap_err();
    assert_eq!(silent.class, ErrorClass::Transient);
}

/// A lease is where its machine is now, not where it was when it was given.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_follows_its_machine_to_another_address() {
    let scene = scene(false).await;
    let (before, after) = (Sshd::new(), Sshd::new());
    for sshd in [&before, &after] {
        sshd.let_in(&scene.line);
    }
    scene.add("a", &before).await;
    let id = scene.rent("dumont/c/w/1").await;
    let at = |instance: &ProviderInstance| instance.ssh[0].port;
    assert_eq!(at(&scene.own.get(&id).await.unwrap().unwrap()), before.port);
    scene.add("a", &after).await;
    let seen = scene.own.get(&id).await.unwrap().unwrap();
    assert_eq!((seen.status, at(&seen)), (InstanceStatus::Running, after.port));
    let found = scene.own.find_by_label("dumont/c/w/1").await.unwrap().unwrap();
    assert_eq!(at(&found), after.port);
}
