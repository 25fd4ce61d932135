/* SPDX-License-Identifier: Apache-2.0 */
/* A layout's bytes, little-endian:
 *
 *     0   8  magic "CRNLAYT1"
 *     8   4  version: 1, or 2 when a slice has a flag
 *     12  4  number of slices
 *     16  4  number of groups  } both follow from the slices: a reader that places differently finds out here
 *     20  4  number of parts   }
 *     24     slices, each:
 *               2   length of the name, 1 .. 4096
 *               1   dtype
 *               1   number of dimensions, 0 .. 16; in version 2 with 128 for CAIRN_TENSOR_COMMON
 *               8   image offset; 0 for an empty slice
 *               -   the name, without a terminator
 *               24  per dimension: shape, offset, length, 8 bytes each
 *
 * Nothing follows the last slice.
 */
#include "core/model/layout.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/units.h"

#include <inttypes.h>
#include <string.h>

#define MAGIC "CRNLAYT1"
#define MAGIC_LEN 8
#define VERSION 1
#define VERSION_FLAGS 2
#define COMMON 0x80  /* in the byte with the number of dimensions */
#define SLICE_LEN 12 /* without name and dimensions */
#define DIM_LEN 24

size_t cairn_layout_slice_len(const struct cairn_slice *s)
{
    return SLICE_LEN + s->name_len + (size_t)DIM_LEN * s->box.ndim;
}

static bool any_flag(const struct cairn_layout *l)
{
    for (uint32_t i = 0; i < l->nslices; i++)
        if (l->slices[i].common)
            return true;
    return false;
}

static void put_slice(struct bytes *out, const struct cairn_slice *s, bool flags)
{
    bytes_put_u16(out, (uint16_t)s->name_len);
    bytes_put_u8(out, (uint8_t)s->dtype);
    bytes_put_u8(out, (uint8_t)(s->box.ndim | (flags && s->common ? COMMON : 0)));
    bytes_put_u64(out, s->image_offset);
    bytes_put(out, s->name, s->name_len);
    for (uint32_t d = 0; d < s->box.ndim; d++) {
        bytes_put_u64(out, s->shape[d]);
        bytes_put_u64(out, s->box.offset[d]);
        bytes_put_u64(out, s->box.length[d]);
    }
}

static int encode(const struct cairn_layout *l, struct bytes *out, bool flags, struct cairn_error *err)
{
    size_t before = out->len;
    size_t len = CAIRN_LAYOUT_HEADER_LEN;

    for (uint32_t i = 0; i < l->nslices; i++)
        len += cairn_layout_slice_len(&l->slices[i]);
    if (len > CAIRN_MAX_LAYOUT)
        return cairn_fail(err, CAIRN_E_TOO_LARGE, "the table of %u tensors takes %zu bytes, more than %zu", l->nslices,
                          len, CAIRN_MAX_LAYOUT);
    bytes_put(out, MAGIC, MAGIC_LEN);
    bytes_put_u32(out, flags ? VERSION_FLAGS : VERSION);
    bytes_put_u32(out, l->nslices);
    bytes_put_u32(out, l->ngroups);
    bytes_put_u32(out, l->nparts);
    for (uint32_t i = 0; i < l->nslices; i++)
        put_slice(out, &l->slices[i], flags);
    if (!out->bad)
        return 0;
    out->len = before;
    return cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu bytes for a layout", len);
}

int cairn_layout_encode(const struct cairn_layout *l, struct bytes *out, struct cairn_error *err)
{
    return encode(l, out, any_flag(l), err);
}

int cairn_layout_encode_plain(const struct cairn_layout *l, struct bytes *out, struct cairn_error *err)
{
    return encode(l, out, false, err);
}

bool cairn_layout_slice_is(const void *encoded_slice, size_t len, const struct cairn_tensor *t)
{
    struct bytes_reader r = {.data = encoded_slice, .len = len};
    uint16_t name_len = bytes_get_u16(&r);
    uint8_t dtype = bytes_get_u8(&r);
    uint8_t dims = bytes_get_u8(&r), ndim = dims & (uint8_t)~COMMON;

    if (t->dtype != dtype || t->ndim != ndim || !(dims & COMMON) != !(t->flags & CAIRN_TENSOR_COMMON))
        return false;
    (void)bytes_get_u64(&r); /* the image offset */
    const char *name = bytes_get(&r, name_len);
    if (strncmp(t->name, name, name_len) != 0 || t->name[name_len])
        return false;
    for (uint32_t d = 0; d < ndim; d++) {
        uint64_t shape = bytes_get_u64(&r);
        uint64_t offset = bytes_get_u64(&r);
        uint64_t length = bytes_get_u64(&r);
        if (t->shape[d] != shape || (t->offset ? t->offset[d] : 0) != offset ||
            (t->length ? t->length[d] : t->shape[d]) != length)
            return false;
    }
    return true;
}

static int get_slice(struct cairn_layout *l, struct bytes_reader *r, bool flags, uint64_t *ret_offset,
                     struct cairn_error *err)
{
    char name[CAIRN_MAX_TENSOR_NAME + 1];
    uint64_t dims[3][CAIRN_MAX_DIMS];
    uint16_t name_len = bytes_get_u16(r);
    uint8_t dtype = bytes_get_u8(r);
    uint8_t dims_byte = bytes_get_u8(r), ndim = flags ? dims_byte & (uint8_t)~COMMON : dims_byte;
    uint64_t offset = bytes_get_u64(r);

