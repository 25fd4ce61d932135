/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/delta.h"

#include <stdint.h>
#include <string.h>

/* Eight words a turn through memcpy, which knows no alignment: compilers make vectors of it, and memory is the limit.
 */
void delta_xor(char *restrict to, const char *restrict with, size_t len)
{
    uint64_t a[8], b[8];
    size_t at = 0;

    for (; len - at >= sizeof a; at += sizeof a) {
        memcpy(a, to + at, sizeof a);
        memcpy(b, with + at, sizeof b);
        for (unsigned i = 0; i < 8; i++)
            a[i] ^= b[i];
        memcpy(to + at, a, sizeof a);
    }
    for (; at < len; at++)
        to[at] ^= with[at];
}
