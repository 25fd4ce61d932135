/* SPDX-License-Identifier: Apache-2.0 */
/* A test double of cairnd: one thread that speaks core/proto/local.h, keeps images in memory and serves reads. It
 * checks what a client owes (gaps zero, the filled word written, messages valid) and misbehaves on request. It stores
 * nothing, knows no peers and no incarnations: what the real daemon does with a save is not tested with it. */
#ifndef CAIRN_TESTS_UNIT_CLIENT_FAKE_DAEMON_H
#define CAIRN_TESTS_UNIT_CLIENT_FAKE_DAEMON_H

#include <stdbool.h>
#include <stdint.h>

#include "core/proto/local.h"

enum fake_fault {
    FAKE_WELL = 0,
    FAKE_SILENT,     /* no answer */
    FAKE_CLOSE,      /* hangs up instead of answering */
    FAKE_GARBAGE,    /* answers with bytes that are no message */
    FAKE_WRONG_TYPE, /* answers with a valid message that does not belong */
    FAKE_WRONG_ID,   /* answers a request that nobody made */
    FAKE_ERROR,      /* answers ERROR with code */
    FAKE_WRONG_FD,   /* descriptors of the wrong kind come with the answer */
    FAKE_UNSEALED,   /* descriptors lack their seals */
    FAKE_BAD_VALUE,  /* a field that only the client can judge is wrong */
    FAKE_LATE,       /* answers when the fault is taken back; PLACES: later than progress is due */
};

struct fake;

struct fake *fake_start(void);
void fake_stop(struct fake *f);
const char *fake_path(const struct fake *f);
/* Hangs up on everybody and listens again; images stay. With away, nobody listens until fake_restart(f, 0). */
void fake_restart(struct fake *f, int away);
/* Arenas that are handed back are taken, by their mapping alone; saves in them are as the fake's events say. */
void fake_take_back(struct fake *f, int on);
/* From now on (times > 0: so often; 0: for ever) messages of this type meet the fault. */
void fake_fault(struct fake *f, int type, enum fake_fault fault, int code, int times);
/* Events stop at this state (default COMMITTED); a code makes the event after it a failure. */
void fake_events(struct fake *f, int last_state, int code);
/* Sends one more event for the newest save of each connection. */
void fake_event_now(struct fake *f, int state, int code);
/* Messages of this type received. */
unsigned fake_count(struct fake *f, int type);
/* Waits, a bounded time, until so many have been received. */
bool fake_wait_count(struct fake *f, int type, unsigned n, unsigned ms);
/* Parts of the newest FILLED save that came with a sum of their source; it complains when one is not what its part is.
 */
unsigned fake_summed(struct fake *f);
/* How it unpacks, in their pages, parts that PACKED says lie there packed; NULL (at first): it complains of them. */
typedef int (*fake_unpack_fn)(const void *from, size_t len, int dtype, void *to, size_t plain_len);
void fake_unpacks(struct fake *f, fake_unpack_fn unpack);
/* From now on it says where the newest save of a connection lies in that connection's arena (off at first). */
void fake_places(struct fake *f, int on);
/* What it says it knows from the next OPEN on (all at first). */
void fake_knows(struct fake *f, uint64_t knows);
/* From now on saves get pages of another place each time, of so many places in turn (1 at first). */
void fake_wander(struct fake *f, unsigned places);
/* Changes a byte of the newest save in its arena, in this part. */
void fake_damage(struct fake *f, unsigned part);
/* How many writers the newest arena was handed back with. */
unsigned fake_copying(struct fake *f);
/* What the client did wrong; NULL when nothing. */
const char *fake_complaint(struct fake *f);

#endif
