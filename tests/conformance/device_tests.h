/* SPDX-License-Identifier: Apache-2.0 */
/* The tests of device plugins, by what they are about. */
#ifndef CAIRN_TESTS_CONFORMANCE_DEVICE_TESTS_H
#define CAIRN_TESTS_CONFORMANCE_DEVICE_TESTS_H

/* test_device.c: bytes */
void test_random_layouts(void **state);
void test_without_kernels(void **state);
void test_pages_by_other_addresses(void **state);
void test_little_staging(void **state);
void test_sums(void **state);
void test_skip(void **state);
void test_nothing_is_left(void **state);
/* test_device_order.c: what waits for what */
void test_copies_wait_for_the_producer(void **state);
void test_volatile_may_change_at_once(void **state);
void test_fence_holds_writers_back(void **state);
void test_fence_in_a_graph(void **state);
void test_two_saves_under_way(void **state);
void test_volatile_of_two_saves(void **state);
void test_random_order(void **state);
void test_time_on_device(void **state);
void test_older_callers(void **state);
/* test_device_state.c: whose thread and process it is */
void test_captures_go_on(void **state);
void test_captured_stream_is_refused(void **state);
void test_contexts_of_others(void **state);
void test_pending_errors_stay(void **state);
void test_memory_that_is_refused(void **state);
void test_threads(void **state);
/* test_device_failures.c */
void test_each_call_fails_once(void **state);
void test_each_call_fails_when_packing(void **state);
void test_lost_devices(void **state);
void test_work_that_fails(void **state);
void test_volatile_does_not_fit(void **state);
void test_no_device_memory(void **state);
/* test_device_calls.c */
void test_few_calls(void **state);
/* test_device_pack.c */
void test_pack(void **state);
void test_pack_two_saves(void **state);
void test_pack_waits(void **state);
void test_pack_cannot(void **state);
void test_pack_beside_volatile(void **state);
void test_pack_is_refused(void **state);
/* test_device_load.c */
void test_loads(void **state);
void test_loads_when_busy(void **state);

#endif
