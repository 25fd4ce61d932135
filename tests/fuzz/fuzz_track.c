/* SPDX-License-Identifier: Apache-2.0 */
/* Any order of writes, saves, failures and moves: what is saved is what the tensors hold. */
#include <stdlib.h>

#include "tests/unit/track/world.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    uint64_t skipped;

    if (!track_world_run(data, len < 512 ? len : 512, &skipped))
        abort();
    return 0;
}
