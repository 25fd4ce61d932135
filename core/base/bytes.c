/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/bytes.h"

#include <stdlib.h>
#include <string.h>

const void *bytes_get(struct bytes_reader *r, size_t len)
{
    if (r->bad || r->at > r->len || len > r->len - r->at) {
        r->bad = true;
        return NULL;
    }
    const uint8_t *at = r->data ? r->data + r->at : (const uint8_t *)""; /* nothing of nothing is not a failure */
    r->at += len;
    return at;
}

static uint64_t get_le(struct bytes_reader *r, size_t len)
{
    const uint8_t *p = bytes_get(r, len);
    uint64_t v = 0;

    for (size_t i = 0; p && i < len; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

uint8_t bytes_get_u8(struct bytes_reader *r)
{
    return (uint8_t)get_le(r, 1);
}

uint16_t bytes_get_u16(struct bytes_reader *r)
{
    return (uint16_t)get_le(r, 2);
}

uint32_t bytes_get_u32(struct bytes_reader *r)
{
    return (uint32_t)get_le(r, 4);
}

uint64_t bytes_get_u64(struct bytes_reader *r)
{
    return get_le(r, 8);
}

void bytes_free(struct bytes *b)
{
    if (!b)
        return;
    free(b->data);
    *b = (struct bytes){0};
}

static bool make_room(struct bytes *b, size_t len)
{
    size_t need;

    if (b->bad || __builtin_add_overflow(b->len, len, &need)) {
        b->bad = true;
        return false;
    }
    if (need <= b->room)
        return true;
    size_t room = b->room > SIZE_MAX / 2 ? need : b->room * 2;
    if (room < need)
        room = need < 256 ? 256 : need;
    uint8_t *data = realloc(b->data, room);
    if (!data) {
        b->bad = true;
        return false;
    }
    b->data = data;
    b->room = room;
    return true;
}

void bytes_put(struct bytes *b, const void *data, size_t len)
{
    if (!len || !make_room(b, len))
        return;
    memcpy(b->data + b->len, data, len);
    b->len += len;
}

static void put_le(struct bytes *b, uint64_t v, size_t len)
{
    uint8_t le[8];

    for (size_t i = 0; i < len; i++)
        le[i] = (uint8_t)(v >> (8 * i));
    bytes_put(b, le, len);
}

void bytes_put_u8(struct bytes *b, uint8_t v)
{
    put_le(b, v, 1);
}

void bytes_put_u16(struct bytes *b, uint16_t v)
{
    put_le(b, v, 2);
}

void bytes_put_u32(struct bytes *b, uint32_t v)
{
    put_le(b, v, 4);
}

void bytes_put_u64(struct bytes *b, uint64_t v)
{
    put_le(b, v, 8);
}
