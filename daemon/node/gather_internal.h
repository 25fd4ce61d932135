/* SPDX-License-Identifier: Apache-2.0 */
/* A gather's inside: gather.c decides what is read from whom, gather_take.c gives what came to workers. */
#ifndef CAIRN_DAEMON_NODE_GATHER_INTERNAL_H
#define CAIRN_DAEMON_NODE_GATHER_INTERNAL_H

#include "daemon/node/decode.h"
#include "daemon/node/gather.h"
#include "daemon/node/link.h"

enum got { NOT_ASKED, READING, TAKING, GOT, FAILED };

struct want { /* one fragment */
    struct gather_run *run;
    enum got state;
    unsigned index;
    struct link *link;  /* being read from */
    unsigned next_peer; /* of all, once the hinted one failed */
    bool hint_tried;
    struct link_read read;
    char *payload;    /* CAIRN_PART bytes; NULL: the part is raw and wanted, and its payload is in target */
    struct take take; /* TAKING */
    struct worker_job job;
};

struct base_part { /* the gather of a chunk's base */
    struct gather gather;
    char *plain; /* k times CAIRN_PART bytes; NULL: the chunk has no base */
    bool running;
};

struct gather_run {
    struct links *links;
    struct gather *g;                /* NULL once it was completed */
    const struct manifest *manifest; /* and the chunk in it that has the wanted one's fragments */
    const struct chunk_record *chunk;
    struct fragment_key key;
    unsigned n; /* fragments of the stripe */
    struct want want[CAIRN_MAX_FRAGS];
    bool all_wanted; /* parity too */
    bool everywhere; /* not only the hinted peers */
    unsigned hedges; /* fragments asked for because others were late */
    struct loop_timer hedge, deadline;
    struct loop_post step;
    bool stepping;
    const struct codec *codecs[CAIRN_MAX_K];
    int dtype;
    unsigned ntaking;
    struct hash_stream *hash; /* of the parts in their order, while they are taken in it; NULL: it is made at the end */
    unsigned hashed;          /* parts that it has */
    bool hashing;             /* a worker has it */
    struct worker_job job;
    struct decode decode;
    bool decoding;
    bool cancelled;
    struct base_part base;
    int bad_code; /* negative: it cannot be decoded, there are no bytes of the base */
    struct cairn_error bad_err;
    bool ending; /* with end_code, as soon as the base's gather and the workers have ended */
    int end_code;
    struct cairn_error end_err;
    struct link *all[LINKS_MAX];
    unsigned nall;
    char errors[GATHER_WHY];
};

/* ---- gather.c -------------------------------------------------------------------------------- */
void gather_step_soon(struct gather_run *r);
void gather_note_error(struct gather_run *r, const char *peer, const struct cairn_error *err);
/* Ends the run; its caller is told once nobody touches the caller's memory or reads its manifest any more. */
void gather_finish(struct gather_run *r, int code, const struct cairn_error *err);
void gather_finish_end(struct gather_run *r);

/* ---- gather_take.c --------------------------------------------------------------------------- */
bool gather_wants_part(const struct gather_run *r, unsigned i);
/* A worker checks the record and copies or decodes it; called when its read is done. */
int gather_take(struct want *w, const char *record, struct cairn_error *err);
/* All that is needed was taken: what is missing is rebuilt, deltas get their base, the chunk's checksum is compared. */
int gather_decode(struct gather_run *r, struct cairn_error *err);

#endif
