/* SPDX-License-Identifier: Apache-2.0 */
#include "core/model/dtype.h"

#include <string.h>

struct dtype_info {
    const char *name; /* safetensors' */
    size_t size;      /* bytes of one element */
};

static const struct dtype_info dtypes[] = {
    [CAIRN_BYTES] = {"BYTES", 1},
    [CAIRN_BOOL] = {"BOOL", 1},
    [CAIRN_U8] = {"U8", 1},
    [CAIRN_I8] = {"I8", 1},
    [CAIRN_U16] = {"U16", 2},
    [CAIRN_I16] = {"I16", 2},
    [CAIRN_U32] = {"U32", 4},
    [CAIRN_I32] = {"I32", 4},
    [CAIRN_U64] = {"U64", 8},
    [CAIRN_I64] = {"I64", 8},
    [CAIRN_F8_E4M3] = {"F8_E4M3", 1},
    [CAIRN_F8_E5M2] = {"F8_E5M2", 1},
    [CAIRN_F8_E8M0] = {"F8_E8M0", 1},
    [CAIRN_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 1},
    [CAIRN_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 1},
    [CAIRN_F16] = {"F16", 2},
    [CAIRN_BF16] = {"BF16", 2},
    [CAIRN_F32] = {"F32", 4},
    [CAIRN_F64] = {"F64", 8},
    [CAIRN_C64] = {"C64", 8},
};
#define DTYPES ((int)(sizeof(dtypes) / sizeof(dtypes[0])))

size_t cairn_dtype_size(int dtype)
{
    return dtype > 0 && dtype < DTYPES ? dtypes[dtype].size : 0;
}

const char *cairn_dtype_name(int dtype)
{
    return dtype > 0 && dtype < DTYPES ? dtypes[dtype].name : NULL;
}

int cairn_dtype_parse(const char *name)
{
    for (int d = 1; name && d < DTYPES; d++)
        if (strcmp(dtypes[d].name, name) == 0)
            return d;
    return 0;
}

unsigned cairn_dtype_width(int dtype)
{
    return dtype == CAIRN_C64 ? (unsigned)cairn_dtype_size(dtype) / 2 : (unsigned)cairn_dtype_size(dtype);
}
