/* SPDX-License-Identifier: Apache-2.0 */
/* Letters from another node: what decodes can be encoded again, and comes back the same. */
#include "core/proto/crew.h"

#include "core/base/bytes.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t fuzz_seed(uint8_t *buf, size_t room);

size_t fuzz_seed(uint8_t *buf, size_t room)
{
    static struct crew_letter l = {.type = CREW_REPORT,
                                   .from = {.node = "n1", .start = 7, .bytes = {1, 2, 3}, .len = 3},
                                   .job = "job",
                                   .report = {.step = 9, .incarnation = 2, .nentries = 2}};
    struct bytes out = {0};

    l.report.entries[0] =
        (struct crew_entry){.rank = 3, .state = REPORT_FAILED, .reason = "why", .shard = {.node = "n1", .rank = 3}};
    l.report.entries[1] = (struct crew_entry){
        .rank = 4,
        .state = REPORT_DURABLE,
        .shard = {.node = "n1", .rank = 4, .manifest = {.len = 5, .npeers = 1, .peer = {"p1"}}, .plain_bytes = 8}};
    if (crew_encode(&l, &out, NULL) < 0 || out.len > room)
        abort();
    memcpy(buf, out.data, out.len);
    size_t n = out.len;
    bytes_free(&out);
    return n;
}

static void again(const struct crew_letter *l)
{
    static struct crew_letter second;
    struct bytes out = {0};

    if (crew_encode(l, &out, NULL) < 0 || crew_decode(out.data, out.len, &second, NULL) < 0 ||
        memcmp(l, &second, sizeof second) != 0)
        abort();
    bytes_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct crew_letter l;
    struct crew_sealed s;

    if (crew_decode(data, len, &l, NULL) == 0)
        again(&l);
    if (crew_open(data, len, &s, NULL) == 0)
        bytes_free(&s.letter);
    return 0;
}
