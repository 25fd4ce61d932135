/* SPDX-License-Identifier: Apache-2.0 */
/* The ledger of an arena: what its daemon knows of the snapshots in it, in a memory file of its own, so that the next
 * daemon can go on where this one died. The daemon alone writes it; the client holds it read-only and hands it back.
 *
 *     0          struct ledger_header   who, what and where: never changes but for the two counters behind check
 *     pages_at   uint64_t[npages]       of each page of the arena: state, save and part, written in one store
 *     saves_at   struct ledger_save[LEDGER_SAVES]
 *     heap_at    encoded layouts that saves point to; equal ones are stored once
 *
 * A writer may die between any two stores. So a save is written before its state leaves LEDGER_EMPTY, and its state
 * becomes LEDGER_EMPTY before its pages are given away: pages that name an empty save are free. Numbers are in the
 * machine's own order: the file does not outlive the machine's memory.
 *
 * Reading takes a private copy of untrusted bytes: whoever handed it in may have made it up. */
#ifndef CAIRN_CORE_PROTO_LEDGER_H
#define CAIRN_CORE_PROTO_LEDGER_H

#include "core/model/hash.h"
#include "core/proto/local.h"

#include <stdbool.h>
#include <stddef.h>

#define LEDGER_MAGIC 0x313047444c4e5243ull /* "CRNLDG01" */
#define LEDGER_VERSION 1
#define LEDGER_SAVES 256
#define LEDGER_HEAP ((uint64_t)96 << 20) /* of the file; only what is used takes memory */
#define LEDGER_NO_PAGE UINT32_MAX

enum ledger_page { LEDGER_FREE, LEDGER_TAKEN, LEDGER_KEPT };
enum ledger_state {
    LEDGER_EMPTY,
    LEDGER_BEGUN,   /* granted; the client copies */
    LEDGER_FILLED,  /* immutable; being saved */
    LEDGER_DURABLE, /* this rank's shard is; the checkpoint is not decided */
    LEDGER_DONE,    /* committed; what is left of it is for restores */
    LEDGER_STATES
};
enum ledger_flags {
    LEDGER_PACKED =
        1, /* until it is DURABLE its pages may be packed: only the daemon that was told how can read them */
};

struct ledger_header {
    uint64_t magic;
    uint32_t version;
    uint32_t header_len; /* sizeof this */
    uint64_t len;        /* of the whole file */
    uint64_t pages_at, saves_at, heap_at, heap_len;
    uint32_t npages;
    uint32_t nsaves; /* LEDGER_SAVES */
    uint64_t arena_id;
    uint64_t control_bytes;            /* of the arena, before page 0 */
    uint64_t arena_device, arena_file; /* the memory file itself, as stat names it */
    uint64_t generation;               /* how many ledgers this arena has had */
    uint32_t rank;
    uint32_t world_size;
    uint32_t uid;       /* whose processes may use the arena */
    uint32_t pid;       /* that uses it, as the daemon sees it; 0: none */
    uint64_t pid_start; /* when that began, in clock ticks: a number may be used again */
    char job[CAIRN_MAX_NAME + 1];
    char start_id[CAIRN_MAX_NAME + 1];
    uint8_t pad[6];
    uint64_t check;     /* XXH3-64 of everything before */
    uint64_t next_save; /* the smallest id that was never used */
    uint64_t heap_used; /* the end of the last layout that was ever stored */
};

struct ledger_save {
    uint32_t state; /* enum ledger_state; the only field that changes while it is not EMPTY */
    uint32_t word;  /* in the arena's control area */
    uint64_t save, step, incarnation;
    struct hash128 digest; /* of the layout */
    uint64_t layout_at;    /* within the heap */
    uint64_t layout_len;
    uint32_t nparts;
    uint32_t attempt;   /* fragments of this save carry at least this one: earlier ones are another daemon's */
    uint64_t pages_sum; /* XXH3-64 of the page numbers, by part, as granted */
    uint32_t flags;     /* enum ledger_flags: a cairnd from before them refuses a ledger that has one */
    uint32_t pad;
    uint64_t reserved[4];
    uint64_t check; /* XXH3-64 of everything between state and here */
};

/* ---- writing: map is the file's, of ledger_len bytes, zeroed before ledger_init -------------- */
uint64_t ledger_len(uint32_t npages);
/* Fills in what is the format's; the caller sets what is the arena's (from arena_id to start_id). */
void ledger_init(void *map, const struct ledger_header *arena, uint32_t npages);
void ledger_set_next_save(void *map, uint64_t next_save);
/* slot: of the save that the page belongs to, or -1. */
void ledger_set_page(void *map, uint32_t page, int state, int slot, uint32_t part);
/* Whether a save's layout is this one; then where it lies. */
bool ledger_find_layout(const void *map, struct hash128 digest, uint64_t *ret_at, uint64_t *ret_len);
/* Stores a layout where no save's lies; false when there is no room. */
bool ledger_put_layout(void *map, const void *layout, uint64_t len, uint64_t *ret_at);
/* Writes a save whose layout is stored and whose pages are set, and then its state. s->check, pages_sum, pad and
 * reserved are filled in. */
void ledger_put_save(void *map, int slot, struct ledger_save *s, const uint32_t *pages);
void ledger_set_state(void *map, int slot, int state);
/* An EMPTY slot, or -1. */
int ledger_free_slot(const void *map);

/* ---- reading: data is a private copy of untrusted bytes -------------------------------------- */
/* How many bytes of a file are worth copying, from a copy of its header: up to the end of the heap's used part. */
int ledger_copy_len(const struct ledger_header *h, uint64_t file_len, uint64_t *ret_len, struct cairn_error *err);
/* Checks everything that can be checked without the arena. After it the functions below are safe. */
int ledger_check(const void *data, uint64_t len, struct cairn_error *err);
static inline const struct ledger_header *ledger_header_of(const void *data)
{
    return data;
}
/* NULL when the slot is EMPTY. */
const struct ledger_save *ledger_save_at(const void *data, int slot);
const void *ledger_layout_of(const void *data, const struct ledger_save *s);
/* The page of each part, LEDGER_NO_PAGE where it went to another save; kept (may be NULL): whether it is LEDGER_KEPT.
 * Refuses a part that two pages claim, and pages that are not those that were granted. ret_gone: parts without one. */
int ledger_pages_of(const void *data, int slot, uint32_t *pages, bool *kept, uint32_t *ret_gone,
                    struct cairn_error *err);

#endif
