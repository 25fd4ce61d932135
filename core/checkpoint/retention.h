/* SPDX-License-Identifier: Apache-2.0 */
/* Which committed checkpoints a job keeps. A rule is text that people write:
 *
 *     last=3 every=1000 for=24h      a checkpoint is kept if any of these keeps it
 *     all                            everything is kept; so does an empty text
 */
#ifndef CAIRN_CORE_CHECKPOINT_RETENTION_H
#define CAIRN_CORE_CHECKPOINT_RETENTION_H

#include <cairn/cairn.h>
#include <stdbool.h>

#define RETENTION_TEXT 128 /* bytes of a rule's text with its end */

struct retention {   /* 0: that rule is not given */
    uint32_t last;   /* the newest N */
    uint64_t every;  /* steps that are multiples of M */
    uint64_t for_ms; /* for so long after it was committed */
};
/* No rule at all: everything is kept. */
bool retention_keeps_all(const struct retention *r);
/* INVAL names the word that is wrong; ret is untouched then. */
int retention_parse(const char *text, struct retention *ret, struct cairn_error *err);
/* Text that parses to the same rule. */
void retention_print(const struct retention *r, char buf[RETENTION_TEXT]);

struct retention_item {
    uint64_t step, incarnation;
    uint64_t created_unix_ms;
    bool committed;
    bool held;  /* a pin, a restore, the job's resume step: must not be deleted */
    bool full;  /* has all its redundancy */
    bool lives; /* committed, or not decided yet: what it is based on is needed */
    bool has_base;
    uint64_t base_step, base_incarnation;
};
/* Whether one that lives is based on items[at]: ret_of is the index of one of them. */
bool retention_is_base(const struct retention_item *items, size_t n, size_t at, size_t *ret_of);
/* Sets ret_delete[i] for what no rule keeps and nothing forbids, and returns how many. Items in any order. Never
 * chosen: the newest committed one, one that is held or not committed, the one before a committed one that is not full
 * yet, and the base of one that lives. A base goes after what needs it is gone, not with it: whoever dies between two
 * deletions leaves nothing that cannot be read. */
size_t retention_choose(const struct retention *r, const struct retention_item *items, size_t n, uint64_t now_unix_ms,
                        bool *ret_delete);

#endif
