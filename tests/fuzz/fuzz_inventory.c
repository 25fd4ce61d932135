/* SPDX-License-Identifier: Apache-2.0 */
/* The longest message: a page of what a peer stores. What decodes can be encoded again. */
#include "core/proto/wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t fuzz_seed(uint8_t *buf, size_t room);

size_t fuzz_seed(uint8_t *buf, size_t room)
{
    struct wire_message m = {.type = WIRE_INVENTORY_ITEMS, .session = 77};
    uint8_t out[WIRE_MAX];

    m.inventory_items.request = 5;
    m.inventory_items.n = WIRE_ITEMS;
    snprintf(m.inventory_items.engine, sizeof m.inventory_items.engine, "e1");
    for (unsigned i = 0; i < WIRE_ITEMS; i++)
        m.inventory_items.items[i] = (struct wire_stream){.job = "job", .step = i, .incarnation = 2, .node = "n1"};
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
