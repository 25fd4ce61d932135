/* SPDX-License-Identifier: Apache-2.0 */
/* What a client and its node's daemon say to each other over a SOCK_SEQPACKET Unix socket: one fixed struct a message,
 * in the machine's own byte order (both ends run on it), descriptors beside it (SCM_RIGHTS).
 *
 *     client                         daemon
 *     HAND_BACK + arena, ledger  ->                           after a daemon's restart, or a lost connection
 *                                <-  OK                       or ERROR: then OPEN gives a new arena
 *     OPEN                       ->
 *                                <-  OPENED + arena, ledger   or ERROR; the arena that was handed back, by its id
 *     RESUME save                ->                           for each save of that arena that is still wanted
 *                                <-  OK, then EVENT as before, or ERROR: what became of it
 *     LAYOUT + memfd             ->                           once for each new layout
 *                                <-  OK                       or ERROR
 *     BEGIN step, layout         ->
 *                                <-  GRANT save, pages        or ERROR (BUSY, TOO_LARGE, FENCED, ...)
 *     PARTS save, n              ->                           while copies run on: its first n parts are in place
 *     PACKED save, n, lengths    ->                           in PARTS' stead, of a save that may be packed
 *     SUMS save, seed + memfd    ->                           once, before FILLED: sums of the parts at their source
 *     (copies; writes the save's id into its word of the control page)
 *     FILLED save                ->                           whose OK nobody need wait for: the word has said it
 *                                <-  EVENT save SNAPSHOT, later DURABLE, COMMITTED, or a code and a message
 *     RESTORE_OPEN step          ->
 *                                <-  RESTORE_OPENED + catalog + window
 *     READ chunk into slot       ->                           as many at once as there are slots
 *                                <-  READ_DONE slot           plain bytes of the chunk's parts, verified
 *
 * Every request has an id and gets exactly one answer with the same id; EVENT has id 0 and comes when it comes. Events
 * of one save may be merged: the last state counts. A message that breaks these rules costs the sender its connection.
 *
 * Requests that came after the first version are said only to a daemon that knows them, as OPENED tells; a request of a
 * type that a daemon does not know is answered by ERROR UNSUPPORTED, and changes nothing.
 */
#ifndef CAIRN_CORE_PROTO_LOCAL_H
#define CAIRN_CORE_PROTO_LOCAL_H

#include <cairn/cairn.h>

#include <stdbool.h>

#include "core/model/units.h"

#define LOCAL_MAGIC 0x4c4e5243u /* "CRNL" */
#define LOCAL_VERSION 1
#define LOCAL_MAX_MESSAGE ((size_t)64 << 10)
#define LOCAL_MAX_FDS 2
#define LOCAL_MAX_RUNS 4096

enum local_type {
    LOCAL_OPEN = 1,
    LOCAL_LAYOUT = 2, /* + memfd with the layout's bytes, sealed against shrinking */
    LOCAL_BEGIN = 3,
    LOCAL_FILLED = 4, /* answered by OK, then by events */
    LOCAL_DROP = 5,   /* this rank gives a step up: answered by OK */
    LOCAL_WHY = 6,    /* what is a save waiting for: answered by TEXT */
    LOCAL_LATEST = 7, /* answered by LATEST_IS */
    LOCAL_RESTORE_OPEN = 8,
    LOCAL_READ = 9,
    LOCAL_RESTORE_CLOSE = 10, /* answered by OK */
    LOCAL_QUERY = 11,         /* answered by ANSWER */
    LOCAL_COMMAND = 12,       /* the same */
    LOCAL_HAND_BACK = 13,     /* + arena memfd, ledger memfd; before OPEN; answered by OK */
    LOCAL_RESUME = 14,        /* answered by OK */
    LOCAL_PLACES = 17,        /* where a shard lies in this session's own arena: answered by PLACES_ARE, or NOT_FOUND */
    LOCAL_WAIT = 18,          /* this process waits for the save: answered by OK, and it is not paced any more */
    LOCAL_PARTS = 19,         /* so many parts are in place: answered by OK, and they may be encoded */
    LOCAL_SUMS = 20,          /* + memfd with a local_sum for each part, sealed, before FILLED: answered by OK */
    LOCAL_PACKED = 21,        /* so many parts are in place, and how they lie there: answered by OK */

    LOCAL_ERROR = 64,
    LOCAL_OK = 65,
    LOCAL_OPENED = 66, /* + arena memfd, ledger memfd (read-only), but for an observer */
    LOCAL_GRANT = 67,
    LOCAL_EVENT = 68,
    LOCAL_TEXT = 69,
    LOCAL_LATEST_IS = 70,
    LOCAL_RESTORE_OPENED = 71, /* + catalog memfd (sealed, read-only), window memfd (sealed against resizing) */
    LOCAL_READ_DONE = 72,
    LOCAL_ANSWER = 73,     /* + memfd with JSON text */
    LOCAL_PLACES_ARE = 77, /* + memfd with a local_place for each chunk of the shard */
};

