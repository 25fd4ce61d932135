/* SPDX-License-Identifier: Apache-2.0 */
/* Matrix products with a fixed order of additions: the same inputs give the same bits on every run. */
#ifndef CAIRN_EXAMPLES_MATRIX_H
#define CAIRN_EXAMPLES_MATRIX_H

#include <stddef.h>

/* c[m][n] += a * b[k][n]; element (i, x) of a is a[i * row + x * col], so that a may be read transposed. n is a
 * multiple of 8. */
void matrix_mul(float *c, const float *a, size_t row, size_t col, const float *b, size_t m, size_t k, size_t n);
/* c[m][n] += a[m][k] * transpose(b[n][k]). k is a multiple of 4. */
void matrix_mul_transposed(float *c, const float *a, const float *b, size_t m, size_t k, size_t n);

#endif
