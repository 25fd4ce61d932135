/* SPDX-License-Identifier: Apache-2.0 */
#include "plugins/device-cuda/device.h"

#include "core/base/error.h"

/* cairn_dtype_size is libcairn's, which a plugin does not link: the slice says it itself. */
static uint64_t elements(const struct cairn_device_slice *slice)
{
    uint64_t n = 1;

    for (uint32_t i = 0; i < slice->ndim; i++)
        if (__builtin_mul_overflow(n, slice->length[i], &n))
            return 0;
    return n;
}

/* From the innermost dimension outwards: what continues the one below is the same dimension. */
static void add_dim(struct shape *s, uint64_t count, int64_t stride)
{
    if (count == 1)
        return;
    if (s->ndims == 0 && stride == (int64_t)s->width) {
        s->width *= count;
        return;
    }
    struct shape_dim *last = s->ndims ? &s->dims[s->ndims - 1] : NULL;
    if (last && stride == last->stride * (int64_t)last->count) {
        last->count *= count;
        return;
    }
    s->dims[s->ndims++] = (struct shape_dim){.count = count, .stride = stride};
}

int shape_make(struct shape *ret_shape, const struct cairn_device_slice *slice, struct cairn_error *err)
{
    uint64_t n = slice->ndim <= CAIRN_MAX_DIMS ? elements(slice) : 0;

    if (n == 0 || slice->bytes == 0 || slice->bytes % n)
        return cairn_fail(err, CAIRN_E_INVAL, "slice of %llu bytes at %llu of the image: its lengths do not fit",
                          (unsigned long long)slice->bytes, (unsigned long long)slice->image_offset);
    struct shape s = {.bytes = slice->bytes, .width = slice->bytes / n};
    if (slice->stride_bytes)
        for (uint32_t i = slice->ndim; i > 0; i--)
            add_dim(&s, slice->length[i - 1], slice->stride_bytes[i - 1]);
    else
        s.width = slice->bytes;
    *ret_shape = s;
    return 0;
}

int64_t shape_row(const struct shape *s, uint64_t row)
{
    int64_t at = 0;

    for (uint32_t i = 0; i < s->ndims; i++) {
        at += (int64_t)(row % s->dims[i].count) * s->dims[i].stride;
        row /= s->dims[i].count;
    }
    return at;
}
