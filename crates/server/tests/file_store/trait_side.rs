use crate::scene::{SECRET, Scene, digest, names, wanted};
use dumont_server::objects::file::FileStore;
use dumont_server::objects::{ObjectError, ObjectStore};
use std::fs;
use std::process::Command;

#[tokio::test]
async fn put_is_create_and_can_be_repeated() {
    let scene = Scene::new().await;
    let store = &scene.store;
    assert!(matches!(store.get("a/b").await, Err(ObjectError::Missing(k)) if k == "a/b"));
    assert_eq!(store.head("a/b").await.unwrap(), None);
    assert_eq!(store.grant_download(&scene.base, "a/b").await.unwrap().url, None);
    store.put("a/b", b"one").await.unwrap();
    store.put("a/b", b"one").await.unwrap();
    assert!(matches!(store.put("a/b", b"two").await, Err(ObjectError::Exists(k)) if k == "a/b"));
    assert_eq!(store.get("a/b").await.unwrap(), b"one");
    let meta = store.head("a/b").await.unwrap().unwrap();
    assert_eq!((meta.size, meta.digest), (3, Some(digest(b"one"))));
    store.delete("a/b").await.unwrap();
    store.delete("a/b").await.unwrap();
    assert_eq!(store.head("a/b").await.unwrap(), None);
}

#[tokio::test]
async fn lists_by_prefix_sorted_and_never_through_links() {
    let scene = Scene::new().await;
    let store = &scene.store;
    for key in [
        "w/2/x",
        "w/1/packs/b",
        "w/1/packs/a",
        "w/1/packs-old/c",
        "w/10/y",
        "v",
    ] {
        store.put(key, key.as_bytes()).await.unwrap();
    }
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    std::os::unix::fs::symlink(outside.path(), scene.object("w/1/link")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), scene.object("w/1/file")).unwrap();
    let keys = |prefix: &'static str| async move {
        store
            .list(prefix)
            .await
            .unwrap()
            .into_iter()
            .map(|m| m.key)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        keys("").await,
        [
            "v",
            "w/1/packs-old/c",
            "w/1/packs/a",
            "w/1/packs/b",
            "w/10/y",
            "w/2/x"
        ]
    );
    assert_eq!(
        keys("w/1/").await,
        ["w/1/packs-old/c", "w/1/packs/a", "w/1/packs/b"]
    );
    assert_eq!(
        keys("w/1").await,
        ["w/1/packs-old/c", "w/1/packs/a", "w/1/packs/b", "w/10/y"]
    );
    assert_eq!(keys("w/1/packs/a").await, ["w/1/packs/a"]);
    assert!(
        keys("none/").await.is_empty() && keys("v/").await.is_empty() && keys("w/1/link/").await.is_empty()
    );
    assert_eq!(store.list("v").await.unwrap()[0].digest, Some(digest(b"v")));
    assert!(store.list("../").await.is_err() && store.list("/etc/").await.is_err());
    assert_eq!(store.head("w/1/file").await.unwrap(), None);
    assert!(matches!(
        store.get("w/1/file").await,
        Err(ObjectError::Missing(_))
    ));
}

#[tokio::test]
async fn bad_keys_are_refused_everywhere() {
    let scene = Scene::new().await;
    let store = &scene.store;
    for key in ["", "/a", "a/", "../a", "a/../b", "a b", "a\nb"] {
        let refused = |e: ObjectError| matches!(e, ObjectError::InvalidKey(_));
        assert!(refused(store.put(key, b"").await.unwrap_err()), "{key:?}");
        assert!(refused(store.get(key).await.unwrap_err()), "{key:?}");
        assert!(refused(store.head(key).await.unwrap_err()), "{key:?}");
        assert!(refused(store.delete(key).await.unwrap_err()), "{key:?}");
        assert!(
            refused(
                store
                    .grant_upload("http://h", key, &wanted(b""))
                    .await
                    .unwrap_err()
            ),
            "{key:?}"
        );
        assert!(
            refused(store.grant_download("http://h", key).await.unwrap_err()),
            "{key:?}"
        );
    }
    store.put("a/b", b"x").await.unwrap();
    assert!(
        matches!(store.put("a", b"x").await, Err(ObjectError::InvalidKey(_))),
        "a folder sits there"
    );
    assert!(
        matches!(store.put("a/b/c", b"x").await, Err(ObjectError::InvalidKey(_))),
        "an object sits there"
    );
    assert!(names(&scene.dir.path().join("incoming")).is_empty());
}

#[tokio::test]
async fn objects_outlive_the_process_and_grants_of_another_secret_do_not_serve() {
    let scene = Scene::new().await;
    scene.store.put("k", b"x").await.unwrap();
    let again = FileStore::open(scene.dir.path(), SECRET).unwrap();
    assert_eq!(again.get("k").await.unwrap(), b"x");
    let foreign = FileStore::open(scene.dir.path(), [8; 32]).unwrap();
    let url = foreign
        .grant_download(&scene.base, "k")
        .await
        .unwrap()
        .url
        .unwrap();
    assert_eq!(scene.get(&url, None).await.status(), 403);
    assert!(!format!("{again:?}").contains("7, 7"), "the secret is not shown");
}

#[tokio::test]
#[ignore = "mounts a small file system, which needs root: run with --ignored as root"]
async fn a_full_disk_is_told_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(mount.success());
    let store = FileStore::open(dir.path(), SECRET).unwrap();
    store.put("small", &[1; 1000]).await.unwrap();
    let full = store.put("large", &vec![1; 4 << 20]).await;
    let (left, small) = (names(&dir.path().join("incoming")), store.get("small").await);
    let listed = store.list("").await.unwrap().len();
    Command::new("umount").arg(dir.path()).status().unwrap();
    assert!(matches!(full, Err(ObjectError::Full(_))), "{full:?}");
    assert!(left.is_empty() && small.unwrap() == [1; 1000] && listed == 1);
}
