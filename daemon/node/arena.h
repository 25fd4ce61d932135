/* SPDX-License-Identifier: Apache-2.0 */
/* Arenas: the shared memory that snapshots live in.
 *
 * An arena belongs to one rank of one job. Its pages are 1 MiB, one for each part of an image, and go round:
 *
 *     FREE --grant--> TAKEN --durable on the peers--> KEPT --needed by a later grant, or the save failed--> FREE
 *
 * A KEPT page still holds its part of a durable snapshot: restores read it as their nearest tier until a newer save
 * needs it. When the trainer dies the arena stays with the daemon; the rank's next process adopts it. The client can
 * write to every page at any time and can punch holes: the daemon only ever copies out of the mapping and trusts
 * nothing that it did not check on the copy. It writes to pages only where a client's device has packed them: to unpack
 * them.
 *
 * Beside it lies its ledger (arena_ledger.h): what another daemon needs to go on.
 */
#ifndef CAIRN_DAEMON_NODE_ARENA_H
#define CAIRN_DAEMON_NODE_ARENA_H

#include "core/model/layout.h"
#include "core/proto/local.h"
#include "daemon/io/loop.h"
#include <sys/types.h>

#define ARENA_CONTROL ((size_t)2 << 20) /* bytes before page 0: the control area, huge-page aligned */
#define ARENA_NO_PAGE UINT32_MAX

/* A layout that snapshots share; counted. */
struct shared_layout {
    unsigned refs;
    struct hash128 digest;
    struct cairn_layout layout;
    struct list link;
};
struct shared_layout *shared_layout_ref(struct shared_layout *l);
void shared_layout_unref(struct shared_layout *l); /* NULL allowed */

/* A client that tracks writes copies less into a page that held the same part before. */
struct page_memory {
    uint64_t layout; /* half of its digest; 0: none */
    uint32_t part;
};

struct arenas; /* all of this node, and the bound on their memory */

/* Gives up the snapshot of a save (its owner) when nothing but the decision is missing and nobody will read it here.
 * May end the arena's last reference. */
typedef void (*arena_let_go)(void *owner);

/* Where descriptors are kept that the next daemon gets back; either may do nothing. */
struct arena_keeper {
    void (*keep)(void *arg, const char *name, int fd); /* fd stays the caller's */
    void (*drop)(void *arg, const char *name);
    void *arg;
};

/* Who asks for an arena. */
struct arena_user {
    const char *job, *start_id;
    uint32_t rank, world_size;
    uid_t uid;
    int pid;
    int pidfd; /* the caller's */
    uint64_t bytes;
};

struct arena {
    unsigned refs; /* sessions, saves under way, reads */
    struct arenas *arenas;
    struct list link;      /* in arenas */
    struct list snapshots; /* of struct snapshot, oldest first */
    struct list waiting;   /* of struct arena_waiter */
    uint64_t id;           /* random */
    char job[CAIRN_MAX_NAME + 1];
    char start_id[CAIRN_MAX_NAME + 1]; /* of the process that used it last */
    uint32_t rank, world_size;
    uid_t uid; /* whose processes may adopt it */
    int fd;    /* the memfd */
    char *map; /* of the whole, read-only, but for pages once they are writable */
    bool writable;
    size_t bytes; /* of pages */
    uint32_t npages;
    uint32_t nfree;
    uint32_t nkept;
    uint8_t *page_state;
    struct page_memory *last; /* of each page: what it held last */
    uint64_t next_save;       /* ids of saves are never used twice in an arena */
    uint64_t words_busy[LOCAL_FILLED_WORDS / 64];
    bool attached;            /* a session uses it */
    bool unsure;              /* its process lived when pages that it may still be writing to were freed */
    int last_pid;             /* of the process that used it last; 0 before the first */
    uint64_t last_pid_start;  /* when that process began */
    int last_pidfd;           /* the same process; -1 when it is gone, PROCESS_UNKNOWN */
    int ledger_fd;            /* -1: none; the same file that is handed to the client */
    void *ledger;             /* its mapping (core/proto/ledger.h); NULL: nothing is noted any more */
    uint64_t generation;      /* of the ledger */
    struct loop_timer expire; /* while nobody does */
};

enum snapshot_state { SNAPSHOT_GRANTED, SNAPSHOT_FILLED, SNAPSHOT_KEPT };
struct snapshot {
    struct list link; /* in arena */
    struct arena *arena;
    enum snapshot_state state;
    uint64_t save; /* id */
    uint64_t step;
    uint64_t incarnation;
    uint32_t word;    /* in the control area */
    int slot;         /* in the ledger; -1 when it has no room for this one */
    uint32_t attempt; /* the first that its fragments may carry */
    void *owner;      /* who saves it; NULL when nobody does */
    bool packed;      /* until its shard is durable its pages may be packed: who saves it knows which */
    struct shared_layout *layout;
    uint32_t *pages; /* of each part, as granted */
    bool *gone;      /* of each part: its page was given to another snapshot */
};

