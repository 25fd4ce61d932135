/* SPDX-License-Identifier: Apache-2.0 */
/* One end of the probe's wire: libfabric with the provider and the settings that cairnd asks for, and nothing else. */
#ifndef CAIRN_BENCH_PROBE_WIRE_H
#define CAIRN_BENCH_PROBE_WIRE_H

#include <rdma/fabric.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_RECEIVES 64
#define WIRE_PEERS 16
#define WIRE_ADDRESS 64

/* What the other end needs to write here. */
struct wire_address {
    uint8_t name[WIRE_ADDRESS];
    uint64_t base, key; /* of the memory that may be written to */
};

struct wire {
    struct fi_info *info;
    struct fid_fabric *fabric;
    struct fid_domain *domain;
    struct fid_cq *cq;
    struct fid_av *av;
    struct fid_ep *ep;
    struct fid_mr *mr;
    char *memory;
    int fd; /* becomes readable with a completion */
    struct fi_context2 receives[WIRE_RECEIVES];
    struct {
        fi_addr_t addr;
        uint64_t base, key;
        bool owed; /* the word behind a write that is on its way */
        uint32_t word;
    } peers[WIRE_PEERS];
    unsigned npeers;
};

struct wire_event {
    struct fi_context2 *written; /* a write that has completed; NULL: a word came */
    uint32_t word;
};

/* Each returns 0, or -1 after a message on stderr. Memory is registered once; it may be written to by the other ends.
 */
int wire_open(struct wire *w, const char *provider, char *memory, size_t len);
int wire_address(const struct wire *w, struct wire_address *ret_address);
int wire_connect(struct wire *w, const struct wire_address *to, unsigned *ret_peer);
void wire_close(struct wire *w);

/* Writes to the peer's memory, and a word behind it. 0, 1 when there is no room now, -1 after a message. */
int wire_write(struct wire *w, unsigned peer, const char *from, size_t len, uint64_t offset, uint32_t word,
               struct fi_context2 *context);
/* A word alone: the same answers. */
int wire_tell(struct wire *w, unsigned peer, uint32_t word);
/* What happened since, without waiting: the number of events, or -1 after a message. */
int wire_poll(struct wire *w, struct wire_event *ret_events, unsigned most);
/* Whether it may be slept on fd. */
bool wire_may_sleep(struct wire *w);

#endif