struct local_header {
    uint32_t magic;
    uint16_t version;
    uint16_t type; /* enum local_type */
    uint32_t len;  /* of the whole message */
    uint32_t id;   /* of the request; 0 in events */
};

struct local_open {
    struct local_header h;
    char job[CAIRN_MAX_NAME + 1];      /* terminated; empty only for an observer */
    char start_id[CAIRN_MAX_NAME + 1]; /* terminated; empty only for an observer */
    uint8_t pad[2];
    uint32_t flags; /* enum cairn_session_flags */
    uint32_t rank;
    uint32_t world_size;
    uint32_t timeout_ms;
    uint64_t arena_bytes;
    uint64_t reserved[8]; /* zero: features */
};
/* In local_opened.session, which no client reads for its number: daemons from before these bits have small numbers. */
#define LOCAL_KNOWS_PLACES (1ull << 63)
#define LOCAL_KNOWS_WAIT (1ull << 62)
#define LOCAL_KNOWS_PARTS (1ull << 61)
#define LOCAL_KNOWS_SUMS (1ull << 60)
#define LOCAL_KNOWS_PACKED (1ull << 59) /* and has the codec "float" */
/* This version's daemon. */
#define LOCAL_KNOWS (LOCAL_KNOWS_PLACES | LOCAL_KNOWS_WAIT | LOCAL_KNOWS_PARTS | LOCAL_KNOWS_SUMS)
#define LOCAL_SESSION_MAX ((1ull << 48) - 1)
struct local_opened {
    struct local_header h;
    uint64_t session; /* up to LOCAL_SESSION_MAX its number, above it LOCAL_KNOWS_...; the bits between are for more */
    uint64_t incarnation;
    uint64_t arena_id;
    uint64_t arena_bytes;   /* of pages: a multiple of 1 MiB, at least what was asked */
    uint64_t control_bytes; /* page p lies at control_bytes + p * 1 MiB of the memfd */
    char node[CAIRN_MAX_NAME + 1];
    uint8_t pad[7];
    uint64_t reserved[8];
};
/* Of an earlier OPENED, and for whom that was. OPEN must name the same job, start and rank. */
struct local_hand_back {
    struct local_header h;
    char job[CAIRN_MAX_NAME + 1];      /* terminated */
    char start_id[CAIRN_MAX_NAME + 1]; /* terminated */
    uint8_t pad[2];
    uint32_t rank;
    uint32_t copying; /* threads that are writing to it now */
    uint64_t arena_id;
    uint64_t reserved[4];
};
/* The control area at the start of an arena. */
#define LOCAL_FILLED_WORDS 256
struct local_control {
    uint64_t filled[LOCAL_FILLED_WORDS]; /* the client writes the save's id here, release, after its last byte */
};

struct local_layout {
    struct local_header h;
    uint64_t digest_low;
    uint64_t digest_high;
    uint64_t len; /* bytes of the encoded layout at the memfd's start */
};

enum local_begin_flags {
    LOCAL_BEGIN_PACKED = 1, /* parts may come packed: PACKED says of all of them how they lie there, before FILLED */
};
struct local_begin {
    struct local_header h;
    uint64_t step;
    uint64_t digest_low;
    uint64_t digest_high;
    uint32_t wait_ms; /* how long the grant may wait for room; 0: answer BUSY at once */
    uint32_t flags;   /* enum local_begin_flags */
    uint64_t reserved[4];
};
struct local_run {
    uint32_t first_page;
    uint32_t npages;
};
struct local_grant {
    struct local_header h;
    uint64_t save;        /* never 0 and never used before in this session */
    uint32_t filled_word; /* index into local_control.filled */
    uint32_t nruns;
    struct local_run runs[]; /* the image's parts in order; together as many pages as the layout has parts */
};

