/* SPDX-License-Identifier: Apache-2.0 */
/* Forward and backward. Matrices are row-major; a row is a token. Reductions that the compiler may not reorder are
 * written over separate sums, so that it can use vectors without fast math. */
#include "model.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define T MODEL_CONTEXT
#define C MODEL_WIDTH
#define F MODEL_HIDDEN
#define V MODEL_VOCABULARY
#define HEADS MODEL_HEADS
#define PER_HEAD (C / HEADS)
#define LANES 8

struct norm_stat {
    float mean, rstd;
};

struct layer_pass {
    float *in, *norm1, *qkv, *attention, *mixed, *middle, *norm2, *up, *active;
    struct norm_stat *stat1, *stat2;
};

struct model_pass {
    const struct model_param *params; /* of the call under way */
    const float *weights;
    struct layer_pass layers[MODEL_LAYERS];
    float *last, *norm, *odds; /* odds: logits, then probabilities, then their gradient */
    struct norm_stat *stat;
    float *d_stream, *d_narrow, *d_wide; /* gradients: residual stream, rows of C, rows of the widest */
    float *turned;                       /* a weight matrix, transposed */
    float *memory;                       /* all of the above */
};

/* Hands out parts of the memory, or only counts them while there is none. */
static float *take(float *memory, size_t *at, size_t n)
{
    float *p = memory ? memory + *at : NULL;

    *at += n;
    return p;
}

static size_t divide(struct model_pass *p, float *memory, size_t rows)
{
    size_t at = 0;

    for (unsigned l = 0; l < MODEL_LAYERS; l++) {
        struct layer_pass *y = &p->layers[l];
        y->in = take(memory, &at, rows * C);
        y->norm1 = take(memory, &at, rows * C);
        y->qkv = take(memory, &at, rows * 3 * C);
        y->attention = take(memory, &at, rows * HEADS * T);
        y->mixed = take(memory, &at, rows * C);
        y->middle = take(memory, &at, rows * C);
        y->norm2 = take(memory, &at, rows * C);
        y->up = take(memory, &at, rows * F);
        y->active = take(memory, &at, rows * F);
        y->stat1 = (struct norm_stat *)take(memory, &at, rows * 2);
        y->stat2 = (struct norm_stat *)take(memory, &at, rows * 2);
    }
    p->last = take(memory, &at, rows * C);
    p->norm = take(memory, &at, rows * C);
    p->odds = take(memory, &at, rows * V);
    p->stat = (struct norm_stat *)take(memory, &at, rows * 2);
    p->d_stream = take(memory, &at, rows * C);
    p->d_narrow = take(memory, &at, rows * C);
    p->d_wide = take(memory, &at, rows * F);
    p->turned = take(memory, &at, F * C);
    return at;
}

struct model_pass *model_pass_new(void)
{
    struct model_pass *p = calloc(1, sizeof *p);
    size_t rows = T;

    if (!p)
        return NULL;
    p->memory = calloc(divide(p, NULL, rows), sizeof *p->memory);
    if (!p->memory) {
        free(p);
        return NULL;
    }
    divide(p, p->memory, rows);
    return p;
}

void model_pass_free(struct model_pass *pass)
{
    if (pass)
        free(pass->memory);
    free(pass);
}

/* ---- linear maps ----------------------------------------------------------------------------- */

/* c[i][j] = (add ? c[i][j] : 0) + sum over k of a[i * a_row + k * a_column] * b[k][j]; m is a multiple of 4, n of 8.
 * The sums of a 4 by 8 tile stay in registers. */
static void multiply(float *restrict c, const float *restrict a, size_t a_row, size_t a_column, const float *restrict b,
                     size_t m, size_t depth, size_t n, bool add)
{
    for (size_t i = 0; i < m; i += 4) {
        for (size_t j = 0; j < n; j += LANES) {
            float sum[4][LANES] = {{0}};
            for (size_t k = 0; k < depth; k++) {
                const float *from = a + i * a_row + k * a_column, *row = b + k * n + j;
                for (unsigned r = 0; r < 4; r++)
                    for (unsigned x = 0; x < LANES; x++)
                        sum[r][x] += from[r * a_row] * row[x];
            }
            for (unsigned r = 0; r < 4; r++) {
                float *to = c + (i + r) * n + j;
                for (unsigned x = 0; x < LANES; x++)
                    to[x] = add ? to[x] + sum[r][x] : sum[r][x];
            }
        }
    }
}

