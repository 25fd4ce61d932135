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

static float loss_at(struct fixture *f, const struct model_param *p, const float *keep, float along)
{
    for (size_t i = 0; i < p->n; i++)
        f->weights[p->at + i] = keep[i] + along * f->gradient[p->at + i];
    return model_learn(f->pass, &f->model, f->weights, f->scratch, f->tokens);
}

/* A step of h along the gradient must change the loss by h times its squared length. Catches any wrong term of the
 * backward pass: each parameter is checked by itself. */
static void test_gradient(void **state)
{
    struct fixture *f = *state;

    model_learn(f->pass, &f->model, f->weights, f->gradient, f->tokens);
    for (int i = 0; i < MODEL_PARAMS; i++) {
        const struct model_param *p = &f->model.params[i];
        float *keep = malloc(p->n * sizeof *keep);
        double squares = 0;
        for (size_t k = 0; k < p->n; k++)
            squares += (double)f->gradient[p->at + k] * (double)f->gradient[p->at + k];
        memcpy(keep, f->weights + p->at, p->n * sizeof *keep);
        float h = (float)(0.02 / sqrt(squares + 1e-12));
        double change = (double)loss_at(f, p, keep, h) - (double)loss_at(f, p, keep, -h);
        memcpy(f->weights + p->at, keep, p->n * sizeof *keep);
        free(keep);
        if (fabs(change - 2 * (double)h * squares) > 0.1 * 2 * (double)h * squares + 2e-6)
            fail_msg("%s: the loss changed by %g, the gradient says %g", p->name, change, 2 * (double)h * squares);
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
