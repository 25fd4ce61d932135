/* SPDX-License-Identifier: Apache-2.0 */
/* The training example's model: its hand-written gradient against differences of its loss, and the same bits twice. */
#include "client/examples/model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

struct fixture {
    struct model model;
    struct model_pass *pass;
    float *weights, *gradient, *scratch;
    uint8_t tokens[MODEL_CONTEXT + 1];
};

static int start(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    uint64_t rng[4];

    rng_seed(rng, 7);
    model_describe(&f->model);
    f->pass = model_pass_new();
    f->weights = calloc(f->model.n, sizeof(float));
    f->gradient = calloc(f->model.n, sizeof(float));
    f->scratch = calloc(f->model.n, sizeof(float));
    model_init(&f->model, f->weights, rng);
    for (size_t i = 0; i < f->model.n;
         i++) /* away from the beginning, where attention is still the same to everything */
        f->weights[i] *= 4;
    for (size_t i = 0; i < sizeof f->tokens; i++)
        f->tokens[i] = (uint8_t)(32 + rng_next(rng) % 90);
    *state = f;
    return 0;
}

static int stop(void **state)
{
    struct fixture *f = *state;

    model_pass_free(f->pass);
    free(f->weights);
    free(f->gradient);
    free(f->scratch);
    free(f);
    return 0;
}

/* The derivative of the loss by one weight, from its values on both sides. */
static double difference(struct fixture *f, size_t at, float h)
{
    float keep = f->weights[at];

    f->weights[at] = keep + h;
    double above = (double)model_learn(f->pass, &f->model, f->weights, f->scratch, f->tokens);
    f->weights[at] = keep - h;
    double below = (double)model_learn(f->pass, &f->model, f->weights, f->scratch, f->tokens);
    f->weights[at] = keep;
    return (above - below) / (2 * (double)h);
}

/* The weight with the largest derivative among those of a parameter that leave the remainder `part` of PROBES. */
#define PROBES 4
static size_t probe(const struct fixture *f, const struct model_param *p, size_t part)
{
    size_t best = p->at + part;

    for (size_t i = p->at + part; i < p->at + p->n; i += PROBES)
        if (fabsf(f->gradient[i]) > fabsf(f->gradient[best]))
            best = i;
    return best;
}

/* Some weights of every parameter, where the loss is steep enough to be told from rounding. Catches any term of the
 * backward pass that is wrong or missing. */
static void test_gradient(void **state)
{
    struct fixture *f = *state;

    model_learn(f->pass, &f->model, f->weights, f->gradient, f->tokens);
    for (int i = 0; i < MODEL_PARAMS; i++) {
        const struct model_param *p = &f->model.params[i];
        double wrong = 0, size = 0;
        for (size_t part = 0; part < PROBES; part++) {
            size_t at = probe(f, p, part);
            double g = (double)f->gradient[at];
            double d = difference(f, at, (float)fmin(0.01, 2e-3 / fabs(g)));
            wrong += (d - g) * (d - g);
            size += g * g;
        }
        if (sqrt(wrong) > 0.01 * sqrt(size))
            fail_msg("%s: the gradient is wrong by %.1f%%", p->name, 100 * sqrt(wrong / size));
    }
}

/* Catches anything that depends on what memory held before, or on time. */
static void test_same_bits(void **state)
{
    struct fixture *f = *state;
    float first = model_learn(f->pass, &f->model, f->weights, f->gradient, f->tokens);
    float second = model_learn(f->pass, &f->model, f->weights, f->scratch, f->tokens);

    assert_memory_equal(&first, &second, sizeof first);
    assert_memory_equal(f->gradient, f->scratch, f->model.n * sizeof(float));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_gradient, start, stop),
        cmocka_unit_test_setup_teardown(test_same_bits, start, stop),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
