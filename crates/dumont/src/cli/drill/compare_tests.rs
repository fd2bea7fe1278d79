//! One thing is changed, one thing is found.

use super::*;
use std::fs::FileTimes;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

fn make(root: &Path) {
    fs::create_dir_all(root.join("d/empty")).unwrap();
    fs::write(root.join("d/a"), b"hello").unwrap();
    fs::write(root.join("b"), vec![7; 100_000]).unwrap();
    fs::hard_link(root.join("b"), root.join("d/b2")).unwrap();
    symlink("d/a", root.join("l")).unwrap();
    File::create(root.join("holes"))
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
}

/// The differences after `change`, with the times of everything else as they were.
fn after(change: impl Fn(&Path)) -> Vec<(String, How)> {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    let before = scan(dir.path()).unwrap();
    change(dir.path());
    let mut after = scan(dir.path()).unwrap();
    // Changing a directory's content moves its time, which is not what is asked here.
    for (path, entry) in &mut after.0 {
        if let (What::Directory, Some(b)) = (&entry.what, before.0.get(path)) {
            entry.mtime_ns = b.mtime_ns;
        }
    }
    diff(&before, &after)
        .into_iter()
        .map(|d| (printable(&d.path), d.how))
        .collect()
}

fn keep_time(path: &Path, change: impl Fn(&Path)) {
    let time = fs::metadata(path).unwrap().modified().unwrap();
    change(path);
    let file = File::options().append(true).open(path).unwrap();
    file.set_times(FileTimes::new().set_modified(time)).unwrap();
}

#[test]
fn the_same_tree_has_no_difference() {
    assert_eq!(after(|_| {}), []);
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    let tree = scan(dir.path()).unwrap();
    assert_eq!((tree.files(), tree.bytes()), (5, 5 + 200_000 + (8 << 20)));
}

#[test]
fn one_flipped_bit_is_found() {
    let got = after(|root| {
        keep_time(&root.join("b"), |p| {
            let mut bytes = fs::read(p).unwrap();
            bytes[77_777] ^= 1;
            fs::write(p, bytes).unwrap();
        });
    });
    let how = How::Bytes {
        expected: 100_000,
        found: 100_000,
    };
    assert_eq!(got, [("b".into(), how.clone()), ("d/b2".into(), how)]);
}

#[test]
fn mode_and_a_nanosecond_are_found() {
    let got = after(|root| {
        fs::set_permissions(root.join("d/a"), fs::Permissions::from_mode(0o640)).unwrap();
    });
    assert!(
        matches!(got[..], [(_, How::Mode { found: 0o640, .. })]),
        "{got:?}"
    );
    let at = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5);
    let set = |root: &Path, t| {
        File::open(root.join("d/a"))
            .unwrap()
            .set_times(FileTimes::new().set_modified(t))
            .unwrap();
    };
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    set(dir.path(), at);
    let before = scan(dir.path()).unwrap();
    set(dir.path(), at + Duration::from_nanos(1));
    let got = diff(&before, &scan(dir.path()).unwrap());
    assert!(
        matches!(
            got[..],
            [Difference {
                how: How::Mtime { .. },
                ..
            }]
        ),
        "{got:?}"
    );
}

#[test]
fn missing_extra_and_replaced_are_found() {
    let one = |got: Vec<(String, How)>, path: &str, how: How| assert_eq!(got, [(path.to_owned(), how)]);
    one(
        after(|r| fs::remove_dir(r.join("d/empty")).unwrap()),
        "d/empty",
        How::Missing,
    );
    one(
        after(|r| fs::write(r.join("d/x"), "").unwrap()),
        "d/x",
        How::Extra,
    );
    let got = after(|r| {
        fs::remove_file(r.join("l")).unwrap();
        fs::write(r.join("l"), "hello").unwrap();
    });
    one(
        got,
        "l",
        How::Type {
            expected: "symbolic link",
            found: "file",
        },
    );
    let got = after(|r| {
        fs::remove_file(r.join("l")).unwrap();
        symlink("d/b", r.join("l")).unwrap();
    });
    assert_eq!(got[0], ("l".into(), How::Target));
}

#[test]
fn a_broken_hard_link_and_filled_holes_are_found() {
    let got = after(|r| {
        let time = fs::metadata(r.join("b")).unwrap().modified().unwrap();
        fs::remove_file(r.join("d/b2")).unwrap();
        fs::copy(r.join("b"), r.join("d/b2")).unwrap();
        File::open(r.join("d/b2"))
            .unwrap()
            .set_times(FileTimes::new().set_modified(time))
            .unwrap();
    });
    assert_eq!(got, [("b".into(), How::HardLink), ("d/b2".into(), How::HardLink)]);
    let got = after(|r| keep_time(&r.join("holes"), |p| fs::write(p, vec![0; 8 << 20]).unwrap()));
    assert_eq!(got, [("holes".into(), How::Holes)]);
}
