/* SPDX-License-Identifier: Apache-2.0 */
/* A double of the CUDA runtime (and of the few calls of the driver that are used), for tests: libcairn-shim-cudart.so
 * has the runtime's symbols, over host memory, with a thread for each stream. Name it in $CAIRN_CUDART, before a device
 * is opened. These are the tests' own calls; the environment sets the same for programs that make none:
 *
 *     CAIRN_SHIM_DEVICES=2         how many devices there are (default 2; 0: as without a GPU)
 *     CAIRN_SHIM_MEMORY_MB=4096    memory of each
 *     CAIRN_SHIM_BYTES_PER_S=...   how fast the copy engine is (default: as fast as it goes)
 *     CAIRN_SHIM_DELAY_NS=...      before each piece of work in a stream
 *
 * What would be undefined (memory that was freed, a stream or event that was destroyed) ends the process with a line
 * that says what it was. Work in a stream happens in its order; between streams only events (and the legacy default
 * stream, as in the real one) order anything.
 */
#ifndef CAIRN_TESTS_SHIM_SHIM_H
#define CAIRN_TESTS_SHIM_SHIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SHIM_DEVICES 8

/* ---- what happens when ------------------------------------------------------------------------ */

/* Work that is in the stream, or comes into it, waits until it is released. NULL: all streams, also new ones. Not the
 * legacy default stream's name: that is shim_legacy(device). */
void shim_hold(void *stream);
void shim_release(void *stream);
/* The engine that copies to the host stands still, and with it the streams that need it. */
void shim_hold_to_host(int hold);
void *shim_legacy(int device);
/* Before each piece of work, in all streams; with a seed, somewhere between 0 and that, at random. */
void shim_delay(uint64_t ns, uint64_t seed);
/* Of each copy. 0: as fast as it goes. */
void shim_speed(uint64_t bytes_per_s);
/* Host code in a stream's order, as a kernel of the training loop. */
void shim_work(void *stream, void (*run)(void *arg), void *arg);
/* Everything that is in streams has run. */
void shim_drain(void);

/* ---- failures --------------------------------------------------------------------------------- */

/* The nth next call (from 1) of the function ("cudaMemcpyAsync"; "*": of any) fails with the code. A code that does not
 * go away in the real runtime does not go away here. 0 as nth: no failure any more. */
void shim_fail(const char *function, uint64_t nth, int code);
/* The nth next piece of work in any stream fails on the device, and with it everything behind it, for good. */
void shim_fail_work(uint64_t nth, int code);
/* A new process: the devices are well again, no failure, delay or hold is set, counters are 0. */
void shim_reset(void);

/* ---- what has happened ------------------------------------------------------------------------ */

uint64_t shim_calls(const char *function); /* "*": of all */
struct shim_left {
    uint64_t allocations; /* of devices' memory */
    uint64_t host_allocations;
    uint64_t registrations;
    uint64_t streams;
    uint64_t events;
    uint64_t graphs;
    uint64_t libraries;
    uint64_t contexts; /* that were retained by hand */
};
void shim_left(struct shim_left *ret_left);
/* Copies whose host memory was not pinned: in the real runtime they are slow and wait. */
uint64_t shim_unpinned_copies(void);
/* Bytes that the copy engine has moved, to the host and to devices. */
uint64_t shim_copied_bytes(void);
int shim_context_active(int device); /* somebody's call has made one */
/* Memory of a device: what is left of what it has, for "does not fit". */
void shim_memory(int device, uint64_t bytes);
void shim_device_count(int n);

#ifdef __cplusplus
}
#endif
#endif
