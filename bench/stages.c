/* SPDX-License-Identifier: Apache-2.0 */
/* bench-stages: what checksums and parity cost on a part that is in cache, one thread. Bytes of data a second, as one
 * JSON object; bench/run computes from them what a perfect pipeline would reach. */
#include "bench/clock.h"

#include "core/model/digest.h"

#include <cairn/cairn.h>
#include <isa-l/erasure_code.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PART ((size_t)256 << 10) /* in the second level of cache; parity of it reads a quarter from each of four */
#define K 4
#define M 2
#define ROUNDS 400
#define BLOCK ((size_t)16 << 10)

struct bench {
    unsigned char *data[K], *parity[M];
    unsigned char tables[32 * K * M];
    uint64_t sum; /* so that no checksum is left out */
};

static void hash_wide(struct bench *b)
{
    b->sum += cairn_hash128(b->data[0], PART).low;
}

static void hash_narrow(struct bench *b)
{
    b->sum += cairn_hash64(b->data[0], PART, 1);
}

/* As the daemon goes through a part: in blocks that stay in the first level of cache. */
static void numerics(struct bench *b)
{
    struct cairn_nonfinite bad = {0};
    struct cairn_digest d = {0};

    for (size_t at = 0; at < PART; at += BLOCK)
        cairn_numerics_add(&d, &bad, CAIRN_BF16, at / CAIRN_DIGEST_STRIPE, b->data[0] + at, BLOCK);
    b->sum += d.sum[0] + bad.nan;
}

static void parity(struct bench *b)
{
    ec_encode_data((int)PART / K, K, M, b->tables, b->data, b->parity);
}

static double speed(struct bench *b, void (*stage)(struct bench *b))
{
    stage(b);
    double begin = now();
    for (int i = 0; i < ROUNDS; i++)
        stage(b);
    return (double)PART * ROUNDS / (now() - begin);
}

int main(void)
{
    static struct bench b;
    unsigned char matrix[(K + M) * K];
    unsigned char *memory = aligned_alloc(64, PART * (K + M));

    if (!memory) {
        fprintf(stderr, "bench-stages: no memory\n");
        return 1;
    }
    for (size_t i = 0; i < PART * (K + M); i++)
        memory[i] = (unsigned char)(i * 2654435761u >> 13) & (i % 2 ? 0x3f : 0xff); /* finite numbers of any 16 bits */
    for (int i = 0; i < K; i++)
        b.data[i] = memory + PART * (size_t)i;
    for (int i = 0; i < M; i++)
        b.parity[i] = memory + PART * (size_t)(K + i);
    gf_gen_cauchy1_matrix(matrix, K + M, K);
    ec_init_tables(K, M, matrix + (size_t)K * K, b.tables);
    printf("{\"hash128\": %.0f, \"hash64\": %.0f, ", speed(&b, hash_wide), speed(&b, hash_narrow));
    printf("\"numerics\": %.0f, ", speed(&b, numerics));
    printf("\"parity42\": %.0f, \"checked\": %llu}\n", speed(&b, parity), (unsigned long long)(b.sum & 1));
    free(memory);
    return 0;
}
