/* SPDX-License-Identifier: Apache-2.0 */
/* Untrusted root manifests, with and without a base: what is taken encodes to what is taken again. */
#include "core/proto/root.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t fuzz_seed_nth(unsigned i, uint8_t *buf, size_t room);

size_t fuzz_seed_nth(unsigned i, uint8_t *buf, size_t room)
{
    struct shard_ref shards[] = {
        {.rank = 0, .node = "n1", .manifest = {.len = 500, .npeers = 1, .peer = {"p1"}}, .plain_bytes = 9},
        {.rank = 1, .node = "n2", .manifest = {.len = 501, .npeers = 2, .peer = {"p1", "p2"}}, .plain_bytes = 8}};
    struct root r = {.job = "job", .node = "n1", .step = 9, .incarnation = 2, .world_size = 2, .shards = shards};
    struct bytes out = {.data = NULL};

    if (i % 4 > 1)
        shards[1].numerics = (struct shard_numerics){true, {1, 2}, 3, {4, 5}, {6, 7}};
    if (i % 2)
        r.base = (struct ckpt_base){.is_set = true, .step = 8, .incarnation = 2};
    if (root_encode(&r, &out, NULL) < 0 || out.len > room)
        abort();
    memcpy(buf, out.data, out.len);
    size_t len = out.len;
    bytes_free(&out);
    return len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct root m, again;
    struct bytes out = {.data = NULL};

    root_init(&m);
    root_init(&again);
    if (root_decode(&m, data, len, NULL) == 0 &&
        (root_encode(&m, &out, NULL) < 0 || root_decode(&again, out.data, out.len, NULL) < 0 ||
         again.base.is_set != m.base.is_set || again.base.step != m.base.step))
        abort();
    bytes_free(&out);
    root_free(&again);
    root_free(&m);
    return 0;
}
