/* SPDX-License-Identifier: Apache-2.0 */
/* Which codec a part is encoded with: the one with which it is on the peers soonest. A codec that encodes slower than
 * the path downstream carries what it saves is not worth its time, however small its output; where the path is slow,
 * a slow and dense one is. All plain data: estimates, speeds measured so far, and the path's rate come in. */
#ifndef CAIRN_CORE_MODEL_CHOICE_H
#define CAIRN_CORE_MODEL_CHOICE_H

#include <stdbool.h>
#include <stdint.h>

#define CAIRN_CHOICES 8 /* offers for one part, raw among them */

struct cairn_offer {
    uint32_t coded; /* bytes that are expected */
    uint64_t speed; /* plain bytes that one worker encodes in a second */
};
struct cairn_path {
    uint64_t rate;    /* bytes a second that the peers store, parity included; 0: not known yet */
    unsigned workers; /* that encode at once */
    unsigned k, m;    /* of the stripe */
};
/* Returns the index of the offer that is taken. The first one is raw. before: what was taken for the part before it,
 * which is kept unless another is clearly better; n: nothing was. */
unsigned cairn_choose(const struct cairn_offer *offers, unsigned n, uint32_t plain_len, const struct cairn_path *path,
                      unsigned before);

/* Whether a codec, by its id, is worth an estimate for elements of this dtype. */
bool cairn_codec_suits(uint16_t codec, int dtype);

/* A rate as it was lately: each sample moves it by an eighth. */
struct cairn_rate {
    uint64_t bytes_per_s; /* 0: no sample yet */
};
void cairn_rate_add(struct cairn_rate *r, uint64_t bytes, uint64_t ns);

#endif
