/* SPDX-License-Identifier: Apache-2.0 */
/* Element types. cairn_dtype_size and cairn_dtype_name of cairn.h are defined in dtype.c. */
#ifndef CAIRN_CORE_MODEL_DTYPE_H
#define CAIRN_CORE_MODEL_DTYPE_H

#include <cairn/cairn.h>

/* The dtype of a name as cairn_dtype_name gives it; 0 when there is none. */
int cairn_dtype_parse(const char *name);
/* Bytes of the elements that codec-float takes apart: of a complex number each half is one. 0: no dtype. */
unsigned cairn_dtype_width(int dtype);

#endif
