//! Which CUDA version a machine's driver serves.
//!
//! The marketplace's own figure is what the host reported once; the driver that is really there
//! is seen when our program runs in the container. NVIDIA ties each branch of the driver to the
//! newest CUDA it serves, and prints the pair in the header of `nvidia-smi`; asking for that
//! header would cost a second call on the way to ready, so the branches stand here. What is
//! newer than the table, or no driver version at all, is not called too old: a machine is only
//! turned away for what is known.

use crate::blacklist::CudaVersion;

/// Branch (the first number of a driver's version) and the newest CUDA it serves; "CUDA Toolkit
/// and Corresponding Driver Versions" of NVIDIA's release notes, Linux on x86-64.
const BRANCHES: [(u32, (u8, u8)); 25] = [
    (390, (9, 1)),
    (396, (9, 2)),
    (410, (10, 0)),
    (418, (10, 1)),
    (440, (10, 2)),
    (450, (11, 0)),
    (455, (11, 1)),
    (460, (11, 2)),
    (465, (11, 3)),
    (470, (11, 4)),
    (495, (11, 5)),
    (510, (11, 6)),
    (515, (11, 7)),
    (520, (11, 8)),
    (525, (12, 0)),
    (530, (12, 1)),
    (535, (12, 2)),
    (545, (12, 3)),
    (550, (12, 4)),
    (555, (12, 5)),
    (560, (12, 6)),
    (565, (12, 7)),
    (570, (12, 8)),
    (575, (12, 9)),
    (580, (13, 0)),
];
/// A branch from here on may serve what was not written down yet.
const UNKNOWN_FROM: u32 = 585;

/// The newest CUDA that this driver is known to serve; `None` where the table does not say.
pub fn serves(driver: &str) -> Option<CudaVersion> {
    let branch: u32 = driver.trim().split('.').next()?.parse().ok()?;
    let known = BRANCHES.iter().rev().find(|(from, _)| *from <= branch)?;
    let (major, minor) = known.1;
    (branch < UNKNOWN_FROM).then_some(CudaVersion { major, minor })
}

/// Whether the driver is known to be too old for that version.
pub fn is_too_old(driver: &str, asked: CudaVersion) -> bool {
    serves(driver).is_some_and(|newest| newest < asked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cuda(text: &str) -> CudaVersion {
        text.parse().expect(text)
    }

    #[test]
    fn drivers_serve_what_nvidia_smi_shows_beside_them() {
        for (driver, newest) in [
            ("470.256.02", "11.4"),
            ("535.183.01", "12.2"),
            ("550.127.05", "12.4"),
            ("565.77", "12.7"),
            ("570.124.04", "12.8"),
            ("580.65.06", "13.0"),
        ] {
            assert_eq!(serves(driver), Some(cuda(newest)), "{driver}");
            assert!(!is_too_old(driver, cuda(newest)), "{driver}");
        }
        assert!(is_too_old("550.127.05", cuda("12.8")));
        assert!(!is_too_old("550.127.05", cuda("12.1")));
    }

    #[test]
    fn what_is_not_known_is_not_too_old() {
        for driver in ["", "[N/A]", "1", "600.10", "99999999999.1", "driver 550"] {
            assert!(!is_too_old(driver, cuda("13.9")), "{driver}");
        }
    }

    proptest! {
        #[test]
        fn a_newer_driver_never_serves_less(a in 300..584_u32, b in 300..584_u32) {
            let (old, new) = (a.min(b).to_string(), a.max(b).to_string());
            prop_assert!(serves(&old) <= serves(&new));
        }
    }
}
