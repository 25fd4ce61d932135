/* SPDX-License-Identifier: Apache-2.0 */
/* Whoever can reach a peer's fabric address and has no key:
 *
 *     stranger ADDRESS flood N     greets N times in others' names, each from another address where nobody answers
 *     stranger ADDRESS guess       greets, takes the challenge and answers it with a proof that it cannot make
 *     stranger ADDRESS echo        the same, with the peer's own proof sent back
 *     stranger ADDRESS keyless     greets as a daemon without a key
 *     stranger ADDRESS relay       prints its own address, and passes on what nodes and the peer say to each other
 * there, with its address in place of the node's; until it is killed
 *
 * ADDRESS is in hex, as in the peer's record. Prints what the peer answered last. */
#include "core/proto/wire.h"
#include "daemon/io/fabric.h"

#include "core/base/error.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATIENCE_MS 5000

struct stranger {
    struct loop *loop;
    struct endpoint *ep;
    uint64_t to;
    uint64_t node; /* a relay's: who greeted it */
    unsigned on_their_way;
    const char *mode;
    bool answered;
};

static void must(int r, const struct cairn_error *err)
{
    if (r >= 0)
        return;
    fprintf(stderr, "stranger: %s\n", err->message);
    exit(1);
}

static void sent(struct fabric_op *op, int code)
{
    struct stranger *s = op->arg;

    (void)code;
    s->on_their_way--;
    free(op);
}

static void say_to(struct stranger *s, uint64_t to, const struct wire_message *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct fabric_op *op = calloc(1, sizeof *op);
    uint8_t buf[WIRE_MAX];
    int len = wire_encode(m, buf, &err);

    must(op ? len : CAIRN_E_NOMEM, &err);
    *op = (struct fabric_op){.done = sent, .arg = s};
    s->on_their_way++;
    endpoint_send(s->ep, op, to, buf, (size_t)len);
}

static void say(struct stranger *s, const struct wire_message *m)
{
    say_to(s, s->to, m);
}

static void on_challenge(struct stranger *s, const struct wire_message *m)
{
    struct wire_message out = {.type = WIRE_PROOF, .session = m->session};

    out.proof.key_id = m->challenge.key_id;
    memset(out.proof.tag, 7, PROOF_TAG);
    if (strcmp(s->mode, "echo") == 0)
        memcpy(out.proof.tag, m->challenge.tag, PROOF_TAG);
    say(s, &out);
}

static void relay(struct stranger *s, struct wire_message *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    bool from_node = m->type == WIRE_HELLO || m->type == WIRE_PROOF;

    if (m->type == WIRE_HELLO) {
        must(endpoint_resolve(s->ep, m->hello.address, m->hello.address_len, &s->node, &err), &err);
        endpoint_address(s->ep, m->hello.address, &m->hello.address_len);
    }
    printf("%s %d\n", wire_type_name(m->type), m->type == WIRE_WELCOME ? m->welcome.status.code : 0);
    say_to(s, from_node ? s->to : s->node, m);
}

static void on_message(void *arg, const void *data, size_t len)
{
    struct stranger *s = arg;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct wire_message m;

    must(wire_decode(data, len, &m, &err), &err);
    if (strcmp(s->mode, "relay") == 0) {
        relay(s, &m);
        return;
    }
    if (m.type == WIRE_CHALLENGE) {
        on_challenge(s, &m);
        return;
    }
    s->answered = true;
    printf("%s %d %s\n", wire_type_name(m.type), m.type == WIRE_WELCOME ? m.welcome.status.code : 0,
           m.type == WIRE_WELCOME ? m.welcome.status.message : "");
}

static void on_written(void *arg, uint32_t data)
{
    (void)arg;
    (void)data;
}

static void turn_until(struct stranger *s, const bool *done)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint64_t end = loop_now_ns(s->loop) + (uint64_t)PATIENCE_MS * 1000000;

    while (!(done ? *done : s->on_their_way == 0)) {
        must(loop_turn(s->loop, 10, &err), &err);
        if (loop_now_ns(s->loop) > end)
            must(cairn_fail(&err, CAIRN_E_TIMEOUT, "no answer"), &err);
    }
}

static struct wire_message hello_of(struct stranger *s, const char *node)
{
    struct wire_message m = {.type = WIRE_HELLO};

    snprintf(m.hello.node, sizeof m.hello.node, "%s", node);
    m.hello.start = 1;
    m.hello.slots = 8;
    m.hello.has_nonce = strcmp(s->mode, "keyless") != 0;
    memset(m.hello.nonce, 3, PROOF_NONCE);
    endpoint_address(s->ep, m.hello.address, &m.hello.address_len);
    return m;
}

/* Ports 1 and up of 127.66.0.0/16: nobody listens there. */
static void flood(struct stranger *s, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        struct wire_message m = hello_of(s, "n1");
        struct sockaddr_in from;

        memcpy(&from, m.hello.address, sizeof from);
        from.sin_port = htons((uint16_t)(1 + i % 1000));
        from.sin_addr.s_addr = htonl(0x7f420000u + i / 1000);
        memcpy(m.hello.address, &from, sizeof from);
        say(s, &m);
        if (i % 256 == 255)
            turn_until(s, NULL);
    }
    turn_until(s, NULL);
    printf("flooded %u\n", n);
}

static void stay(struct stranger *s)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint8_t address[FABRIC_MAX_ADDR];
    size_t len;

    setvbuf(stdout, NULL, _IOLBF, 0);
    endpoint_address(s->ep, address, &len);
    for (size_t i = 0; i < len; i++)
        printf("%02x", address[i]);
    printf("\n");
    for (;;)
        must(loop_turn(s->loop, 100, &err), &err);
}

static size_t unhex(const char *text, uint8_t *to, size_t room)
{
    size_t n = 0;

    for (unsigned byte; n < room && sscanf(text + 2 * n, "%2x", &byte) == 1; n++)
        to[n] = (uint8_t)byte;
    return n;
}

int main(int argc, char **argv)
{
    static const struct endpoint_events events = {on_message, on_written};
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct fabric_config fc = {"tcp;ofi_rxm", "127.0.0.1"};
    struct stranger s = {.mode = argc > 2 ? argv[2] : ""};
    uint8_t address[WIRE_MAX_ADDR];
    struct fabric *fabric = NULL;

    if (argc < 3)
        return 2;
    must(loop_new(64, &s.loop, &err), &err);
    must(fabric_open(s.loop, &fc, &fabric, &err), &err);
    must(endpoint_open(fabric, 0, 16, &events, &s, &s.ep, &err), &err);
    must(endpoint_resolve(s.ep, address, unhex(argv[1], address, sizeof address), &s.to, &err), &err);
    if (strcmp(s.mode, "relay") == 0)
        stay(&s);
    if (strcmp(s.mode, "flood") == 0) {
        flood(&s, (unsigned)strtoul(argc > 3 ? argv[3] : "1000", NULL, 10));
    } else {
        struct wire_message m = hello_of(&s, "n1");
        say(&s, &m);
        turn_until(&s, &s.answered);
    }
    endpoint_free(s.ep);
    fabric_close(fabric);
    loop_free(s.loop);
    return 0;
}
