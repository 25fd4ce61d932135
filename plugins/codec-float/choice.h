/* SPDX-License-Identifier: Apache-2.0 */
/* What the plan goes by: for whoever makes the same bytes in another way, too (plugins/device-cuda/kernels). */
#ifndef CAIRN_CODEC_FLOAT_CHOICE_H
#define CAIRN_CODEC_FLOAT_CHOICE_H

#include "format.h"

#define SAMPLES ((size_t)64) /* blocks looked at */
#define EVEN_OF 4            /* one of so many is enough to see that nothing can be had */
#define FLOAT_LEVELS 3       /* of codec-float */
#define LADDER_VALUES 64     /* values that levels may have codes for, and those of the last level */
#define RANKS (LADDER_VALUES + MAX_VALUES)
#define LEVEL_COST 8               /* bits: about what the count of a level takes */
#define PEAKED(n) ((n)*9 / 2)      /* bits: planes that cost less are not looked at bit by bit */
#define WORTH(n) ((n)*8 - (n) / 4) /* bits: a plane that does not come below 7.75 a byte stays raw */
/* Nearly even counts, as of mantissas. The sum of squares is n * n / 256 when all are alike, and n more from chance; no
 * code is shorter than what it says (the entropy of second order), and at 1/5 more that is 7.75 bits. */
#define EVEN(squares, n) ((squares) < (n) + (n) * (n) / 256 * 6 / 5)
/* Bits that are tried to be kept, without the sign, or low ones. */
#define KEPT_MASKS 0xfe, 0x01, 0x03, 0x07, 0x0f, 0x1f, 0x3f, 0x7f

#endif
