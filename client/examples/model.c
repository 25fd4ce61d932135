/* SPDX-License-Identifier: Apache-2.0 */
#include "model.h"

#include <stdio.h>
#include <string.h>

#define INITIAL_SCALE 0.02f

static size_t place(struct model *m, unsigned i, size_t at, const char *name, size_t rows, size_t columns)
{
    struct model_param *t = &m->params[i];

    snprintf(t->name, sizeof t->name, "%s", name);
    t->rows = rows;
    t->cols = columns;
    t->at = at;
    t->n = rows * (columns ? columns : 1);
    return at + t->n;
}

/* A map or a norm (no rows) and its bias. */
static size_t place_pair(struct model *m, unsigned i, size_t at, const char *name, size_t rows, size_t columns)
{
    char full[40];

    snprintf(full, sizeof full, "%s.weight", name);
    at = place(m, i, at, full, rows ? rows : columns, rows ? columns : 0);
    snprintf(full, sizeof full, "%s.bias", name);
    return place(m, i + 1, at, full, columns, 0);
}

void model_describe(struct model *m)
{
    static const struct {
        const char *name;
        unsigned i, rows, columns;
    } parts[] = {
        {"attention_norm", LAYER_NORM1, 0, MODEL_WIDTH},
        {"attention.qkv", LAYER_QKV, MODEL_WIDTH, 3 * MODEL_WIDTH},
        {"attention.out", LAYER_OUT, MODEL_WIDTH, MODEL_WIDTH},
        {"mlp_norm", LAYER_NORM2, 0, MODEL_WIDTH},
        {"mlp.up", LAYER_UP, MODEL_WIDTH, MODEL_HIDDEN},
        {"mlp.down", LAYER_DOWN, MODEL_HIDDEN, MODEL_WIDTH},
    };
    size_t at = place(m, MODEL_BYTE, 0, "embedding.byte", MODEL_VOCABULARY, MODEL_WIDTH);
    at = place(m, MODEL_PAIR, at, "embedding.pair", MODEL_PAIRS, MODEL_WIDTH);
    at = place(m, MODEL_POSITION, at, "embedding.position", MODEL_CONTEXT, MODEL_WIDTH);

    for (unsigned l = 0; l < MODEL_LAYERS; l++) {
        for (size_t p = 0; p < sizeof parts / sizeof parts[0]; p++) {
            char name[32];
            snprintf(name, sizeof name, "layers.%u.%s", l, parts[p].name);
            at = place_pair(m, MODEL_FIRST_LAYER + l * LAYER_TENSORS + parts[p].i, at, name, parts[p].rows,
                            parts[p].columns);
        }
    }
    at = place_pair(m, MODEL_NORM, at, "norm", 0, MODEL_WIDTH);
    m->n = place_pair(m, MODEL_HEAD, at, "head", MODEL_WIDTH, MODEL_VOCABULARY);
}

/* splitmix64, to fill the generator's state from one number */
static uint64_t mix(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ull;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

void rng_seed(uint64_t state[4], uint64_t seed)
{
    for (int i = 0; i < 4; i++)
        state[i] = mix(&seed);
}

/* xoshiro256** (Blackman and Vigna 2018) */
uint64_t rng_next(uint64_t s[4])
{
    uint64_t x = s[1] * 5, result = (x << 7 | x >> 57) * 9, t = s[1] << 17;

    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = s[3] << 45 | s[3] >> 19;
    return result;
}

/* The sum of four uniform numbers is near enough to a normal one. */
static float normal(uint64_t r)
{
    float s = (float)(r & 0xffff) + (float)(r >> 16 & 0xffff) + (float)(r >> 32 & 0xffff) + (float)(r >> 48);

    return (s - 131070.0f) / 37837.0f;
}

static bool is_gain(const struct model_param *p)
{
    size_t len = strlen(p->name);

    return p->cols == 0 && len >= 6 && strcmp(p->name + len - 6, "weight") == 0;
}

void model_init(const struct model *m, float *weights, uint64_t rng[4])
{
    for (int i = 0; i < MODEL_PARAMS; i++) {
        const struct model_param *p = &m->params[i];
        for (size_t k = 0; k < p->n; k++)
            weights[p->at + k] = p->cols ? normal(rng_next(rng)) * INITIAL_SCALE : is_gain(p) ? 1 : 0;
    }
}
