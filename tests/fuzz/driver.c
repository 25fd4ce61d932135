/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target without libFuzzer: random inputs and mutations of a valid one, from a seed, bounded in number. A
 * crash prints the seed and the round, which make the same input again.
 *
 *     fuzz_NAME [ROUNDS [SEED]] */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
/* A valid input to start from; a target without one gives 0. */
size_t fuzz_seed(uint8_t *buf, size_t room);
__attribute__((weak)) size_t fuzz_seed(uint8_t *buf, size_t room)
{
    (void)buf;
    (void)room;
    return 0;
}

/* A target with several kinds of valid inputs gives the ith of them, for any i, in its place. */
size_t fuzz_seed_nth(unsigned i, uint8_t *buf, size_t room);
__attribute__((weak)) size_t fuzz_seed_nth(unsigned i, uint8_t *buf, size_t room)
{
    (void)i;
    return fuzz_seed(buf, room);
}

#define ROOM ((size_t)64 << 10)

static uint64_t next_random(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

static size_t random_input(uint8_t *buf, uint64_t *r)
{
    size_t len = next_random(r) % (next_random(r) % 2 ? 64 : 4096);

    for (size_t i = 0; i < len; i++)
        buf[i] = (uint8_t)next_random(r);
    return len;
}

/* Bits, bytes and numbers changed, pieces cut, the end cut off. */
static size_t mutate(uint8_t *buf, size_t len, uint64_t *r)
{
    static const uint64_t odd[] = {0, 1, 0x7f, 0xff, 0x7fffffff, 0xffffffff, INT64_MAX, UINT64_MAX};

    for (unsigned n = 1 + (unsigned)(next_random(r) % 4); n && len > 8; n--) {
        size_t at = next_random(r) % (len - 8);
        switch (next_random(r) % 4) {
        case 0:
            buf[at] ^= (uint8_t)(1u << next_random(r) % 8);
            break;
        case 1:
            buf[at] = (uint8_t)next_random(r);
            break;
        case 2:
            memcpy(buf + at, &odd[next_random(r) % 8], 1u << next_random(r) % 4);
            break;
        default:
            len = next_random(r) % 4 ? len : at;
        }
    }
    return len;
}

int main(int argc, char **argv)
{
    unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 20000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    uint8_t *valid = malloc(ROOM);
    size_t valid_len = 0;

    for (unsigned long i = 0; i < rounds; i++) {
        uint64_t r = seed * 0x9e3779b97f4a7c15ull + i * 0xbf58476d1ce4e5b9ull + 1;
        uint8_t *buf = malloc(ROOM);
        size_t len;
        if (i % 8 == 0) {
            valid_len = fuzz_seed_nth((unsigned)(i / 8), valid, ROOM);
            if (valid_len)
                LLVMFuzzerTestOneInput(valid, valid_len);
        }
        if (valid_len && i % 8) {
            memcpy(buf, valid, valid_len);
            len = mutate(buf, valid_len, &r);
        } else {
            len = random_input(buf, &r);
        }
        uint8_t *exact = malloc(len ? len : 1); /* so that a sanitizer sees a read past the end */
        memcpy(exact, buf, len);
        LLVMFuzzerTestOneInput(exact, len);
        free(exact);
        free(buf);
    }
    printf("%lu inputs from seed %llu\n", rounds, (unsigned long long)seed);
    free(valid);
    return 0;
}
