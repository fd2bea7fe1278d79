//! What a provider promises (`providers::Provider`), written once and kept by each.
//!
//! A test takes a [`Bench`] and knows no provider. What differs, the bench does: at Vast.ai it is
//! the emulated marketplace, and for machines of the user's own the database and OpenSSH's server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot set up its world fails"
)]

mod bench;
mod contract;
mod doors;
mod own;
mod sshd;

macro_rules! on_every_provider {
    ($($test:ident),+ $(,)?) => {
        on_one_provider!(vast: $($test),+);
        on_one_provider!(ssh: $($test),+);
    };
}

macro_rules! on_one_provider {
    ($provider:ident: $($test:ident),+) => {
        mod $provider {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                crate::contract::$test(crate::bench::Bench::$provider().await).await;
            })+
        }
    };
}

on_every_provider! {
    what_is_offered_fits_what_was_asked_for,
    a_rent_is_found_by_its_label_whoever_asks,
    a_label_is_rented_once_though_the_reply_is_lost,
    a_list_is_complete,
    destroying_is_repeatable_and_the_unknown_is_gone,
    silence_is_an_error_and_never_absence,
    a_key_may_be_attached_twice,
    an_offer_that_is_gone_and_a_closed_door_are_told_apart,
    a_debt_outlives_who_owes_it,
}
