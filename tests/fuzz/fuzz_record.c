/* SPDX-License-Identifier: Apache-2.0 */
/* Untrusted metadata records and keys. */
#include "core/proto/record.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t fuzz_seed_nth(unsigned i, uint8_t *buf, size_t room);

/* A decision and an intent, with a base and without. */
size_t fuzz_seed_nth(unsigned i, uint8_t *buf, size_t room)
{
    struct record_intent intent = {.world_size = 2, .nodes = 1, .deadline_ms = 1000, .node = "n1"};
    struct record_decision d = {
        .commit = true, .node = "n1", .world_size = 2, .root = {.len = 100, .npeers = 1, .peer = {"p1"}}};
    struct bytes out = {.data = NULL};

    if (i & 1)
        d.base = intent.base = (struct ckpt_base){.is_set = true, .step = 7, .incarnation = 2};
    int r = i & 2 ? record_intent_encode(&intent, &out, NULL) : record_decision_encode(&d, &out, NULL);
    if (r < 0 || out.len > room)
        abort();
    memcpy(buf, out.data, out.len);
    size_t n = out.len;
    bytes_free(&out);
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct record_peer peer;
    struct record_incarnation *incarnation = malloc(sizeof *incarnation);
    struct record_coordinator coordinator;
    struct record_crew crew;
    struct record_pin pin;
    struct record_engine engine;
    struct record_intent intent;
    struct record_decision decision;
    struct record_settings settings;
    struct record_hold hold;
    struct record_tombstone *tombstone = malloc(sizeof *tombstone);
    char *key = malloc(len + 1), job[CAIRN_MAX_NAME + 1];
    uint64_t step, number;
    const char *what;

    (void)record_peer_decode(&peer, data, len, NULL);
    (void)record_incarnation_decode(incarnation, data, len, NULL);
    (void)record_coordinator_decode(&coordinator, data, len, NULL);
    (void)record_crew_decode(&crew, data, len, NULL);
    (void)record_pin_decode(&pin, data, len, NULL);
    (void)record_engine_decode(&engine, data, len, NULL);
    (void)record_intent_decode(&intent, data, len, NULL);
    (void)record_decision_decode(&decision, data, len, NULL);
    (void)record_settings_decode(&settings, data, len, NULL);
    (void)record_hold_decode(&hold, data, len, NULL);
    (void)record_tombstone_decode(tombstone, data, len, NULL);
    memcpy(key, data, len);
    key[len] = 0;
    (void)record_parse_ckpt(key, job, &step, &number, &what, NULL);
    free(key);
    free(incarnation);
    free(tombstone);
    return 0;
}
