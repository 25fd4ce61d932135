/* SPDX-License-Identifier: Apache-2.0 */
/* Untrusted catalogs. */
#include "core/model/catalog.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct cairn_catalog c;

    cairn_catalog_init(&c);
    if (cairn_catalog_decode(&c, data, len, NULL) == 0)
        for (uint32_t i = 0; i < c.nshards; i++)
            if (c.shards[i].layout.nparts)
                (void)cairn_catalog_chunk_of(&c.shards[i], c.shards[i].layout.nparts - 1);
    cairn_catalog_free(&c);
    return 0;
}
