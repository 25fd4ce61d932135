/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of this folder share: cmocka, tensors in one line, seeded numbers. */
#ifndef CAIRN_TESTS_UNIT_CORE_SUPPORT_H
#define CAIRN_TESTS_UNIT_CORE_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "core/model/layout.h"

#define DIMS(...) ((const uint64_t[]){__VA_ARGS__})

static inline struct cairn_tensor tensor(const char *name, int dtype, uint32_t ndim, const uint64_t *shape,
                                         const uint64_t *offset, const uint64_t *length)
{
    return (struct cairn_tensor){.size = sizeof(struct cairn_tensor),
                                 .name = name,
                                 .dtype = dtype,
                                 .ndim = ndim,
                                 .shape = shape,
                                 .offset = offset,
                                 .length = length};
}

static inline int add(struct cairn_layout *l, const char *name, int dtype, uint32_t ndim, const uint64_t *shape,
                      const uint64_t *offset, const uint64_t *length, struct cairn_error *err)
{
    struct cairn_tensor t = tensor(name, dtype, ndim, shape, offset, length);

    return cairn_layout_add(l, &t, err);
}

static inline uint64_t next_random(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

static inline uint64_t below(uint64_t *s, uint64_t n)
{
    return next_random(s) % n;
}

#endif
