/* SPDX-License-Identifier: Apache-2.0 */
/* cluster-numerics: saves one step as all ranks of a world, from one process, with what the numerics watch is there
 * for.
 *
 *     own.RANK         F32, 3.5 MiB, of this rank alone; own.RANK.small is a BF16 of 100
 *     shared.weight    F32, 2.5 MiB, that all ranks hold in common; shared.bias is a BF16 of 33; shared.scale a scalar
 *
 *     --nan RANK       three NaN and two Inf in own.RANK, one NaN in own.RANK.small
 *     --flip RANK      one bit of this rank's shared.weight and shared.bias is another one
 *     --restored STEP  only opens it (or latest-finite), and prints "opened STEP"
 *
 * Prints "sealed STEP" when every rank has, then "committed STEP", or "failed STEP CODE WHY". */
#include <cairn/cairn.h>

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_WORLD 8
#define OWN 917504
#define SHARED 655360

struct rank {
    struct cairn_session *session;
    struct cairn_save *save;
    float *own, *weight;
    uint16_t small[100], bias[33];
    float scale;
};

static int fail(const char *what, uint64_t step, const struct cairn_error *err)
{
    printf("%s %llu %s %s\n", what, (unsigned long long)step, cairn_code_name(err->code), err->message);
    return 1;
}

static void fill(struct rank *r, unsigned rank, uint64_t step, int nan_rank, int flip_rank)
{
    r->own = malloc(OWN * sizeof *r->own);
    r->weight = malloc(SHARED * sizeof *r->weight);
    if (!r->own || !r->weight)
        exit(3);
    for (unsigned i = 0; i < OWN; i++)
        r->own[i] = (float)((i * 2654435761u) >> 8) / (float)(rank + step);
    for (unsigned i = 0; i < SHARED; i++)
        r->weight[i] = (float)(i * 40503u % 8191) * (float)step;
    for (unsigned i = 0; i < 100; i++)
        r->small[i] = (uint16_t)(i * 11 + rank);
    for (unsigned i = 0; i < 33; i++)
        r->bias[i] = (uint16_t)(0x3f80 + i);
    r->scale = (float)step;
    if ((int)rank == nan_rank) { /* in the first part, over an edge of parts, and at the very end */
        r->own[5] = NAN;
        r->own[262143] = r->own[262144] = INFINITY;
        r->own[OWN - 2] = r->own[OWN - 1] = -NAN;
        r->small[99] = 0x7fc0;
    }
    if ((int)rank == flip_rank) {
        uint32_t word;
        memcpy(&word, &r->weight[500000], sizeof word);
        word ^= 1u << 7;
        memcpy(&r->weight[500000], &word, sizeof word);
        r->bias[32] ^= 1;
    }
}

static int add(struct cairn_save *save, const char *name, int dtype, uint64_t n, void *data, uint32_t flags,
               struct cairn_error *err)
{
    struct cairn_tensor t = {.size = sizeof t,
                             .name = name,
                             .dtype = dtype,
                             .ndim = n > 0,
                             .shape = n > 0 ? &n : NULL,
                             .data = data,
                             .flags = flags};

    return cairn_save_add(save, &t, err);
}

/* Odd ranks add what is shared in another order: that does not make it another set. */
static int add_all(struct rank *r, unsigned rank, struct cairn_error *err)
{
    char own[32], small[32];
    int c;

    snprintf(own, sizeof own, "own.%u", rank);
    snprintf(small, sizeof small, "own.%u.small", rank);
    c = add(r->save, own, CAIRN_F32, OWN, r->own, 0, err);
    if (c == 0 && rank % 2)
        c = add(r->save, "shared.bias", CAIRN_BF16, 33, r->bias, CAIRN_TENSOR_COMMON, err);
    if (c == 0)
        c = add(r->save, small, CAIRN_BF16, 100, r->small, 0, err);
    if (c == 0)
        c = add(r->save, "shared.weight", CAIRN_F32, SHARED, r->weight, CAIRN_TENSOR_COMMON, err);
    if (c == 0 && rank % 2 == 0)
        c = add(r->save, "shared.bias", CAIRN_BF16, 33, r->bias, CAIRN_TENSOR_COMMON, err);
    return c ? c : add(r->save, "shared.scale", CAIRN_F32, 0, &r->scale, CAIRN_TENSOR_COMMON, err);
}

static int seal(struct rank *r, unsigned rank, unsigned world, const char *job, const char *start, uint64_t step,
                struct cairn_error *err)
{
    struct cairn_session_options o = {.size = sizeof o,
                                      .job = job,
                                      .rank = rank,
                                      .world_size = world,
                                      .start_id = start,
                                      .arena_bytes = 24 << 20,
                                      .timeout_ms = 20000};
    struct cairn_save_options so = {.size = sizeof so, .step = step, .on_busy = CAIRN_BUSY_WAIT, .timeout_ms = 20000};
    int c = cairn_session_open(&o, &r->session, err);