/* to = from * weight + bias */
static void linear(const struct model_pass *m, unsigned tensor, const float *from, size_t rows, float *to)
{
    const struct model_param *t = &m->params[tensor];
    const float *bias = m->weights + t[1].at;

    for (size_t i = 0; i < rows; i++)
        memcpy(to + i * t->cols, bias, t->cols * sizeof *to);
    multiply(to, from, t->rows, 1, m->weights + t->at, rows, t->rows, t->cols, true);
}

/* Adds to the gradients of weight and bias; writes d_from. */
static void linear_back(const struct model_pass *m, unsigned tensor, const float *from, const float *d_to, size_t rows,
                        float *d_from, float *gradient)
{
    const struct model_param *t = &m->params[tensor];
    const float *weight = m->weights + t->at;
    size_t in = t->rows, out = t->cols;
    float *turned = m->turned, *bias = gradient + t[1].at;

    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < out; j++)
            bias[j] += d_to[i * out + j];
    multiply(gradient + t->at, from, 1, in, d_to, in, rows, out, true);
    for (size_t i = 0; i < in; i++)
        for (size_t j = 0; j < out; j++)
            turned[j * in + i] = weight[i * out + j];
    multiply(d_from, d_to, out, 1, turned, rows, out, in, false);
}

/* ---- layer norm ------------------------------------------------------------------------------ */

static void norm(const struct model_pass *m, unsigned tensor, const float *from, size_t rows, float *to,
                 struct norm_stat *stat)
{
    const float *gain = m->weights + m->params[tensor].at, *bias = m->weights + m->params[tensor + 1].at;

    for (size_t i = 0; i < rows; i++, from += C, to += C) {
        float mean = 0, square = 0;
        for (unsigned j = 0; j < C; j++)
            mean += from[j];
        mean /= C;
        for (unsigned j = 0; j < C; j++)
            square += (from[j] - mean) * (from[j] - mean);
        stat[i] = (struct norm_stat){mean, 1 / sqrtf(square / C + 1e-5f)};
        for (unsigned j = 0; j < C; j++)
            to[j] = (from[j] - mean) * stat[i].rstd * gain[j] + bias[j];
    }
}

/* Adds to d_from: the residual stream's own gradient is there already. */
static void norm_back(const struct model_pass *m, unsigned tensor, const float *from, const struct norm_stat *stat,
                      const float *d_to, size_t rows, float *d_from, float *gradient)
{
    const float *gain = m->weights + m->params[tensor].at;
    float *d_gain = gradient + m->params[tensor].at, *d_bias = gradient + m->params[tensor + 1].at;

    for (size_t i = 0; i < rows; i++, from += C, d_to += C, d_from += C) {
        float rstd = stat[i].rstd, mean = stat[i].mean, sum = 0, along = 0;
        for (unsigned j = 0; j < C; j++) {
            float x = (from[j] - mean) * rstd, d = d_to[j] * gain[j];
            d_gain[j] += d_to[j] * x;
            d_bias[j] += d_to[j];
            sum += d;
            along += d * x;
        }
        for (unsigned j = 0; j < C; j++) {
            float x = (from[j] - mean) * rstd;
            d_from[j] += (d_to[j] * gain[j] - sum / C - x * along / C) * rstd;
        }
    }
}

/* ---- attention ------------------------------------------------------------------------------- */

static float dot(const float *a, const float *b)
{
    float sum[LANES] = {0}, all = 0;

    for (unsigned i = 0; i < PER_HEAD; i += LANES)
        for (unsigned x = 0; x < LANES; x++)
            sum[x] += a[i + x] * b[i + x];
    for (unsigned x = 0; x < LANES; x++)
        all += sum[x];
    return all;
}

static void softmax(float *x, size_t n)
{
    float top = x[0], sum = 0;

    for (size_t i = 1; i < n; i++)
        top = x[i] > top ? x[i] : top;
    for (size_t i = 0; i < n; i++)
        sum += x[i] = expf(x[i] - top);
    for (size_t i = 0; i < n; i++)
        x[i] /= sum;
}

