/* SPDX-License-Identifier: Apache-2.0 */
#include "model.h"

#include "matrix.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { T = MODEL_CONTEXT, D = MODEL_WIDTH, H = MODEL_HEADS, E = D / H, F = MODEL_INNER, V = MODEL_VOCABULARY };

/* The order of the parameters; those of layer l come after PARAM_LAYERS + l * MODEL_LAYER_PARAMS. */
enum { TOKENS, PLACES, PARAM_LAYERS };
enum { NORM1, NORM1_BIAS, QKV, QKV_BIAS, PROJECT, PROJECT_BIAS, NORM2, NORM2_BIAS, UP, UP_BIAS, DOWN, DOWN_BIAS };
enum { NORM_OUT = PARAM_LAYERS + MODEL_LAYERS * MODEL_LAYER_PARAMS, NORM_OUT_BIAS, HEAD };

/* What one layer keeps for its backward pass. */
struct layer_pass {
    float in[T * D], normed1[T * D], mean1[T], scale1[T];
    float qkv[T * 3 * D], weight[H][T * T], mixed[T * D];
    float mid[T * D], normed2[T * D], mean2[T], scale2[T];
    float up[T * F], active[T * F];
};
struct model_pass {
    struct layer_pass layers[MODEL_LAYERS];
    float out[T * D], normed[T * D], mean[T], scale[T];
    float logits[T * V];                             /* then their gradient */
    float d[T * D], d_normed[T * D];                 /* gradient of the stream between blocks, and of a norm's output */
    float d_wide[T * F], d_qkv[T * 3 * D], d_row[T]; /* of what lies inside a block */
};

/* ---- parameters ------------------------------------------------------------------------------ */

static void describe(struct model *m, int i, size_t rows, size_t cols, const char *layer, const char *name)
{
    struct model_param *p = &m->params[i];

    snprintf(p->name, sizeof p->name, "%s%s", layer, name);
    p->rows = rows;
    p->cols = cols;
    p->at = m->n;
    p->n = cols ? rows * cols : rows;
    m->n += p->n;
}

static void describe_layer(struct model *m, int l)
{
    static const struct {
        const char *name;
        size_t rows, cols;
    } parts[MODEL_LAYER_PARAMS] = {
        [NORM1] = {"norm1.weight", D, 0},
        [NORM1_BIAS] = {"norm1.bias", D, 0},
        [QKV] = {"attention.qkv", D, 3 * D},
        [QKV_BIAS] = {"attention.qkv_bias", 3 * D, 0},
        [PROJECT] = {"attention.project", D, D},
        [PROJECT_BIAS] = {"attention.project_bias", D, 0},
        [NORM2] = {"norm2.weight", D, 0},
        [NORM2_BIAS] = {"norm2.bias", D, 0},
        [UP] = {"mlp.up", D, F},
        [UP_BIAS] = {"mlp.up_bias", F, 0},
        [DOWN] = {"mlp.down", F, D},
        [DOWN_BIAS] = {"mlp.down_bias", D, 0},
    };
    char prefix[24];

    snprintf(prefix, sizeof prefix, "layer.%d.", l);
    for (int i = 0; i < MODEL_LAYER_PARAMS; i++)
        describe(m, PARAM_LAYERS + l * MODEL_LAYER_PARAMS + i, parts[i].rows, parts[i].cols, prefix, parts[i].name);
}

void model_describe(struct model *m)
{
    m->n = 0;
    describe(m, TOKENS, V, D, "", "embedding.tokens");
    describe(m, PLACES, T, D, "", "embedding.places");
    for (int l = 0; l < MODEL_LAYERS; l++)
        describe_layer(m, l);
    describe(m, NORM_OUT, D, 0, "", "norm.weight");
    describe(m, NORM_OUT_BIAS, D, 0, "", "norm.bias");
    describe(m, HEAD, D, V, "", "head");
}

