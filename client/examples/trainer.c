/* SPDX-License-Identifier: Apache-2.0 */
#include "trainer.h"

#include <math.h>
#include <string.h>
#include <time.h>

static size_t aligned(size_t bytes)
{
    return (bytes + 4095) & ~(size_t)4095;
}

size_t trainer_shared_bytes(const struct model *m, uint32_t ranks)
{
    return (3 + ranks) * aligned(m->n * sizeof(float)) + aligned(m->n * sizeof(uint16_t)) + 4096;
}

void trainer_place(struct trainer *t, struct crew *crew)
{
    size_t floats = aligned(t->model.n * sizeof(float));
    char *at = crew->shared;

    t->crew = crew;
    t->weights = (float *)(void *)at;
    t->mean = (float *)(void *)(at + floats);
    t->variance = (float *)(void *)(at + 2 * floats);
    for (uint32_t r = 0; r < crew->ranks; r++)
        t->gradients[r] = (float *)(void *)(at + (3 + r) * floats);
    t->half = (uint16_t *)(void *)(at + (3 + crew->ranks) * floats);
    t->state_bytes = t->model.n * (3 * sizeof(float) + sizeof(uint16_t)) + sizeof t->progress;
}

size_t trainer_rows(const struct trainer *t, const struct model_param *p, size_t *ret_first)
{
    *ret_first = p->rows * t->rank / t->crew->ranks;
    return p->rows * (t->rank + 1) / t->crew->ranks - *ret_first;
}

/* Rounded to nearest, ties to even. */
static uint16_t to_bfloat16(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* The ranks' gradients are added in the order of the ranks: the sum has the same bits whoever came first. */
static void update_range(struct trainer *t, size_t first, size_t n, float rate, float correct_mean,
                         float correct_variance)
{
    uint32_t ranks = t->crew->ranks;

    for (size_t i = first; i < first + n; i++) {
        float g = t->gradients[0][i];
        for (uint32_t r = 1; r < ranks; r++)
            g += t->gradients[r][i];
        g /= (float)ranks;
        t->mean[i] = 0.9f * t->mean[i] + 0.1f * g;
        t->variance[i] = 0.98f * t->variance[i] + 0.02f * g * g;
        t->weights[i] -= rate * t->mean[i] * correct_mean / (sqrtf(t->variance[i] * correct_variance) + 1e-8f);
        t->half[i] = to_bfloat16(t->weights[i]);
    }
}

void trainer_update(struct trainer *t)
{
    float step = (float)t->progress.step, rate = 1e-3f * fminf(1, step / 20);
    float correct_mean = 1 / (1 - powf(0.9f, step)), correct_variance = 1 / (1 - powf(0.98f, step));

    for (int i = 0; i < MODEL_PARAMS; i++) {
        const struct model_param *p = &t->model.params[i];
        size_t first, rows = trainer_rows(t, p, &first), cols = p->cols ? p->cols : 1;
        update_range(t, p->at + first * cols, rows * cols, rate, correct_mean, correct_variance);
    }
}

double seconds_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}
