/* SPDX-License-Identifier: Apache-2.0 */
/* Header blocks as they come from a disk or a wire: what parses has no other bytes than those that seal gives. */
#include "core/proto/fragment.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t fuzz_seed(uint8_t *buf, size_t room);

size_t fuzz_seed(uint8_t *buf, size_t room)
{
    struct fragment f = {
        .key = {.job = "job", .node = "n1", .step = 9, .incarnation = 2, .kind = FRAGMENT_DATA, .rank = 3},
        .k = 1,
        .m = 2,
        .dtype = CAIRN_F32,
        .payload_len = 100,
        .part = {{.plain_len = 100, .coded_len = 100}}};

    if (room < FRAGMENT_HEADER)
        abort();
    fragment_seal(&f, buf);
    return FRAGMENT_HEADER;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char block[FRAGMENT_HEADER] = {0}, again[FRAGMENT_HEADER], what[600];
    struct fragment f;

    memcpy(block, data, len < sizeof block ? len : sizeof block);
    if (fragment_parse(block, &f, NULL) < 0)
        return 0;
    fragment_describe(&f.key, what, sizeof what);
    fragment_seal(&f, again);
    if (memcmp(block, again, 608) != 0)
        abort();
    return 0;
}
