/* SPDX-License-Identifier: Apache-2.0 */
/* Untrusted manifest manifests. */
#include "core/proto/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct manifest m;

    manifest_init(&m);
    (void)manifest_decode(&m, data, len, NULL);
    manifest_free(&m);
    return 0;
}
