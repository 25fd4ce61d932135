/* SPDX-License-Identifier: Apache-2.0 */
/* Parts that their device packed are unpacked before anything is made of them:
 *
 *     page (packed) --copied--> its payload buffer --decoded--> memory of this chunk --copied--> page (plain)
 *
 * What was packed is private from the first copy on, and what is hashed and stored is what was unpacked of it. The page
 * is plain from then on, as any other: for restores, as a base, to be encoded again. */
#include "daemon/node/encode.h"

#include "core/model/units.h"

#include <stdlib.h>
#include <string.h>

static bool any_packed(const struct encode *e)
{
    for (unsigned i = 0; i < e->k; i++)
        if (e->packed[i])
            return true;
    return false;
}

static int unpack(struct encode *e, unsigned i, char *to)
{
    char *coded = e->record[i] + FRAGMENT_HEADER;
    uint32_t len = e->packed[i];

    memcpy(coded, e->plain[i], len);
    if (!e->packer || codec_decode(e->packer, coded, len, e->dtype, to, e->plain_len[i]) < 0) {
        e->undecoded = i + 1;
        return CAIRN_E_CORRUPT;
    }
    memcpy(e->page[i], to, e->plain_len[i]);
    e->from[i] = to;
    e->packed[i] = 0;
    e->came[i] = len;
    e->copied += len;
    return 0;
}

int encode_unpack(struct encode *e, char **ret_plain)
{
    int r = 0;

    e->undecoded = 0;
    memcpy(e->from, e->plain, sizeof e->from);
    memset(e->came, 0, sizeof e->came);
    *ret_plain = any_packed(e) ? malloc(e->k * CAIRN_PART) : NULL;
    if (!*ret_plain)
        return any_packed(e) ? CAIRN_E_NOMEM : 0;
    for (unsigned i = 0; i < e->k && r == 0; i++)
        if (e->packed[i])
            r = unpack(e, i, *ret_plain + i * CAIRN_PART);
    return r;
}