/* Matrices: near normal, of deviation 0.02; norms: ones; biases: zeros. */
void model_init(const struct model *m, float *weights, uint64_t rng[4])
{
    for (int i = 0; i < MODEL_PARAMS; i++) {
        const struct model_param *p = &m->params[i];
        float *w = weights + p->at;
        for (size_t j = 0; j < p->n; j++) {
            float s = 0;
            for (int draw = 0; p->cols && draw < 4; draw++)
                s += (float)(rng_next(rng) >> 40) / (float)(1 << 24) - 0.5f;
            w[j] = p->cols ? s * 0.0346f : strstr(p->name, ".weight") ? 1.0f : 0.0f;
        }
    }
}

/* ---- random numbers -------------------------------------------------------------------------- */

static uint64_t rotate(uint64_t x, int by)
{
    return x << by | x >> (64 - by);
}

void rng_seed(uint64_t rng[4], uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        uint64_t z = seed += 0x9e3779b97f4a7c15ull;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ z >> 27) * 0x94d049bb133111ebull;
        rng[i] = z ^ z >> 31;
    }
}

uint64_t rng_next(uint64_t rng[4])
{
    uint64_t result = rotate(rng[1] * 5, 7) * 9, t = rng[1] << 17;

    rng[2] ^= rng[0];
    rng[3] ^= rng[1];
    rng[1] ^= rng[2];
    rng[0] ^= rng[3];
    rng[2] ^= t;
    rng[3] = rotate(rng[3], 45);
    return result;
}

/* ---- the parts of a block, forward and backward ---------------------------------------------- */

static void linear(float *y, const float *x, const float *w, const float *bias, size_t in, size_t out)
{
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < out; i++)
            y[t * out + i] = bias ? bias[i] : 0;
    matrix_mul(y, x, in, 1, w, T, in, out);
}

/* dx is replaced; dw and dbias are added to. */
static void linear_back(float *dx, float *dw, float *dbias, const float *dy, const float *x, const float *w, size_t in,
                        size_t out)
{
    memset(dx, 0, T * in * sizeof *dx);
    matrix_mul_transposed(dx, dy, w, T, out, in);
    matrix_mul(dw, x, 1, in, dy, in, T, out);
    for (size_t t = 0; t < T && dbias; t++)
        for (size_t i = 0; i < out; i++)
            dbias[i] += dy[t * out + i];
}

static void norm(float *y, float *mean, float *scale, const float *x, const float *weight, const float *bias)
{
    for (size_t t = 0; t < T; t++, x += D, y += D) {
        float sum = 0, squares = 0;
        for (size_t i = 0; i < D; i++)
            sum += x[i];
        mean[t] = sum / D;
        for (size_t i = 0; i < D; i++)
            squares += (x[i] - mean[t]) * (x[i] - mean[t]);
        scale[t] = 1 / sqrtf(squares / D + 1e-5f);
        for (size_t i = 0; i < D; i++)
            y[i] = (x[i] - mean[t]) * scale[t] * weight[i] + bias[i];
    }
}

/* dx, dweight and dbias are added to. */
static void norm_back(float *dx, float *dweight, float *dbias, const float *dy, const float *x, const float *weight,
                      const float *mean, const float *scale)
{
    for (size_t t = 0; t < T; t++, x += D, dx += D, dy += D) {
        float sum = 0, sum_x = 0;
        for (size_t i = 0; i < D; i++) {
            float centred = (x[i] - mean[t]) * scale[t], d = dy[i] * weight[i];
            sum += d;
            sum_x += d * centred;
            dweight[i] += dy[i] * centred;
            dbias[i] += dy[i];
        }
        for (size_t i = 0; i < D; i++) {
            float centred = (x[i] - mean[t]) * scale[t];
            dx[i] += (dy[i] * weight[i] - sum / D - centred * sum_x / D) * scale[t];
        }
    }
}

static const float *query_of(const float *qkv, size_t t, size_t h)
{
    return qkv + t * 3 * D + h * E;
}

/* What token t takes from the tokens up to it, by one head. */
static void attend_row(float *mixed, float *weight, const float *qkv, size_t t, size_t h)
{
    const float *q = query_of(qkv, t, h);
    float most = -INFINITY, sum = 0;

    for (size_t s = 0; s <= t; s++) {
        const float *k = query_of(qkv, s, h) + D;
        float dot = 0;
        for (size_t i = 0; i < E; i++)
            dot += q[i] * k[i];
        weight[s] = dot / sqrtf(E);
        most = fmaxf(most, weight[s]);
    }
    for (size_t s = 0; s <= t; s++)
        sum += weight[s] = expf(weight[s] - most);
    memset(mixed, 0, E * sizeof *mixed);
    for (size_t s = 0; s <= t; s++) {
        const float *v = query_of(qkv, s, h) + 2 * D;
        weight[s] /= sum;
        for (size_t i = 0; i < E; i++)
            mixed[i] += weight[s] * v[i];
    }
}

