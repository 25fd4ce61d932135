/* SPDX-License-Identifier: Apache-2.0 */
/* The messages of wire.proto as plain structs: encode into a buffer, decode and validate untrusted bytes. Nobody above
 * sees protobuf. Strings of a decoded message live in it; nothing to free. */
#ifndef CAIRN_CORE_PROTO_WIRE_H
#define CAIRN_CORE_PROTO_WIRE_H

#include "core/proto/fragment.h"

#define WIRE_VERSION 1
#define WIRE_MAX 4096     /* bytes of any message */
#define WIRE_MAX_ADDR 128 /* bytes of a fabric address */
#define WIRE_TEXT 256     /* bytes of an error message with its end */

enum wire_type { /* the field numbers of Envelope.body */
                 WIRE_HELLO = 10,
                 WIRE_WELCOME,
                 WIRE_STREAM_OPEN,
                 WIRE_STREAM_OPENED,
                 WIRE_STORED,
                 WIRE_SYNC,
                 WIRE_SYNCED,
                 WIRE_STREAM_CLOSE,
                 WIRE_READ,
                 WIRE_READ_DONE,
                 WIRE_FORGET,
                 WIRE_PING,
                 WIRE_PONG,
                 WIRE_BYE,
                 WIRE_SCRUB = 40,
                 WIRE_SCRUB_DONE,
                 WIRE_INVENTORY,
                 WIRE_INVENTORY_ITEMS,
                 WIRE_ACCEPT_ENGINE = 45,
                 WIRE_ENGINE_ACCEPTED,
                 WIRE_FORGOTTEN = 60
};

#define WIRE_ITEMS 10 /* streams that one INVENTORY_ITEMS names */
struct wire_stream {  /* what a stream file says of itself */
    char job[CAIRN_MAX_NAME + 1];
    uint64_t step, incarnation;
    char node[CAIRN_MAX_NAME + 1];
};

struct wire_status {
    int code;
    char message[WIRE_TEXT];
};

struct wire_message {
    int type; /* enum wire_type */
    uint64_t session;
    union {
        struct {
            char node[CAIRN_MAX_NAME + 1];
            uint64_t start;
            uint8_t address[WIRE_MAX_ADDR];
            size_t address_len;
            uint32_t slots;
        } hello;
        struct {
            struct wire_status status;
            char peer[CAIRN_MAX_NAME + 1];
            uint64_t start;
            uint32_t slots;
            uint64_t slot_bytes, key, base;
            uint32_t first_slot;
        } welcome;
        struct {
            uint32_t stream;
            char job[CAIRN_MAX_NAME + 1];
            uint64_t step, incarnation;
            char node[CAIRN_MAX_NAME + 1];
            uint64_t reserve_bytes, fence_incarnation;
            bool repair;
        } stream_open;
        struct {
            uint32_t stream;
            struct wire_status status;
            uint64_t generation;
        } stream_opened;
        struct {
            uint32_t slot, generation;
            struct wire_status status;
            uint32_t stream;
        } stored;
        struct {
            uint32_t stream;
            uint64_t sequence;
        } sync;
        struct {
            uint32_t stream;
            uint64_t sequence;
            struct wire_status status;
        } synced;
        struct {
            uint32_t stream;
        } stream_close;
        struct {
            uint64_t request;
            struct fragment_key key;
            bool check, present;
            uint64_t address, remote_key, room;
            uint32_t data;
        } read;
        struct {
            uint64_t request;
            struct wire_status status;
        } read_done;
        struct {
            char job[CAIRN_MAX_NAME + 1];
            uint64_t step, incarnation;
        } forget; /* and FORGOTTEN */
        struct {
            uint64_t request;
        } ping;
        struct {
            uint64_t request, free_bytes;
        } pong;
        struct {
            char reason[WIRE_TEXT];
        } bye;
        struct {
            uint64_t request;
            char job[CAIRN_MAX_NAME + 1]; /* "": all jobs */
        } scrub;
        struct {
            uint64_t request;
            struct wire_status status;
            uint64_t files, fragments, bytes, bad;
        } scrub_done;
        struct {
            uint64_t request;
            char job[CAIRN_MAX_NAME + 1]; /* "": all jobs */
            bool from_start;
            struct wire_stream after;
        } inventory;
        struct {
            uint64_t request;
            unsigned n;
            struct wire_stream items[WIRE_ITEMS];
            bool last;
            char engine[CAIRN_MAX_NAME + 1]; /* "": none */
        } inventory_items;
        struct {
            uint64_t request;
            char engine[CAIRN_MAX_NAME + 1];
        } accept_engine;
        struct {
            uint64_t request;
            struct wire_status status;
        } engine_accepted;
    };
};

/* Returns the length, at most WIRE_MAX, or CAIRN_E_INVAL. */
int wire_encode(const struct wire_message *m, uint8_t buf[WIRE_MAX], struct cairn_error *err);
/* Checks names, lengths, enums, the version and required features. 0, or CAIRN_E_PROTOCOL. */
int wire_decode(const void *data, size_t len, struct wire_message *ret, struct cairn_error *err);
void wire_status_set(struct wire_status *s, int code, const struct cairn_error *err);
/* "HELLO", ...; never NULL. */
const char *wire_type_name(int type);

#endif
