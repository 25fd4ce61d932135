/* SPDX-License-Identifier: Apache-2.0 */
/* The receiving process of the probe, and what it and the sender say to each other in words of 32 bits. */
#ifndef CAIRN_BENCH_PROBE_RECEIVER_H
#define CAIRN_BENCH_PROBE_RECEIVER_H

#include "bench/probe_wire.h"

#define PROBE_PIECE ((size_t)1 << 20)
#define PROBE_MAX_SLOTS 256
#define PROBE_IDLE_S 900.0
#define PROBE_SPIN_S 20e-6 /* polled without sleeping for so long after the last work, as the daemon does */

enum probe_word {
    PROBE_GREET,       /* nothing but an answer: the connection is there */
    PROBE_GO_NEW,      /* a save begins: a new file of so many pieces */
    PROBE_GO_RECYCLED, /* the file of the last time, laid out by it */
    PROBE_PIECE_IN,    /* a slot is full */
    PROBE_END,         /* so many pieces they were: sync */
    PROBE_CLEAN,       /* remove the new file */
    PROBE_QUIT,
    PROBE_SLOT_FREE, /* the answers: what was in a slot is written */
    PROBE_DURABLE,
    PROBE_DONE, /* cleaned, or greeted */
};

static inline uint32_t probe_word(enum probe_word kind, unsigned who, uint32_t value)
{
    return (uint32_t)kind << 28 | who << 20 | value;
}
static inline enum probe_word probe_kind(uint32_t word)
{
    return (enum probe_word)(word >> 28);
}
static inline unsigned probe_who(uint32_t word)
{
    return word >> 20 & 0xff;
}
static inline uint32_t probe_value(uint32_t word)
{
    return word & 0xfffff;
}

struct probe_options {
    const char *directory, *provider;
    unsigned mib, runs, receivers, slots;
    double stored; /* bytes on the peers for each of state */
    bool only_new, only_recycled, keep, serve;
};

/* What both processes see. */
struct probe_shared {
    struct wire_address sender, receivers[WIRE_PEERS];
    double cpu_s[WIRE_PEERS]; /* so far, when it was greeted or last durable */
};

/* The path of a receiver's file. */
void probe_path(const struct probe_options *o, unsigned index, bool fresh, char ret_path[4096]);
/* Tells the descriptor that its address is known, waits until the sender's is, and serves until it is told to quit or
 * nothing happened for so long. Returns the process's exit status. */
int probe_receive(const struct probe_options *o, unsigned index, struct probe_shared *shared, int ready);

#endif
