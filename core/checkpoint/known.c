/* SPDX-License-Identifier: Apache-2.0 */
#include "core/checkpoint/known.h"

const char *known_fate_name(int fate)
{
    switch (fate) {
    case KNOWN_COMMITTED:
        return "committed";
    case KNOWN_ABORTED:
        return "aborted";
    case KNOWN_DELETED:
        return "deleted";
    default:
        return "undecided";
    }
}

int known_compare(const struct known *a, const struct known *b)
{
    if (a->incarnation != b->incarnation)
        return a->incarnation < b->incarnation ? -1 : 1;
    if (a->step != b->step)
        return a->step < b->step ? -1 : 1;
    return 0;
}

static ptrdiff_t newest(const struct known *k, size_t n, bool finite)
{
    ptrdiff_t best = -1;

    for (size_t i = 0; i < n; i++)
        if (k[i].fate == KNOWN_COMMITTED && !k[i].unreadable && (!finite || k[i].numbers == KNOWN_FINITE) &&
            (best < 0 || known_compare(&k[i], &k[best]) > 0))
            best = (ptrdiff_t)i;
    return best;
}

ptrdiff_t known_latest(const struct known *k, size_t n)
{
    return newest(k, n, false);
}

ptrdiff_t known_latest_finite(const struct known *k, size_t n)
{
    return newest(k, n, true);
}

ptrdiff_t known_step(const struct known *k, size_t n, uint64_t step)
{
    ptrdiff_t best = -1;

    for (size_t i = 0; i < n; i++)
        if (k[i].fate == KNOWN_COMMITTED && k[i].step == step && (best < 0 || known_compare(&k[i], &k[best]) > 0))
            best = (ptrdiff_t)i;
    return best;
}

bool known_last_decided(const struct known *k, size_t n, uint64_t incarnation, uint64_t *ret_step)
{
    bool any = false;
    uint64_t last = 0;

    for (size_t i = 0; i < n; i++)
        if (k[i].incarnation == incarnation && k[i].fate != KNOWN_UNDECIDED && (!any || k[i].step > last)) {
            any = true;
            last = k[i].step;
        }
    if (any)
        *ret_step = last;
    return any;
}
