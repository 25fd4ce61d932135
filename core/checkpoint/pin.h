/* SPDX-License-Identifier: Apache-2.0 */
/* The pin: from which checkpoint all ranks of an incarnation resume. pin.c has the diagram. */
#ifndef CAIRN_CORE_CHECKPOINT_PIN_H
#define CAIRN_CORE_CHECKPOINT_PIN_H

#include "core/checkpoint/known.h"
#include "core/proto/record.h"

enum pin_action {
    PIN_WAIT,   /* an older save is under way: ask again when it is decided */
    PIN_ABORT,  /* decide this older intent: nobody works on it */
    PIN_TRY,    /* check that this one can be read: then it is to be pinned, else mark it unreadable and ask again */
    PIN_NONE,   /* pin that there is nothing to resume from */
    PIN_FOLLOW, /* it is pinned and this is it (index -1: pinned that there is none) */
    PIN_UNREADABLE, /* there are committed checkpoints, and none of them can be read */
    PIN_LOST,       /* the pinned one is not committed in this view: a damaged store */
    PIN_FENCED,     /* a newer incarnation has pinned */
};
struct pin_move {
    int action;      /* enum pin_action */
    ptrdiff_t index; /* of the checkpoint meant, or -1 */
};
/* pin: the record that is there, or NULL. */
struct pin_move pin_next(const struct known *k, size_t n, const struct record_pin *pin, uint64_t incarnation);
/* The record to write for what was tried (NULL: for PIN_NONE). Its number is above the old pin's. */
struct record_pin pin_record(const struct record_pin *old, uint64_t incarnation, const struct known *tried);

#endif
