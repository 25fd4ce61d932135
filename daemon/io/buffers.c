/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/io/buffers.h"

#include "core/base/bytes.h"
#include "core/base/error.h"
#include "core/model/units.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

struct buffers {
    char *base;
    size_t mapped;
    size_t len; /* of one */
    unsigned count;
    unsigned nfree;
    unsigned free[]; /* indices; a stack, so that the warmest is used next */
};

int buffers_new(size_t len, unsigned count, struct buffers **ret_buffers, struct cairn_error *err)
{
    struct buffers *b = calloc(1, sizeof(*b) + count * sizeof(b->free[0]));

    if (!b)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a pool of %u buffers", count);
    b->len = round_up_u64(len, CAIRN_BLOCK);
    b->mapped = b->len * count;
    void *p = mmap(NULL, b->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        int e = errno;
        free(b);
        return cairn_fail_errno(err, e, "map %u buffers of %zu bytes", count, len);
    }
    (void)madvise(p, b->mapped, MADV_HUGEPAGE); /* advice: a kernel without them is slower, not wrong */
    if (madvise(p, b->mapped, MADV_POPULATE_WRITE) < 0 && errno != EINVAL) {
        int e = errno;
        munmap(p, b->mapped);
        free(b);
        return cairn_fail_errno(err, e, "fault in %u buffers of %zu bytes", count, len);
    }
    b->base = p;
    for (b->count = 0; b->count < count; b->count++)
        b->free[b->nfree++] = count - 1 - b->count;
    *ret_buffers = b;
    return 0;
}

void buffers_free(struct buffers *b)
{
    if (!b)
        return;
    assert(b->nfree == b->count);
    munmap(b->base, b->mapped);
    free(b);
}

void *buffers_take(struct buffers *b)
{
    return b->nfree ? b->base + b->free[--b->nfree] * b->len : NULL;
}

void buffers_give(struct buffers *b, void *buffer)
{
    size_t at = (size_t)((char *)buffer - b->base);

    assert(at < b->mapped && at % b->len == 0 && b->nfree < b->count);
    b->free[b->nfree++] = (unsigned)(at / b->len);
}

unsigned buffers_available(const struct buffers *b)
{
    return b->nfree;
}

size_t buffers_len(const struct buffers *b)
{
    return b->len;
}

void *buffers_base(const struct buffers *b, size_t *ret_len)
{
    *ret_len = b->mapped;
    return b->base;
}
