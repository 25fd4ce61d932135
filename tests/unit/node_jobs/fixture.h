/* SPDX-License-Identifier: Apache-2.0 */
/* One or two daemons' jobs over one database, each on a loop of its own: one that is not turned any more is a dead one.
 */
#ifndef CAIRN_TESTS_NODE_JOBS_FIXTURE_H
#define CAIRN_TESTS_NODE_JOBS_FIXTURE_H

#include "daemon/io/fabric.h"
#include "daemon/node/mesh.h"
#include "double_transfer.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

struct machine {
    struct loop *loop;
    struct plugins *plugins;
    struct meta *meta;
    struct fabric *fabric;
    struct mesh *mesh;
    struct links links;
    struct jobs *jobs;
    bool stopped;
    struct machine *beside; /* turned with this one; NULL: a dead one is not */
};
struct fixture {
    char dir[64];
    char db[96];
    struct cairn_layout layout;
    struct machine a, b, c; /* b and c: when a test asks for them */
    struct cairn_error err; /* of what failed last */
    const char *rule;       /* of machines that are started; NULL: all */
    uint32_t retention_ms;
    bool common_fails;        /* machines that are started abort what ranks disagree on */
    unsigned share_unchanged; /* of machines that are started */
    struct hold *kept_hold;   /* of the last open_step with keep_hold */
    bool keep_hold;
};
int fixture_setup(void **state);
int fixture_teardown(void **state);
void machine_start(struct fixture *f, struct machine *m, const char *node, uint64_t start, uint32_t checkpoint_ms);
void machine_stop(struct machine *m);
/* Turns the loop until *flag, for at most 20 s. */
void turn_until(struct machine *m, const bool *flag);
void turn_for(struct machine *m, unsigned ms);
/* From now on each is turned with the other. */
void turn_together(struct fixture *f);

/* 0, or the code; f->err has the message. */
int join(struct fixture *f, struct machine *m, const char *job, const char *start, uint32_t rank, uint32_t world,
         bool take_over, struct member **ret);
int open_step(struct fixture *f, struct machine *m, struct member *member, uint64_t step, uint32_t timeout_ms,
              uint64_t *ret_step, uint64_t *ret_inc, struct checkpoint **ret);

/* 0, or the code; f->err has the message. */
int change(struct fixture *f, struct machine *m, int kind, uint64_t step, const char *argument);

struct save { /* what happened to one rank's save */
    struct rank_save *save;
    bool durable, outcome, ended, parts;
    int code;
    char message[512];
    struct links *links;
};
int begin(struct fixture *f, struct machine *m, struct member *member, uint64_t step, struct save *s);
/* The same for a snapshot from before a restart; 1: committed already. */
int resume(struct fixture *f, struct member *member, uint64_t step, struct save *s);
void fill(struct fixture *f, struct save *s);
void put_in_place(struct fixture *f, struct save *s, uint32_t parts);
/* Begins, fills and commits with every given member. */
void commit_step_of(struct fixture *f, struct machine *m, struct member **members, unsigned n, uint64_t step);
/* "committed", "aborted", "undecided", "deleted" or "absent"; the reason of an abort into f->err.message. */
const char *fate(struct fixture *f, struct machine *m, const char *job, uint64_t step, uint64_t inc);

/* Holds the database's write lock: transactions go without an answer. */
struct sqlite3;
struct sqlite3 *lock_database(struct fixture *f);
void unlock_database(struct sqlite3 *db);
void change_database(struct fixture *f, const char *sql);
/* How many changes there were. */
uint64_t database_revision(struct fixture *f);
/* As if every lease had expired. */
void expire_leases(struct fixture *f);

#endif
