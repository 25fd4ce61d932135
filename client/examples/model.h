/* SPDX-License-Identifier: Apache-2.0 */
/* A small byte-level transformer: embeddings, blocks of causal self-attention and an MLP, written out forward and
 * backward. Its parameters are one array of floats with a table of named matrices over it, so that whoever owns the
 * memory decides where it lies. */
#ifndef CAIRN_EXAMPLES_MODEL_H
#define CAIRN_EXAMPLES_MODEL_H

#include <stddef.h>
#include <stdint.h>

enum {
    MODEL_VOCABULARY = 256, /* bytes */
    MODEL_CONTEXT = 64,     /* tokens of a sequence */
    MODEL_WIDTH = 192,
    MODEL_HEADS = 4,
    MODEL_LAYERS = 5,
    MODEL_INNER = 4 * MODEL_WIDTH, /* of the MLP */
    MODEL_LAYER_PARAMS = 12,
    MODEL_PARAMS = 2 + MODEL_LAYERS * MODEL_LAYER_PARAMS + 3,
};

struct model_param {
    char name[48];
    size_t rows, cols; /* cols 0: a vector of rows elements */
    size_t at, n;      /* first element in the array of all parameters, and how many */
};

struct model {
    struct model_param params[MODEL_PARAMS];
    size_t n; /* floats of all parameters */
};

void model_describe(struct model *m);
/* Draws the first weights. */
void model_init(const struct model *m, float *weights, uint64_t rng[4]);

struct model_pass; /* the activations of one sequence */
struct model_pass *model_pass_new(void);
void model_pass_free(struct model_pass *p);
/* Adds the gradient of the sequence's mean loss to gradient and returns the loss. tokens has MODEL_CONTEXT + 1 bytes:
 * each is predicted from those before it. */
float model_learn(struct model_pass *p, const struct model *m, const float *weights, float *gradient,
                  const uint8_t *tokens);

/* xoshiro256**: the state is four words that can be saved. */
void rng_seed(uint64_t rng[4], uint64_t seed);
uint64_t rng_next(uint64_t rng[4]);

#endif
