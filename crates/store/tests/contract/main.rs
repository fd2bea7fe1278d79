//! What every engine must do, written once and run on each.
//!
//! A test takes a [`Fixture`] and knows no engine. A new engine is one more way to make a
//! fixture and one more line in `on_every_engine!`.

// The whole program is a test, which clippy cannot see of functions that macros call.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attempts;
mod blocks;
mod dice;
mod fixture;
mod gates;
mod instances;
mod keeping;
mod lists;
mod own_machines;
mod remembered;
mod restart;
mod schedule;
mod scores;
mod sharing;
mod small;
mod snapshots;
mod spending;
mod workflows;

use fixture::Fixture;

macro_rules! on_every_engine {
    ($($tests:tt)+) => {
        on_one_engine!(sqlite: $($tests)+);
        on_one_engine!(postgres: $($tests)+);
    };
}

macro_rules! on_one_engine {
    ($engine:ident: $($file:ident: $($test:ident),+ $(,)?;)+) => {
        mod $engine {
            $(mod $file {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $test() {
                    crate::$file::$test(crate::Fixture::$engine()).await;
                })+
            })+
        }
    };
}

on_every_engine! {
    attempts:
        a_repeat_is_recorded_once,
        concurrent_writers_leave_the_stats_of_a_recount,
        rules_block_and_blocks_end,
        a_manual_entry_outlives_the_rules,
        machines_are_paged_and_asked_for_in_bulk,
        attempts_are_read_as_written;
    blocks:
        old_failures_do_not_block_twice,
        what_others_say_counts_and_never_blocks,
        three_losses_in_a_week_block_for_a_day,
        incidents_and_drivers_are_not_charged;
    sharing:
        counts_are_added_once_whatever_came_before,
        imports_side_by_side_add_nothing_twice;
    gates:
        turns_are_given_as_core_decides,
        eight_replicas_keep_the_distance,
        refusals_are_shared,
        a_turn_that_nobody_looks_at_holds_up_no_writer;
    instances:
        an_intent_comes_before_the_contract,
        what_others_asked_for_is_known_by_its_key,
        a_lease_is_over_when_nothing_was_heard_for_so_long,
        states_only_move_forward,
        a_late_reply_does_not_revive,
        open_ones_are_never_forgotten;
    keeping:
        rolled_up_attempts_stay_in_the_numbers,
        what_is_exported_can_be_imported_elsewhere;
    lists:
        the_summary_agrees_with_the_levels,
        lists_are_filtered_and_paged;
    own_machines:
        told_machines_are_kept_and_replaced,
        a_label_is_leased_once_and_a_place_has_one_lease,
        a_machine_is_not_leased_before_it_is_clean,
        many_at_once_take_each_place_once,
        the_first_host_key_stays;
    remembered:
        a_reader_with_a_memory_sees_what_one_without_sees,
        a_block_ends_at_its_second,
        nobody_sees_less_than_was_there_before,
        what_began_first_and_ends_last_is_seen;
    scores:
        scores_are_what_a_recount_gives,
        extremes_are_ordered_by_what_a_score_is_worth_now,
        thirty_two_writers_lose_and_double_nothing;
    schedule:
        only_what_runs_and_rests_is_idle;
    small:
        a_name_is_taken_until_its_workspace_is_deleted,
        workspaces_are_paged_by_name,
        attaching_needs_the_fence_of_now,
        first_value_of_meta_wins,
        tokens_are_found_and_revoked,
        events_are_written_once_and_read_as_written,
        reopening_keeps_everything,
        sixteen_writers_never_see_a_lock;
    snapshots:
        what_is_needed_or_pinned_never_expires,
        a_head_is_replaced_only_by_who_has_seen_it,
        nothing_is_visible_before_its_commit,
        an_old_fence_commits_nothing,
        an_import_into_a_draft_has_no_instance,
        newest_first_in_pages,
        a_visible_one_is_never_replaced;
    spending:
        every_hour_of_this_month_is_counted_once,
        a_price_counts_from_when_it_is_paid,
        the_sum_is_what_a_plain_one_gives,
        an_old_look_changes_no_price;
    workflows:
        each_is_claimed_once,
        an_expired_lease_gives_a_higher_fence,
        a_stale_owner_commits_nothing,
        one_runs_per_workspace,
        a_failover_does_not_wait_for_a_snapshot,
        work_for_a_machine_it_has_left_is_refused,
        a_step_and_its_effects_are_one,
        a_repeated_commit_changes_nothing,
        the_log_is_bounded;
}