    if (name_len > CAIRN_MAX_TENSOR_NAME || ndim > CAIRN_MAX_DIMS)
        return cairn_fail(err, CAIRN_E_CORRUPT, "a name of %u bytes, %u dimensions", name_len, ndim);
    const void *stored = bytes_get(r, name_len);
    for (uint32_t d = 0; d < ndim; d++)
        for (unsigned i = 0; i < 3; i++)
            dims[i][d] = bytes_get_u64(r);
    if (r->bad)
        return cairn_fail(err, CAIRN_E_CORRUPT, "cut short");
    memcpy(name, stored, name_len);
    name[name_len] = '\0';
    if (strlen(name) != name_len)
        return cairn_fail(err, CAIRN_E_CORRUPT, "a NUL byte in a name");
    struct cairn_tensor t = {.size = sizeof(t), .name = name, .dtype = dtype, .ndim = ndim};
    t.shape = dims[0];
    t.offset = dims[1];
    t.length = dims[2];
    t.flags = flags && (dims_byte & COMMON) ? CAIRN_TENSOR_COMMON : 0;
    *ret_offset = offset;
    return cairn_layout_add(l, &t, err);
}

static int get_slices(struct cairn_layout *l, struct bytes_reader *r, uint32_t n, bool flags, struct cairn_error *err)
{
    for (uint32_t i = 0; i < n; i++) {
        uint64_t offset;
        int e = get_slice(l, r, flags, &offset, err);

        if (e < 0)
            return cairn_wrap(err, e, "tensor %u", i);
        l->slices[i].image_offset = offset; /* as stored, until the slices are placed */
    }
    if (flags != any_flag(l)) /* each layout has one encoding: it is named by that one's digest */
        return cairn_fail(err, CAIRN_E_CORRUPT, "version %d without a flag", VERSION_FLAGS);
    if (r->at != r->len)
        return cairn_fail(err, CAIRN_E_CORRUPT, "%zu bytes after the last tensor", r->len - r->at);
    return 0;
}

/* Places the slices and compares with what was stored. */
static int place_as_stored(struct cairn_layout *l, uint32_t ngroups, uint32_t nparts, struct cairn_error *err)
{
    _cleanup_free_ uint64_t *stored = calloc(l->nslices + 1u, sizeof(*stored));

    if (!stored)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %u offsets", l->nslices);
    for (uint32_t i = 0; i < l->nslices; i++)
        stored[i] = l->slices[i].image_offset;
    int e = cairn_layout_place(l, err);
    if (e < 0)
        return e;
    if (l->ngroups != ngroups || l->nparts != nparts)
        return cairn_fail(err, CAIRN_E_CORRUPT, "%u groups of %u parts in all, they should be %u of %u", ngroups,
                          nparts, l->ngroups, l->nparts);
    for (uint32_t i = 0; i < l->nslices; i++)
        if (l->slices[i].image_offset != stored[i])
            return cairn_fail(err, CAIRN_E_CORRUPT, "tensor %u lies at %" PRIu64 ", it should at %" PRIu64, i,
                              stored[i], l->slices[i].image_offset);
    return 0;
}

static int decode(struct cairn_layout *l, struct bytes_reader *r, struct cairn_error *err)
{
    const void *magic = bytes_get(r, MAGIC_LEN);
    uint32_t version = bytes_get_u32(r);
    uint32_t nslices = bytes_get_u32(r);
    uint32_t ngroups = bytes_get_u32(r);
    uint32_t nparts = bytes_get_u32(r);

    if (r->bad || memcmp(magic, MAGIC, MAGIC_LEN) != 0)
        return cairn_fail(err, CAIRN_E_CORRUPT, "no layout's magic");
    if (version != VERSION && version != VERSION_FLAGS)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "version %u, this reader knows %d and %d", version, VERSION,
                          VERSION_FLAGS);
    if (nslices > CAIRN_MAX_TENSORS || nslices > (r->len - r->at) / SLICE_LEN)
        return cairn_fail(err, CAIRN_E_CORRUPT, "%u tensors in %zu bytes", nslices, r->len);
    int e = get_slices(l, r, nslices, version == VERSION_FLAGS, err);
    if (e < 0)
        return e;
    return place_as_stored(l, ngroups, nparts, err);
}

int cairn_layout_decode(struct cairn_layout *l, const void *data, size_t len, struct cairn_error *err)
{
    struct bytes_reader r = {.data = data, .len = len};

    if (len > CAIRN_MAX_LAYOUT)
        return cairn_fail(err, CAIRN_E_TOO_LARGE, "a layout of %zu bytes, at most %zu are possible", len,
                          CAIRN_MAX_LAYOUT);
    int e = decode(l, &r, err);
    if (e >= 0)
        return 0;
    cairn_layout_free(l);
    /* What would be the caller's mistake in add is damage here. */
    return cairn_wrap(err, e == CAIRN_E_INVAL ? CAIRN_E_CORRUPT : e, "read a layout");
}

struct hash128 cairn_layout_digest(const void *encoded, size_t len)
{
    return cairn_hash128(encoded, len);
}
