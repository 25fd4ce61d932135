/* SPDX-License-Identifier: Apache-2.0 */
/* Untrusted layouts: what decodes must be consistent, and give the same bytes again. */
#include "core/model/layout.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t fuzz_seed(uint8_t *buf, size_t room);

size_t fuzz_seed(uint8_t *buf, size_t room)
{
    struct cairn_layout l;
    struct bytes out = {.data = NULL};
    uint64_t shape[2] = {64, 32}, offset[2] = {8, 0}, length[2] = {16, 32};
    struct cairn_tensor t = {.size = sizeof t,
                             .name = "a.weight",
                             .dtype = CAIRN_BF16,
                             .ndim = 2,
                             .shape = shape,
                             .offset = offset,
                             .length = length};

    cairn_layout_init(&l);
    cairn_layout_add(&l, &t, NULL);
    t.flags = CAIRN_TENSOR_COMMON;
    offset[0] = 32;
    cairn_layout_add(&l, &t, NULL);
    cairn_layout_add(&l, &(struct cairn_tensor){.size = sizeof t, .name = "step", .dtype = CAIRN_I64}, NULL);
    if (cairn_layout_place(&l, NULL) < 0 || cairn_layout_encode(&l, &out, NULL) < 0 || out.len > room)
        abort();
    memcpy(buf, out.data, out.len);
    size_t n = out.len;
    bytes_free(&out);
    cairn_layout_free(&l);
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct cairn_layout l;
    struct bytes out = {.data = NULL};
    uint64_t end = 0;

    cairn_layout_init(&l);
    if (cairn_layout_decode(&l, data, len, NULL) < 0)
        return 0;
    for (uint32_t p = 0; p < l.nparts && p < 4096; p++)
        end += cairn_layout_part_len(&l, p);
    if (cairn_layout_encode(&l, &out, NULL) == 0 && (out.len != len || memcmp(out.data, data, len) != 0))
        abort();
    bytes_free(&out);
    cairn_layout_free(&l);
    return end == UINT64_MAX;
}