/* One head of one sequence: qkv and mixed point at its columns in its first row. */
static void attend(const float *qkv, float *odds, float *mixed)
{
    const float scale = 1 / sqrtf(PER_HEAD);

    for (unsigned t = 0; t < T; t++, odds += T, mixed += C) {
        for (unsigned u = 0; u <= t; u++)
            odds[u] = dot(qkv + t * 3 * C, qkv + u * 3 * C + C) * scale;
        softmax(odds, t + 1);
        memset(mixed, 0, PER_HEAD * sizeof *mixed);
        for (unsigned u = 0; u <= t; u++)
            for (unsigned j = 0; j < PER_HEAD; j++)
                mixed[j] += odds[u] * qkv[u * 3 * C + 2 * C + j];
    }
}

/* Adds to d_qkv. */
static void attend_back(const float *qkv, const float *odds, const float *d_mixed, float *d_qkv)
{
    const float scale = 1 / sqrtf(PER_HEAD);

    for (unsigned t = 0; t < T; t++, odds += T, d_mixed += C) {
        float d_odds[T], sum = 0;
        for (unsigned u = 0; u <= t; u++) {
            d_odds[u] = dot(d_mixed, qkv + u * 3 * C + 2 * C);
            sum += d_odds[u] * odds[u];
            for (unsigned j = 0; j < PER_HEAD; j++)
                d_qkv[u * 3 * C + 2 * C + j] += odds[u] * d_mixed[j];
        }
        for (unsigned u = 0; u <= t; u++) {
            float d = odds[u] * (d_odds[u] - sum) * scale;
            for (unsigned j = 0; j < PER_HEAD; j++) {
                d_qkv[t * 3 * C + j] += d * qkv[u * 3 * C + C + j];
                d_qkv[u * 3 * C + C + j] += d * qkv[t * 3 * C + j];
            }
        }
    }
}

/* ---- the model ------------------------------------------------------------------------------- */

/* Pairs of bytes share rows by a hash; the first byte of a sequence has no neighbour. */
static unsigned pair_row(const uint8_t *tokens, unsigned i)
{
    unsigned before = i ? tokens[i - 1] : 0;

    return ((before << 8 | tokens[i]) * 0x9e3779b1u) >> 18;
}
_Static_assert(MODEL_PAIRS == 1 << (32 - 18), "pair_row gives other rows than there are");
_Static_assert(MODEL_HIDDEN >= 3 * MODEL_WIDTH && MODEL_HIDDEN >= MODEL_VOCABULARY, "d_wide is not the widest");

static void embed(const struct model_pass *m, const uint8_t *tokens, float *to)
{
    for (unsigned i = 0; i < T; i++, to += C) {
        const float *byte = m->weights + m->params[MODEL_BYTE].at + (size_t)tokens[i] * C;
        const float *pair = m->weights + m->params[MODEL_PAIR].at + (size_t)pair_row(tokens, i) * C;
        const float *position = m->weights + m->params[MODEL_POSITION].at + i * C;
        for (unsigned j = 0; j < C; j++)
            to[j] = byte[j] + pair[j] + position[j];
    }
}

static void embed_back(const struct model_pass *m, const uint8_t *tokens, const float *d, float *gradient)
{
    for (unsigned i = 0; i < T; i++, d += C) {
        float *byte = gradient + m->params[MODEL_BYTE].at + (size_t)tokens[i] * C;
        float *pair = gradient + m->params[MODEL_PAIR].at + (size_t)pair_row(tokens, i) * C;
        float *position = gradient + m->params[MODEL_POSITION].at + i * C;
        for (unsigned j = 0; j < C; j++) {
            byte[j] += d[j];
            pair[j] += d[j];
            position[j] += d[j];
        }
    }
}

