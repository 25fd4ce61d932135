/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/parity.h"

#include "core/base/bytes.h"

#include <isa-l/erasure_code.h>

void parity_matrix(unsigned k, unsigned m, unsigned char matrix[CAIRN_MAX_FRAGS * CAIRN_MAX_K])
{
    gf_gen_cauchy1_matrix(matrix, (int)(k + m), (int)k);
}

uint32_t parity_len(const struct cairn_part_code *part, unsigned k)
{
    uint32_t most = 0;

    for (unsigned i = 0; i < k; i++)
        if (part[i].coded_len > most)
            most = part[i].coded_len;
    return (uint32_t)round_up_u64(most, CAIRN_BLOCK);
}
