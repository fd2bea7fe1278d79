use super::*;
use crate::extras::Extras;
use crate::format::digest;
use proptest::prelude::*;

fn file(name: &[u8]) -> Entry {
    let extents = [
        Extent::Chunk {
            id: digest(b"c"),
            len: 10,
        },
        Extent::Hole { len: 90 },
    ];
    let attrs = Attrs {
        mode: 0o4755,
        uid: 1,
        gid: 2,
        mtime: Time {
            sec: -5,
            ns: 999_999_999,
        },
    };
    Entry {
        name: name.into(),
        attrs,
        body: Body::File {
            size: 100,
            group: 7,
            extents: Extents::Here(extents[..].into()),
        },
        more: None,
    }
}

fn node(names: &[&[u8]]) -> Node {
    Node {
        attrs: Attrs::default(),
        more: None,
        entries: names.iter().map(|n| file(n)).collect(),
    }
}

#[test]
fn nodes_round_trip() {
    let mut n = node(&[b"a\nb", b"b\xff"]);
    let plain = |name: &[u8], body| Entry {
        name: name.into(),
        attrs: Attrs::default(),
        body,
        more: None,
    };
    n.entries.push(plain(b"c", Body::Dir { node: digest(b"d") }));
    n.entries.push(plain(
        b"d",
        Body::Symlink {
            target: b"/any/where".as_slice().into(),
        },
    ));
    n.entries.push(plain(b"e", Body::Fifo));
    let xattr = (b"user.a".as_slice().into(), b"v".as_slice().into());
    n.more = Extras::some(vec![xattr], None);
    n.entries[0].more = Extras::some(Vec::new(), Some([7; 16]));
    let bytes = n.encode();
    assert_eq!(Node::decode(&bytes).unwrap(), n);
    assert!(Node::decode(&bytes[..bytes.len() - 1]).is_err());
}

#[test]
fn names_that_leave_the_directory_are_refused() {
    let long = [b'x'; 256];
    for bad in [
        b"".as_slice(),
        b".",
        b"..",
        b"../x",
        b"/etc/passwd",
        b"a/b",
        b"a\0b",
        &long,
    ] {
        assert!(Node::decode(&node(&[bad]).encode()).is_err(), "{bad:?}");
    }
    assert!(
        Node::decode(&node(&[b"b", b"a"]).encode()).is_err(),
        "out of order"
    );
    assert!(Node::decode(&node(&[b"a", b"a"]).encode()).is_err(), "twice");
}

#[test]
fn counts_alone_allocate_nothing() {
    let mut bytes = vec![TAG_NODE];
    put_attrs(&mut bytes, &Attrs::default());
    bytes.u32(u32::MAX);
    assert!(Node::decode(&bytes).is_err());
    assert!(decode_extents(&[TAG_EXTENTS, 255, 255, 255, 255]).is_err());
    assert!(decode_pieces(&[TAG_PIECES, 255, 255, 255, 255]).is_err());
}

#[test]
fn lengths_that_overflow_are_refused() {
    let list = encode_extents(&[Extent::Hole { len: u64::MAX }, Extent::Hole { len: 1 }]);
    assert!(decode_extents(&list).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn random_and_mutated_bytes_never_panic(
        random in prop::collection::vec(any::<u8>(), 0..300),
        at in 0usize..10_000,
        byte in any::<u8>(),
    ) {
        let mut tagged = vec![TAG_NODE];
        tagged.extend(&random);
        let mut rich = node(&[b"a", b"b", b"c"]);
        let xattr = |n: &[u8]| (n.into(), b"v".as_slice().into());
        rich.more = Extras::some(vec![xattr(b"user.a"), xattr(b"user.b")], None);
        rich.entries[1].more = Extras::some(vec![xattr(b"user.c")], Some([7; 16]));
        let mut mutated = rich.encode();
        let at = at % mutated.len();
        mutated[at] = byte;
        for bytes in [&random, &tagged, &mutated] {
            if let Ok(n) = Node::decode(bytes) {
                // What decodes is canonical: there is one encoding of each node.
                prop_assert_eq!(&n.encode(), bytes);
            }
            _ = decode_extents(bytes);
            _ = decode_pieces(bytes);
        }
    }
}
