/* SPDX-License-Identifier: Apache-2.0 */
/* A small language model over bytes: embeddings of bytes, of pairs of bytes (hashed) and of positions, two blocks of
 * causal self-attention and MLP behind layer norms, and an output head. Plain loops in a fixed order, one thread, no
 * fast math: the same inputs give the same bits in every run. */
#ifndef CAIRN_EXAMPLES_MODEL_H
#define CAIRN_EXAMPLES_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MODEL_VOCABULARY 256
#define MODEL_PAIRS 16384 /* rows of the hashed embedding of pairs; most of the parameters */
#define MODEL_CONTEXT 64  /* bytes of one sequence; its targets are one byte further */
#define MODEL_WIDTH 128
#define MODEL_HIDDEN 512
#define MODEL_HEADS 4
#define MODEL_LAYERS 2

/* Indices of parameters. A linear map's or a norm's bias follows it. */
enum { MODEL_BYTE, MODEL_PAIR, MODEL_POSITION, MODEL_FIRST_LAYER };
enum {
    LAYER_NORM1 = 0,
    LAYER_QKV = 2,
    LAYER_OUT = 4,
    LAYER_NORM2 = 6,
    LAYER_UP = 8,
    LAYER_DOWN = 10,
    LAYER_TENSORS = 12,
};
enum {
    MODEL_NORM = MODEL_FIRST_LAYER + MODEL_LAYERS * LAYER_TENSORS,
    MODEL_HEAD = MODEL_NORM + 2,
    MODEL_PARAMS = MODEL_HEAD + 2,
};

struct model_param {
    char name[40];
    size_t rows, cols; /* cols 0: a vector */
    size_t at, n;      /* its place in arrays of all parameters, in elements */
};
struct model {
    struct model_param params[MODEL_PARAMS];
    size_t n; /* of all parameters */
};
void model_describe(struct model *m);
void model_init(const struct model *m, float *weights, uint64_t rng[4]);

struct model_pass; /* room for one sequence's way forth and back */
struct model_pass *model_pass_new(void);
void model_pass_free(struct model_pass *pass); /* NULL allowed */
/* Adds the gradient of the mean loss over MODEL_CONTEXT predictions; tokens has one byte more. Returns that loss, in
 * nats. */
float model_learn(struct model_pass *pass, const struct model *m, const float *weights, float *gradient,
                  const uint8_t *tokens);

void rng_seed(uint64_t state[4], uint64_t seed);
uint64_t rng_next(uint64_t state[4]);

#endif