static void layer_forward(const struct model_pass *m, unsigned l, float *out)
{
    const struct layer_pass *p = &m->layers[l];
    unsigned first = MODEL_FIRST_LAYER + l * LAYER_TENSORS;
    size_t rows = T;

    norm(m, first + LAYER_NORM1, p->in, rows, p->norm1, p->stat1);
    linear(m, first + LAYER_QKV, p->norm1, rows, p->qkv);
    for (unsigned h = 0; h < HEADS; h++)
        attend(p->qkv + h * PER_HEAD, p->attention + (size_t)h * T * T, p->mixed + h * PER_HEAD);
    linear(m, first + LAYER_OUT, p->mixed, rows, p->middle);
    for (size_t i = 0; i < rows * C; i++)
        p->middle[i] += p->in[i];
    norm(m, first + LAYER_NORM2, p->middle, rows, p->norm2, p->stat2);
    linear(m, first + LAYER_UP, p->norm2, rows, p->up);
    for (size_t i = 0; i < rows * F; i++)
        p->active[i] = p->up[i] / (1 + expf(-p->up[i]));
    linear(m, first + LAYER_DOWN, p->active, rows, out);
    for (size_t i = 0; i < rows * C; i++)
        out[i] += p->middle[i];
}

/* d_stream: the gradient of the layer's output, then of its input. */
static void layer_backward(const struct model_pass *m, unsigned l, float *gradient)
{
    const struct layer_pass *p = &m->layers[l];
    float *stream = m->d_stream, *narrow = m->d_narrow, *wide = m->d_wide;
    unsigned first = MODEL_FIRST_LAYER + l * LAYER_TENSORS;
    size_t rows = T;

    linear_back(m, first + LAYER_DOWN, p->active, stream, rows, wide, gradient);
    for (size_t i = 0; i < rows * F; i++) {
        float s = 1 / (1 + expf(-p->up[i]));
        wide[i] *= s * (1 + p->up[i] * (1 - s));
    }
    linear_back(m, first + LAYER_UP, p->norm2, wide, rows, narrow, gradient);
    norm_back(m, first + LAYER_NORM2, p->middle, p->stat2, narrow, rows, stream, gradient);
    linear_back(m, first + LAYER_OUT, p->mixed, stream, rows, narrow, gradient);
    memset(wide, 0, rows * 3 * C * sizeof *wide);
    for (unsigned h = 0; h < HEADS; h++)
        attend_back(p->qkv + h * PER_HEAD, p->attention + (size_t)h * T * T, narrow + h * PER_HEAD,
                    wide + h * PER_HEAD);
    linear_back(m, first + LAYER_QKV, p->norm1, wide, rows, narrow, gradient);
    norm_back(m, first + LAYER_NORM1, p->in, p->stat1, narrow, rows, stream, gradient);
}

static float forward(struct model_pass *p, const uint8_t *tokens)
{
    double loss = 0;

    embed(p, tokens, p->layers[0].in);
    for (unsigned l = 0; l < MODEL_LAYERS; l++)
        layer_forward(p, l, l + 1 < MODEL_LAYERS ? p->layers[l + 1].in : p->last);
    norm(p, MODEL_NORM, p->last, T, p->norm, p->stat);
    linear(p, MODEL_HEAD, p->norm, T, p->odds);
    for (unsigned i = 0; i < T; i++) {
        softmax(p->odds + i * V, V);
        loss -= log((double)p->odds[i * V + tokens[i + 1]] + 1e-30);
    }
    return (float)(loss / T);
}

static void backward(struct model_pass *p, const uint8_t *tokens, float *gradient)
{
    for (unsigned i = 0; i < T; i++) {
        p->odds[i * V + tokens[i + 1]] -= 1;
        for (unsigned j = 0; j < V; j++)
            p->odds[i * V + j] /= T;
    }
    linear_back(p, MODEL_HEAD, p->norm, p->odds, T, p->d_narrow, gradient);
    memset(p->d_stream, 0, (size_t)T * C * sizeof *p->d_stream);
    norm_back(p, MODEL_NORM, p->last, p->stat, p->d_narrow, T, p->d_stream, gradient);
    for (unsigned l = MODEL_LAYERS; l-- > 0;)
        layer_backward(p, l, gradient);
    embed_back(p, tokens, p->d_stream, gradient);
}

float model_learn(struct model_pass *pass, const struct model *m, const float *weights, float *gradient,
                  const uint8_t *tokens)
{
    pass->params = m->params;
    pass->weights = weights;
    float loss = forward(pass, tokens);
    backward(pass, tokens, gradient);
    return loss;
}
