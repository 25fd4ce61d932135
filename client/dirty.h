/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel tells about writes to this process's memory: userfaultfd's write protection in its asynchronous mode,
 * where the kernel itself lets a write through and notes it, read and armed again by PAGEMAP_SCAN. Linux 6.7.
 *
 * It sees every write that goes through this process's page tables: the program's own, and the kernel's on its behalf.
 * It does not see devices that were given the memory's physical addresses before (RDMA, pinned CUDA memory), nor other
 * processes. Memory that is shared or a file's is therefore not watched; of devices the caller must say. */
#ifndef CAIRN_CLIENT_DIRTY_H
#define CAIRN_CLIENT_DIRTY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cairn/cairn.h>

struct dirty {
    int uffd;
    int pagemap;
    size_t page; /* bytes */
};

/* UNSUPPORTED, with the reason, when this kernel lacks it, forbids it, or does not detect a write that is made to see
 * whether it does. */
int dirty_open(struct dirty *d, struct cairn_error *err);
void dirty_close(struct dirty *d);

/* From now on writes to [begin, end), whole pages, are noted. */
int dirty_watch(struct dirty *d, uintptr_t begin, uintptr_t end, struct cairn_error *err);
void dirty_forget(struct dirty *d, uintptr_t begin, uintptr_t end);
/* Calls written(arg, first, n) for all pages, counted from begin, that were written or whose memory was replaced since
 * the call before; arms them again. Pages may be told twice. After a failure nothing is known about any of them. */
int dirty_take(struct dirty *d, uintptr_t begin, uintptr_t end, void (*written)(void *arg, uint64_t first, uint64_t n),
               void *arg, struct cairn_error *err);
/* Whether all pages that are there are this process's alone. */
int dirty_is_private(struct dirty *d, uintptr_t begin, uintptr_t end, bool *ret_private, struct cairn_error *err);

#endif