static void attend(struct layer_pass *l)
{
    for (size_t h = 0; h < H; h++)
        for (size_t t = 0; t < T; t++)
            attend_row(l->mixed + t * D + h * E, l->weight[h] + t * T, l->qkv, t, h);
}

static void attend_row_back(float *d_qkv, float *d_weight, const float *d_mixed, const float *weight, const float *qkv,
                            size_t t, size_t h)
{
    const float *q = query_of(qkv, t, h);
    float *dq = d_qkv + t * 3 * D + h * E, sum = 0;

    for (size_t s = 0; s <= t; s++) {
        const float *v = query_of(qkv, s, h) + 2 * D;
        float *dv = d_qkv + s * 3 * D + h * E + 2 * D, dot = 0;
        for (size_t i = 0; i < E; i++) {
            dot += d_mixed[i] * v[i];
            dv[i] += d_mixed[i] * weight[s];
        }
        d_weight[s] = dot;
        sum += dot * weight[s];
    }
    for (size_t s = 0; s <= t; s++) {
        const float *k = query_of(qkv, s, h) + D;
        float *dk = d_qkv + s * 3 * D + h * E + D, d = weight[s] * (d_weight[s] - sum) / sqrtf(E);
        for (size_t i = 0; i < E; i++) {
            dq[i] += d * k[i];
            dk[i] += d * q[i];
        }
    }
}

static void attend_back(struct model_pass *p, const struct layer_pass *l, const float *d_mixed)
{
    memset(p->d_qkv, 0, sizeof p->d_qkv);
    for (size_t h = 0; h < H; h++)
        for (size_t t = 0; t < T; t++)
            attend_row_back(p->d_qkv, p->d_row, d_mixed + t * D + h * E, l->weight[h] + t * T, l->qkv, t, h);
}

/* GELU, by its tanh form. */
static void activate(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = 0.5f * x[i] * (1 + tanhf(0.7978845608f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
}

static void activate_back(float *d, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float th = tanhf(0.7978845608f * (x[i] + 0.044715f * x[i] * x[i] * x[i]));
        float inner = 0.7978845608f * (1 + 3 * 0.044715f * x[i] * x[i]);
        d[i] *= 0.5f * (1 + th) + 0.5f * x[i] * (1 - th * th) * inner;
    }
}

/* ---- blocks ---------------------------------------------------------------------------------- */

struct weights {
    const struct model *model;
    const float *w;
    float *d;
};

static const float *of(const struct weights *w, int param)
{
    return w->w + w->model->params[param].at;
}

static float *grad(const struct weights *w, int param)
{
    return w->d + w->model->params[param].at;
}

static void block(struct layer_pass *l, float *out, const struct weights *w, int base)
{
    norm(l->normed1, l->mean1, l->scale1, l->in, of(w, base + NORM1), of(w, base + NORM1_BIAS));
    linear(l->qkv, l->normed1, of(w, base + QKV), of(w, base + QKV_BIAS), D, 3 * D);
    attend(l);
    linear(l->mid, l->mixed, of(w, base + PROJECT), of(w, base + PROJECT_BIAS), D, D);
    for (size_t i = 0; i < T * D; i++)
        l->mid[i] += l->in[i];
    norm(l->normed2, l->mean2, l->scale2, l->mid, of(w, base + NORM2), of(w, base + NORM2_BIAS));
    linear(l->up, l->normed2, of(w, base + UP), of(w, base + UP_BIAS), D, F);
    activate(l->active, l->up, T * F);
    linear(out, l->active, of(w, base + DOWN), of(w, base + DOWN_BIAS), F, D);
    for (size_t i = 0; i < T * D; i++)
        out[i] += l->mid[i];
}

/* One linear map of the block at base, backward: its weights and, after them, its bias. */
static void map_back(float *dx, const struct weights *w, int param, const float *dy, const float *x)
{
    const struct model_param *p = &w->model->params[param];

    linear_back(dx, grad(w, param), grad(w, param + 1), dy, x, of(w, param), p->rows, p->cols);
}

/* p->d holds the gradient of the block's output and becomes that of its input: the residual part is there already. */
static void block_back(struct model_pass *p, const struct layer_pass *l, const struct weights *w, int base)
{
    int norm1 = base + NORM1, norm2 = base + NORM2;

    map_back(p->d_wide, w, base + DOWN, p->d, l->active);
    activate_back(p->d_wide, l->up, T * F);
    map_back(p->d_normed, w, base + UP, p->d_wide, l->normed2);
    norm_back(p->d, grad(w, norm2), grad(w, norm2 + 1), p->d_normed, l->mid, of(w, norm2), l->mean2, l->scale2);
    map_back(p->d_normed, w, base + PROJECT, p->d, l->mixed);
    attend_back(p, l, p->d_normed);
    map_back(p->d_normed, w, base + QKV, p->d_qkv, l->normed1);
    norm_back(p->d, grad(w, norm1), grad(w, norm1 + 1), p->d_normed, l->in, of(w, norm1), l->mean1, l->scale1);
}

/* ---- a sequence ------------------------------------------------------------------------------ */

static void embed(float *x, const struct weights *w, const uint8_t *tokens)
{
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < D; i++)
            x[t * D + i] = of(w, TOKENS)[tokens[t] * D + i] + of(w, PLACES)[t * D + i];
}