int arenas_new(struct loop *loop, uint64_t limit_bytes, uint32_t keep_s, struct arenas **ret_arenas,
               struct cairn_error *err);
void arenas_free(struct arenas *arenas); /* only orphans may be left; NULL allowed */
void arenas_usage(const struct arenas *arenas, uint64_t *ret_bytes, uint64_t *ret_limit);
struct list *arenas_list(struct arenas *arenas); /* of struct arena */

void arenas_set_keeper(struct arenas *arenas, const struct arena_keeper *keeper);
/* Asked for saves whose process is gone, when there is no other room for a new arena. */
void arenas_set_let_go(struct arenas *arenas, arena_let_go let_go);
/* The daemon stops: ledgers stay as they are, and so does what the keeper has. */
void arenas_freeze(struct arenas *arenas);
/* An arena of at least bytes for the rank: the one it left behind when that is large enough, has the same owner and its
 * process has ended (a live one may still be copying into it), else a new one. The caller gets a reference and must
 * detach and unref. */
int arenas_attach(struct arenas *arenas, const struct arena_user *user, struct arena **ret_arena,
                  struct cairn_error *err);
/* What the rank's process, or the keeper, handed back: the arena if it is here still, else a new object for the old
 * memory, with a new ledger. copying: whether that process is writing to pages of saves that it began. user is NULL
 * when nobody uses it yet. The caller gets a reference; with a user it must detach too. */
struct arena_offer;
int arenas_adopt(struct arenas *arenas, struct arena_offer *offer, const struct arena_user *user, bool copying,
                 struct arena **ret_arena, struct cairn_error *err);
/* Its end, not its socket's: a zombie is dead, a process whose children hold its socket is not. One that nobody can
 * look for may live. */
#define PROCESS_UNKNOWN (-2)
bool process_ended(int pidfd);
/* The session is over; the arena stays for its keep time. */
void arena_detach(struct arena *arena);
struct arena *arena_ref(struct arena *arena);
void arena_unref(struct arena *arena); /* NULL allowed */

static inline const char *arena_page(const struct arena *a, uint32_t page)
{
    return a->map + ARENA_CONTROL + (size_t)page * ((size_t)1 << 20);
}

/* So that packed parts can be unpacked in their pages. Fails when its memory was handed back without the right to. */
int arena_make_writable(struct arena *arena, struct cairn_error *err);

/* Takes pages for an image: free ones first, then kept ones, oldest snapshot first. BUSY when there are not enough now,
 * TOO_LARGE when there never will be. */
int arena_grant(struct arena *arena, struct shared_layout *layout, uint64_t step, uint64_t incarnation,
                struct snapshot **ret_snapshot, struct cairn_error *err);
/* Before it is granted to the client: its device may pack parts. Another daemon will not go on with it. */
void snapshot_may_be_packed(struct snapshot *s);
/* The pages as runs; returns how many, or TOO_LARGE when they are more than room. */
int snapshot_runs(const struct snapshot *s, struct local_run *runs, unsigned room);
/* Whether the client has written this save's id into its word. */
bool snapshot_is_filled(const struct snapshot *s);
void snapshot_filled(struct snapshot *s);
/* The whole shard is durable, the checkpoint is not decided. */
void snapshot_shard_durable(struct snapshot *s);
/* These parts are durable: their pages may be taken by later grants. Wakes waiters. */
void snapshot_durable(struct snapshot *s, uint32_t first_part, uint32_t nparts);
/* Nobody reads the pages for saving any more. keep: the checkpoint is committed, leave what is left for restores, and
 * drop older kept ones. Otherwise the snapshot is freed. */
void snapshot_end(struct snapshot *s, bool keep);

/* A grant that waits for room. Owned by the caller; retry() is called once when pages became free, after removal. */
struct arena_waiter {
    struct list link;
    void (*retry)(struct arena_waiter *w);
    void *arg;
};
void arena_wait(struct arena *arena, struct arena_waiter *w);
void arena_wait_cancel(struct arena_waiter *w);

/* The kept or filled snapshot of a checkpoint's shard on this node; NULL when there is none, or it may be packed. */
struct snapshot *arenas_find(struct arenas *arenas, const char *job, uint64_t step, uint64_t incarnation,
                             uint32_t rank);
/* Of one arena, by id; NULL when there is none. */
struct snapshot *arena_find(const struct arena *a, uint64_t save);
/* Where the same parts of an older snapshot with the same layout lie, in the same arena; false: they are not there.
 * Their process can write to them. */
bool snapshot_base(const struct snapshot *s, uint64_t step, uint64_t incarnation, uint32_t first_part, uint32_t nparts,
                   const char **ret_plain);
/* Whether all these parts are still there. */
bool snapshot_holds(const struct snapshot *s, uint32_t first_part, uint32_t nparts);

#endif