    if (c == 0)
        c = cairn_save_begin(r->session, &so, &r->save, err);
    if (c == 0)
        c = add_all(r, rank, err);
    return c ? c : cairn_save_seal(r->save, err);
}

/* In turn, a little each: a session finds a daemon that has come back with its own next call only. */
static int wait_all(struct rank *ranks, unsigned world, uint64_t step)
{
    bool over[MAX_WORLD] = {false};
    unsigned left = world;
    int result = 0;

    for (unsigned turn = 0; left > 0 && turn < 400; turn++) {
        for (unsigned i = 0; i < world; i++) {
            struct cairn_error err = CAIRN_ERROR_INIT;
            int c = over[i] ? CAIRN_E_TIMEOUT : cairn_save_wait(ranks[i].save, CAIRN_COMMITTED, 50, &err);
            if (c == CAIRN_E_TIMEOUT || c == CAIRN_E_UNAVAILABLE)
                continue;
            over[i] = true;
            left--;
            if (c < 0 && result == 0)
                result = fail("failed", step, &err);
        }
    }
    if (left > 0)
        printf("failed %llu: %u ranks wait\n", (unsigned long long)step, left);
    else if (result == 0)
        printf("committed %llu\n", (unsigned long long)step);
    return result || left > 0;
}

static int save(const char *job, const char *start, unsigned world, uint64_t step, int nan_rank, int flip_rank)
{
    struct rank ranks[MAX_WORLD] = {0};
    struct cairn_error err = CAIRN_ERROR_INIT;
    int c = 0;

    for (unsigned i = 0; i < world && c == 0; i++) {
        fill(&ranks[i], i, step, nan_rank, flip_rank);
        c = seal(&ranks[i], i, world, job, start, step, &err);
    }
    if (c < 0) {
        c = fail("failed", step, &err);
    } else {
        printf("sealed %llu\n", (unsigned long long)step);
        c = wait_all(ranks, world, step);
    }
    for (unsigned i = 0; i < world; i++) {
        if (ranks[i].save)
            cairn_save_free(ranks[i].save);
        cairn_session_close(ranks[i].session);
        free(ranks[i].own);
        free(ranks[i].weight);
    }
    return c;
}

/* As a rank that has its reason for another step than the job's. */
static int open_only(const char *job, const char *start, unsigned world, const char *which)
{
    struct cairn_session_options o = {.size = sizeof o,
                                      .job = job,
                                      .world_size = world,
                                      .start_id = start,
                                      .arena_bytes = 4 << 20,
                                      .timeout_ms = 20000};
    uint64_t step = strcmp(which, "latest-finite") == 0 ? CAIRN_LATEST_FINITE : strtoull(which, NULL, 10);
    struct cairn_checkpoint_info info = {.size = sizeof info};
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_restore *restore = NULL;
    struct cairn_session *session = NULL;
    int c = cairn_session_open(&o, &session, &err);

    if (c == 0)
        c = cairn_restore_open(session, step, 20000, &restore, &err);
    if (c == 0)
        c = cairn_restore_info(restore, &info);
    if (c == 0)
        printf("opened %llu\n", (unsigned long long)info.step);
    else
        fail("failed", step, &err);
    cairn_restore_free(restore);
    cairn_session_close(session);
    return c < 0;
}

int main(int argc, char **argv)
{
    const char *job = NULL, *start = "s", *restored = NULL;
    int nan_rank = -1, flip_rank = -1;
    unsigned world = 1;
    uint64_t step = 1;

    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *value = argv[i + 1];
        if (strcmp(argv[i], "--job") == 0)
            job = value;
        else if (strcmp(argv[i], "--start-id") == 0)
            start = value;
        else if (strcmp(argv[i], "--world") == 0)
            world = (unsigned)atoi(value);
        else if (strcmp(argv[i], "--step") == 0)
            step = strtoull(value, NULL, 10);
        else if (strcmp(argv[i], "--nan") == 0)
            nan_rank = atoi(value);
        else if (strcmp(argv[i], "--flip") == 0)
            flip_rank = atoi(value);
        else if (strcmp(argv[i], "--restored") == 0)
            restored = value;
        else
            return 2;
    }
    if (!job || world < 1 || world > MAX_WORLD)
        return 2;
    return restored ? open_only(job, start, world, restored) : save(job, start, world, step, nan_rank, flip_rank);
}
