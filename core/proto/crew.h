/* SPDX-License-Identifier: Apache-2.0 */
/* The messages of crew.proto as plain structs: what the nodes of a job say to each other. */
#ifndef CAIRN_CORE_PROTO_CREW_H
#define CAIRN_CORE_PROTO_CREW_H

#include "core/proto/root.h"
#include "core/proto/wire.h"

#define CREW_VERSION 1
#define CREW_MAX ((size_t)16 << 10) /* bytes of any message */
#define CREW_MAX_ENTRIES 8
#define CREW_MAX_RANKS 256 /* of a job, on one node */
#define CREW_TAG 32
#define CREW_MAX_HOPS 4 /* a tree of fan-in 64 is not deeper */

enum crew_type { CREW_GREET = 10, CREW_PLACE, CREW_REPORT, CREW_VERDICT }; /* field numbers of Letter.body */

enum report_state { /* of one rank's part of a checkpoint */
                    REPORT_BEGUN = 1,
                    REPORT_FILLED,
                    REPORT_DURABLE,
                    REPORT_DROPPED, /* the rank gave up before it had filled */
                    REPORT_FAILED,  /* its filled snapshot cannot be made durable */
                    REPORT_STATES
};
/* What the coordinator says of a checkpoint. */
enum verdict { VERDICT_NONE, VERDICT_INTENT, VERDICT_COMMITTED, VERDICT_ABORTED, VERDICT_UNDECIDED, VERDICTS };

struct crew_entry {
    uint32_t rank;
    int state; /* enum report_state */
    uint64_t pin_number;
    char reason[WIRE_TEXT];
    struct shard_ref shard; /* of a durable one; shard.node is the rank's node always */
};
struct crew_address {
    char node[CAIRN_MAX_NAME + 1];
    uint64_t start;
    uint8_t bytes[WIRE_MAX_ADDR];
    size_t len;
};
struct crew_letter {
    int type;                 /* enum crew_type */
    struct crew_address from; /* unauthenticated unless the letter was signed */
    char job[CAIRN_MAX_NAME + 1];
    union {
        struct {
            uint64_t incarnation;
            uint32_t nranks;
            uint32_t ranks[CREW_MAX_RANKS];
        } greet;
        struct {
            bool coordinates;
            struct crew_address parent; /* node is empty: the coordinator itself */
            uint64_t incarnation;
        } place;
        struct {
            uint64_t step, incarnation;
            uint64_t coordinator; /* its start: no other daemon may act on it */
            uint32_t hops;
            bool hurry; /* somebody waits for the checkpoint */
            uint32_t nentries;
            struct crew_entry entries[CREW_MAX_ENTRIES];
        } report;
        struct {
            uint64_t step, incarnation;
            uint64_t coordinator;  /* its start: believed only by nodes that report to it */
            int verdict;           /* enum verdict */
            bool hurry;            /* as in report */
            struct ckpt_base base; /* of an intent */
            struct wire_status status;
        } verdict;
    };
};

/* The letter without its signature: appended to out. */
int crew_encode(const struct crew_letter *l, struct bytes *out, struct cairn_error *err);
/* Checks names, lengths, enums, counts, version and required features. 0, or CAIRN_E_PROTOCOL. */
int crew_decode(const void *data, size_t len, struct crew_letter *ret, struct cairn_error *err);

/* The envelope: a letter's bytes with who signed them. key_id 0 and an empty tag: nobody. */
int crew_seal(const struct bytes *letter, uint32_t key_id, const uint8_t tag[CREW_TAG], struct bytes *out,
              struct cairn_error *err);
struct crew_sealed {
    struct bytes letter; /* the caller frees */
    uint32_t key_id;     /* 0: not signed */
    uint8_t tag[CREW_TAG];
};
int crew_open(const void *data, size_t len, struct crew_sealed *ret, struct cairn_error *err);
/* "GREET", ...; never NULL. */
const char *crew_type_name(int type);

#endif
