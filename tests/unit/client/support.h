/* SPDX-License-Identifier: Apache-2.0 */
/* What the client's tests against the fake daemon share. Include after cmocka.h. */
#ifndef CAIRN_TESTS_UNIT_CLIENT_SUPPORT_H
#define CAIRN_TESTS_UNIT_CLIENT_SUPPORT_H

#include <stdlib.h>
#include <string.h>

#include "tests/unit/client/fake_daemon.h"

static struct cairn_error err = CAIRN_ERROR_INIT;

#define OK(call_)                                                                   \
    do {                                                                            \
        int ok_code_ = (call_);                                                     \
        if (ok_code_ != 0)                                                          \
            fail_msg("%s: %s: %s", #call_, cairn_code_name(ok_code_), err.message); \
    } while (0)
#define FAILS(code_, call_)                                                                                    \
    do {                                                                                                       \
        int fails_code_ = (call_);                                                                             \
        if (fails_code_ != (code_))                                                                            \
            fail_msg("%s: %s instead of %s: %s", #call_, cairn_code_name(fails_code_), cairn_code_name(code_), \
                     err.message);                                                                             \
    } while (0)

static inline int open_rank(struct fake *f, uint32_t rank, uint32_t world, uint64_t arena_mib, uint32_t timeout_ms,
                            struct cairn_session **ret_session)
{
    struct cairn_session_options o = {.size = sizeof(o),
                                      .job = "job",
                                      .rank = rank,
                                      .world_size = world,
                                      .arena_bytes = arena_mib << 20,
                                      .start_id = "start",
                                      .socket_path = fake_path(f),
                                      .timeout_ms = timeout_ms,
                                      .copy_threads = 2};

    return cairn_session_open(&o, ret_session, &err);
}

static inline int begin(struct cairn_session *s, uint64_t step, struct cairn_save **ret_save)
{
    struct cairn_save_options o = {.size = sizeof(o), .step = step};

    return cairn_save_begin(s, &o, ret_save, &err);
}

/* A whole one-dimensional tensor of bytes. */
static inline struct cairn_tensor bytes_tensor(const char *name, const uint64_t *len, void *data)
{
    return (struct cairn_tensor){
        .size = sizeof(struct cairn_tensor), .name = name, .dtype = CAIRN_BYTES, .ndim = 1, .shape = len, .data = data};
}

static inline void fill_random(void *data, size_t len, uint64_t seed)
{
    unsigned char *b = data;
    uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;

    for (size_t i = 0; i < len; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        b[i] = (unsigned char)x;
    }
}

static inline void *random_bytes(size_t len, uint64_t seed)
{
    void *data = malloc(len ? len : 1);

    assert_non_null(data);
    fill_random(data, len, seed);
    return data;
}

static inline void no_complaint(struct fake *f)
{
    const char *what = fake_complaint(f);

    if (what)
        fail_msg("the fake daemon complains: %s", what);
}

#endif
