/* SPDX-License-Identifier: Apache-2.0 */
/* Header blocks as they come from a disk or a wire, of both versions: what parses has no other bytes than those that
 * seal gives. A block is also tried with its checksum made right, as if a daemon had written it. */
#include "core/model/hash.h"
#include "core/proto/fragment.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t fuzz_seed_nth(unsigned i, uint8_t *buf, size_t room);

/* Whole data, a delta and its parity, a piece of a blob. */
size_t fuzz_seed_nth(unsigned i, uint8_t *buf, size_t room)
{
    struct fragment f = {
        .key = {.job = "job", .node = "n1", .step = 9, .incarnation = 2, .kind = FRAGMENT_DATA, .rank = 3},
        .k = 2,
        .m = 2,
        .dtype = CAIRN_F32,
        .payload_len = 100,
        .part = {{.plain_len = 100, .coded_len = 100}, {.codec = 2, .plain_len = 5000, .coded_len = 4999}}};

    if (room < FRAGMENT_HEADER)
        abort();
    if (i % 4 == 1 || i % 4 == 2) {
        f.part[1].params = CAIRN_PART_DELTA;
        f.delta =
            (struct cairn_delta){.step = 8, .incarnation = 2, .entry = {77, 78}, .depth = (uint8_t)(1 + i / 4 % 4)};
    }
    if (i % 4 == 2) {
        f.key.index = 3;
        f.payload_len = 2 * CAIRN_BLOCK;
    } else if (i % 4 == 3) {
        f.key.kind = FRAGMENT_MANIFEST;
        f.k = 1;
        f.m = 0;
        f.dtype = CAIRN_BYTES;
        f.blob_len = 100;
        memset(f.part, 0, sizeof f.part);
    }
    fragment_seal(&f, buf);
    return FRAGMENT_HEADER;
}

static void try_block(const char *block)
{
    char again[FRAGMENT_HEADER], what[600];
    struct fragment f;

    if (fragment_parse(block, &f, NULL) < 0)
        return;
    fragment_describe(&f.key, what, sizeof what);
    fragment_seal(&f, again);
    if (memcmp(block, again, FRAGMENT_HEADER) != 0)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static const size_t summed[] = {600, 640}; /* of versions 1 and 2 */
    char block[FRAGMENT_HEADER] = {0};

    memcpy(block, data, len < sizeof block ? len : sizeof block);
    try_block(block);
    for (unsigned i = 0; i < 2; i++) {
        memset(block + summed[i], 0, sizeof block - summed[i]);
        uint64_t sum = cairn_hash64(block, summed[i], 0);
        memcpy(block + summed[i], &sum, sizeof sum);
        try_block(block);
        memcpy(block, data, len < sizeof block ? len : sizeof block);
    }
    return 0;
}
