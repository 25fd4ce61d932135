/* SPDX-License-Identifier: Apache-2.0 */
/* cairn_scatter: runs of dense bytes to where they belong. A warp moves a tile of one run, in the widest words that
 * divide everything: a run's rows, its strides and where it begins. */
#include "bytes.cuh"

#define SCATTER_EACH 4u /* words that a lane has under way */

struct span {
    const uint8_t *from;
    uint8_t *to;
    uint64_t begin, end; /* of the run's bytes */
    uint64_t elem;
    int64_t stride;
};

DEVICE uint8_t *span_to(const struct span *s, uint64_t x)
{
    uint64_t rest, index;

    if (s->end <= s->elem) /* one element */
        return s->to + x;
    index = divide(x, s->elem, &rest);
    return s->to + rest + index * (uint64_t)s->stride;
}

/* What is left behind the last whole word is less than a word, and of a dense run. */
template <typename Word> DEVICE void move_words(const struct span *s)
{
    uint64_t lane = threadIdx.x % WARP, n = (s->end - s->begin) / sizeof(Word);

    for (uint64_t w = 0; w < n; w += WARP * SCATTER_EACH) {
        Word word[SCATTER_EACH];
#pragma unroll
        for (unsigned i = 0; i < SCATTER_EACH; i++)
            if (w + i * WARP + lane < n)
                word[i] = *(const Word *)(s->from + s->begin + (w + i * WARP + lane) * sizeof(Word));
#pragma unroll
        for (unsigned i = 0; i < SCATTER_EACH; i++)
            if (w + i * WARP + lane < n)
                *(Word *)span_to(s, s->begin + (w + i * WARP + lane) * sizeof(Word)) = word[i];
    }
    uint64_t rest = s->begin + n * sizeof(Word) + lane;
    if (rest < s->end)
        *span_to(s, rest) = s->from[rest];
}

DEVICE void move_span(const struct span *s)
{
    uint64_t all = address_of(s->from) | address_of(s->to);

    if (s->end > s->elem)
        all |= s->elem | (uint64_t)s->stride;
    if (all % 16 == 0)
        move_words<ulonglong2>(s);
    else if (all % 8 == 0)
        move_words<uint64_t>(s);
    else if (all % 4 == 0)
        move_words<uint32_t>(s);
    else if (all % 2 == 0)
        move_words<uint16_t>(s);
    else
        move_words<uint8_t>(s);
}

extern "C" __global__ void __launch_bounds__(GPU_SCATTER_THREADS) cairn_scatter(const struct gpu_scatter arg)
{
    uint32_t tile = blockIdx.x * (GPU_SCATTER_THREADS / WARP) + threadIdx.x / WARP;

    if (tile >= arg.ntiles)
        return;
    uint32_t i = count_up_to(arg.nruns, tile, [&](uint32_t k) { return arg.runs[k].tile; }) - 1;
    const struct gpu_run r = arg.runs[i];
    uint64_t bytes = r.count * r.elem, begin = (uint64_t)(tile - r.tile) * GPU_SCATTER_TILE;
    uint64_t end = bytes - begin < GPU_SCATTER_TILE ? bytes : begin + GPU_SCATTER_TILE;
    struct span s = {(const uint8_t *)r.from, (uint8_t *)r.to, begin, end, r.elem, r.stride};
    if (r.count == 1 || r.stride == (int64_t)r.elem)
        s.elem = bytes;
    move_span(&s);
}
