/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CAIRN_TESTS_NODE_JOBS_TESTS_H
#define CAIRN_TESTS_NODE_JOBS_TESTS_H

void starts_are_adopted_raised_or_refused(void **state);
void two_nodes_commit_together(void **state);
void a_node_takes_so_many_ranks(void **state);
void reports_go_through_a_parent(void **state);
void the_coordinator_dies(void **state);
void a_crew_daemon_is_restarted(void **state);
void a_restarted_daemon_aborts_leftovers(void **state);
void ranks_go_on_under_a_restarted_daemon(void **state);
void a_rank_that_does_not_come_back_is_named(void **state);
void what_was_decided_is_said_to_who_comes_back(void **state);
void a_new_start_waits_a_lease_for_leftovers(void **state);
void a_stop_gives_nothing_up(void **state);
void a_lost_lease_is_taken_again(void **state);
void a_job_lost_to_another_node(void **state);
void a_replaced_coordinator_commits_nothing(void **state);
void a_take_over_fences(void **state);
void all_ranks_follow_one_pin(void **state);
void the_pin_falls_back(void **state);
void what_a_start_left_behind_is_no_base(void **state);
void what_others_left_behind_is_no_base(void **state);
void what_others_found_lost_is_no_base(void **state);
void the_pin_counts_fragments(void **state);
void peers_away_are_no_reason_to_start_from_scratch(void **state);
void damaged_records_are_named(void **state);
void a_moved_pin_must_be_loaded(void **state);
void a_rule_deletes_and_peers_are_waited_for(void **state);
void what_is_held_stays(void **state);
void a_restore_holds_until_it_ends(void **state);
void a_hold_and_a_tombstone_exclude_each_other(void **state);
void another_start_finishes_a_deletion(void **state);
void peers_that_are_away_keep_the_tombstone(void **state);
void the_one_before_stays_until_the_next_is_full(void **state);
void the_rule_of_a_job(void **state);
void ranks_that_disagree_are_named(void **state);
void by_policy_they_commit_nothing(void **state);
void a_comparison_ends_with_the_deadline(void **state);
void latest_finite_is_the_newest_that_is(void **state);

#endif