static void embed_back(const struct weights *w, const float *d, const uint8_t *tokens)
{
    for (size_t t = 0; t < T; t++) {
        for (size_t i = 0; i < D; i++) {
            grad(w, TOKENS)[tokens[t] * D + i] += d[t * D + i];
            grad(w, PLACES)[t * D + i] += d[t * D + i];
        }
    }
}

/* Cross entropy against the next byte; the logits become their gradient. */
static float judge(float *logits, const uint8_t *next)
{
    float loss = 0;

    for (size_t t = 0; t < T; t++, logits += V) {
        float most = logits[0], sum = 0;
        for (size_t i = 1; i < V; i++)
            most = fmaxf(most, logits[i]);
        for (size_t i = 0; i < V; i++)
            sum += logits[i] = expf(logits[i] - most);
        for (size_t i = 0; i < V; i++)
            logits[i] /= sum * T;
        loss -= logf(fmaxf(logits[next[t]] * T, 1e-30f)) / T;
        logits[next[t]] -= 1.0f / T;
    }
    return loss;
}

float model_learn(struct model_pass *p, const struct model *m, const float *weights, float *gradient,
                  const uint8_t *tokens)
{
    struct weights w = {m, weights, gradient};
    float loss;

    embed(p->layers[0].in, &w, tokens);
    for (int l = 0; l < MODEL_LAYERS; l++) {
        float *out = l + 1 < MODEL_LAYERS ? p->layers[l + 1].in : p->out;
        block(&p->layers[l], out, &w, PARAM_LAYERS + l * MODEL_LAYER_PARAMS);
    }
    norm(p->normed, p->mean, p->scale, p->out, of(&w, NORM_OUT), of(&w, NORM_OUT_BIAS));
    linear(p->logits, p->normed, of(&w, HEAD), NULL, D, V);
    loss = judge(p->logits, tokens + 1);

    linear_back(p->d_normed, grad(&w, HEAD), NULL, p->logits, p->normed, of(&w, HEAD), D, V);
    memset(p->d, 0, sizeof p->d);
    norm_back(p->d, grad(&w, NORM_OUT), grad(&w, NORM_OUT_BIAS), p->d_normed, p->out, of(&w, NORM_OUT), p->mean,
              p->scale);
    for (int l = MODEL_LAYERS; l-- > 0;)
        block_back(p, &p->layers[l], &w, PARAM_LAYERS + l * MODEL_LAYER_PARAMS);
    embed_back(&w, p->d, tokens);
    return loss;
}

struct model_pass *model_pass_new(void)
{
    return calloc(1, sizeof(struct model_pass));
}

void model_pass_free(struct model_pass *p)
{
    free(p);
}