struct local_save { /* FILLED, WHY, WAIT */
    struct local_header h;
    uint64_t save;
};
struct local_parts { /* before FILLED; parts only grows */
    struct local_header h;
    uint64_t save;
    uint32_t parts; /* the first so many of the image are in place and will not change */
    uint32_t pad;
};
#define LOCAL_MAX_PACKED 4096
struct local_packed { /* of a save that was begun with LOCAL_BEGIN_PACKED, before FILLED */
    struct local_header h;
    uint64_t save;
    uint32_t first; /* how many parts were said to be in place before */
    uint32_t n;     /* these are too, and will not change; at most LOCAL_MAX_PACKED */
    uint32_t len[]; /* of each: bytes in its page as codec-float encodes them; 0: its plain bytes are there */
};
struct local_sums { /* a save's part whose bytes in the arena have another sum fails the save */
    struct local_header h;
    uint64_t save;
    uint64_t seed;
};
struct local_sum { /* XXH3-128 with the seed of a part's plain bytes where they came from; both 0: not known */
    uint64_t low, high;
};
struct local_resume { /* a save that an earlier connection granted in the arena that was handed back */
    struct local_header h;
    uint64_t save;
    uint64_t step;
};
struct local_drop {
    struct local_header h;
    uint64_t save; /* 0 when nothing was granted */
    uint64_t step;
};
struct local_event {
    struct local_header h;
    uint64_t save;
    int32_t state;     /* enum cairn_save_state reached, when code is 0 */
    int32_t code;      /* negative: the save failed for good */
    char message[496]; /* terminated */
};
struct local_text {
    struct local_header h;
    char text[4096]; /* terminated */
};
struct local_error {
    struct local_header h;
    int32_t code; /* negative */
    int32_t sys_errno;
    char message[496];
};
struct local_ok {
    struct local_header h;
};

struct local_latest {
    struct local_header h;
    uint32_t timeout_ms;
    uint32_t pad;
};
struct local_latest_is {
    struct local_header h;
    uint64_t step;
    uint64_t incarnation;
};
struct local_restore_open {
    struct local_header h;
    char job[CAIRN_MAX_NAME + 1]; /* the session's job for a rank; any for an observer */
    uint8_t pad[3];
    uint32_t timeout_ms;
    uint64_t step; /* CAIRN_LATEST: as LATEST says; CAIRN_LATEST_FINITE */
};
struct local_restore_opened {
    struct local_header h;
    uint64_t restore;
    uint64_t catalog_bytes;
    uint32_t slots;      /* of the window */
    uint32_t slot_parts; /* 1 MiB parts a slot holds: no chunk has more */
};
struct local_read {
    struct local_header h;
    uint64_t restore;
    uint32_t shard;      /* index in the catalog */
    uint32_t chunk;      /* index in the shard */
    uint32_t part_mask;  /* which of the chunk's parts are wanted, bit i the i-th; not 0 */
    uint32_t slot;       /* part i goes to (slot * slot_parts + i) MiB of the window */
    uint32_t timeout_ms; /* for this chunk */
    uint32_t pad;
};
struct local_read_done {
    struct local_header h;
    uint32_t slot;
    uint32_t pad;
};
struct local_places {
    struct local_header h;
    uint64_t restore;
    uint32_t shard; /* index in the catalog */
    uint32_t pad;
};
struct local_places_are {
    struct local_header h;
    uint64_t nchunks;
};
/* A chunk in the arena. It says where the bytes lay when the daemon was asked: a later save may take the pages, so a
 * reader asks again when it has read, and believes no byte that does not have the checksum. */
struct local_place {
    uint64_t entry_low, entry_high; /* XXH3-128 of the plain bytes of all its parts */
    uint32_t nparts;                /* 0: it is not in the arena */
    uint32_t pad;
    uint32_t page[CAIRN_MAX_K]; /* of each part */
    uint32_t len[CAIRN_MAX_K];  /* plain bytes of each */
};
struct local_restore_close {
    struct local_header h;
    uint64_t restore;
};
struct local_query {
    struct local_header h;
    char job[CAIRN_MAX_NAME + 1];
    uint8_t pad[3];
    uint32_t kind; /* enum cairn_query_kind */
    uint32_t timeout_ms;
    uint32_t pad2;
    uint64_t step;
};
struct local_command {
    struct local_header h;
    char job[CAIRN_MAX_NAME + 1];
    uint8_t pad[3];
    uint32_t kind; /* enum cairn_command_kind */
    uint32_t timeout_ms;
    uint32_t pad2;
    uint64_t step;
    char argument[CAIRN_COMMAND_TEXT]; /* terminated; may be empty */
};
struct local_answer {
    struct local_header h;
    uint64_t len; /* bytes of JSON at the memfd's start */
};

/* Checks one received message: magic, version, type, exact length, terminated strings, zero reserved fields, counts.
 * nfds is how many descriptors came with it. Returns its type, or CAIRN_E_PROTOCOL with the reason. */
int local_check(const void *message, size_t len, unsigned nfds, struct cairn_error *err);
/* Whether it is a request that a newer client may know: its header is right, its type is not known here. Its length and
 * descriptors say nothing. */
bool local_is_unknown_request(const void *message, size_t len);
/* Fills the header of a message of this type and length. */
void local_header_init(struct local_header *h, int type, size_t len, uint32_t id);
/* "OPEN", "BEGIN", ...; never NULL. */
const char *local_type_name(int type);

#endif
