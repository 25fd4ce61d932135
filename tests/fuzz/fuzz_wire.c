/* SPDX-License-Identifier: Apache-2.0 */
/* Messages from a peer or a node: what decodes can be encoded again. */
#include "core/proto/wire.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t fuzz_seed(uint8_t *buf, size_t room);

size_t fuzz_seed(uint8_t *buf, size_t room)
{
    struct wire_message m = {.type = WIRE_READ, .session = 77};
    struct fragment_key key = {
        .job = "job", .node = "n1", .step = 9, .incarnation = 2, .kind = FRAGMENT_DATA, .rank = 3};
    uint8_t out[WIRE_MAX];

    m.read.key = key;
    m.read.request = 5;
    int n = wire_encode(&m, out, NULL);
    if (n < 0 || (size_t)n > room)
        abort();
    memcpy(buf, out, (size_t)n);
    return (size_t)n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct wire_message m;
    uint8_t out[WIRE_MAX];

    if (wire_decode(data, len, &m, NULL) == 0 && wire_encode(&m, out, NULL) < 0)
        abort();
    return 0;
}
