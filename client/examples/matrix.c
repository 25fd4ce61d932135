/* SPDX-License-Identifier: Apache-2.0 */
#include "matrix.h"

#include <string.h>

typedef float v4 __attribute__((vector_size(16)));

static inline v4 load(const float *p)
{
    v4 v;

    memcpy(&v, p, sizeof v);
    return v;
}

static inline void add_to(float *p, v4 v)
{
    v += load(p);
    memcpy(p, &v, sizeof v);
}

static inline float sum(v4 v)
{
    return (v[0] + v[1]) + (v[2] + v[3]);
}

/* Four rows and eight columns of c stay in registers while k goes by. */
static void mul_4x8(float *c, const float *a, size_t row, size_t col, const float *b, size_t k, size_t n)
{
    v4 sums[4][2] = {{{0}}};

    for (size_t x = 0; x < k; x++) {
        v4 left = load(b + x * n), right = load(b + x * n + 4);
        for (int i = 0; i < 4; i++) {
            float s = a[(size_t)i * row + x * col];
            sums[i][0] += s * left;
            sums[i][1] += s * right;
        }
    }
    for (size_t i = 0; i < 4; i++) {
        add_to(c + i * n, sums[i][0]);
        add_to(c + i * n + 4, sums[i][1]);
    }
}

static void mul_1x8(float *c, const float *a, size_t col, const float *b, size_t k, size_t n)
{
    v4 left = {0}, right = {0};

    for (size_t x = 0; x < k; x++) {
        left += a[x * col] * load(b + x * n);
        right += a[x * col] * load(b + x * n + 4);
    }
    add_to(c, left);
    add_to(c + 4, right);
}

void matrix_mul(float *c, const float *a, size_t row, size_t col, const float *b, size_t m, size_t k, size_t n)
{
    for (size_t j = 0; j < n; j += 8) {
        size_t i = 0;
        for (; i + 4 <= m; i += 4)
            mul_4x8(c + i * n + j, a + i * row, row, col, b + j, k, n);
        for (; i < m; i++)
            mul_1x8(c + i * n + j, a + i * row, col, b + j, k, n);
    }
}

static void dot_4x2(float *c, const float *a, const float *b, size_t k, size_t n)
{
    v4 sums[4][2] = {{{0}}};

    for (size_t x = 0; x < k; x += 4) {
        v4 left = load(b + x), right = load(b + k + x);
        for (size_t i = 0; i < 4; i++) {
            v4 s = load(a + i * k + x);
            sums[i][0] += s * left;
            sums[i][1] += s * right;
        }
    }
    for (size_t i = 0; i < 4; i++) {
        c[i * n] += sum(sums[i][0]);
        c[i * n + 1] += sum(sums[i][1]);
    }
}

static void dot_1x1(float *c, const float *a, const float *b, size_t k)
{
    v4 s = {0};

    for (size_t x = 0; x < k; x += 4)
        s += load(a + x) * load(b + x);
    *c += sum(s);
}

void matrix_mul_transposed(float *c, const float *a, const float *b, size_t m, size_t k, size_t n)
{
    size_t whole_m = m & ~(size_t)3, whole_n = n & ~(size_t)1;

    for (size_t j = 0; j < whole_n; j += 2)
        for (size_t i = 0; i < whole_m; i += 4)
            dot_4x2(c + i * n + j, a + i * k, b + j * k, k, n);
    for (size_t i = 0; i < m; i++)
        for (size_t j = i < whole_m ? whole_n : 0; j < n; j++)
            dot_1x1(c + i * n + j, a + i * k, b + j * k, k);
}
