/* SPDX-License-Identifier: Apache-2.0 */
/* Untrusted root manifests. */
#include "core/proto/root.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct root m;

    root_init(&m);
    (void)root_decode(&m, data, len, NULL);
    root_free(&m);
    return 0;
}
