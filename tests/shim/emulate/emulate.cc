/* SPDX-License-Identifier: Apache-2.0 */
/* A grid on one thread of the host. Blocks run one after the other; each thread of a block is a fiber, which runs until
 * it has to wait for others:
 *
 *     ready -> runs -> waits for all lanes of a mask   -> ready ...
 *                   -> waits for all threads of a block -> ready ...
 *                   -> is done
 *
 * Nothing of C++'s library is used. ThreadSanitizer follows threads by their stacks and cannot see a fiber change, so
 * this and the kernels are built without it (CMakeLists.txt); AddressSanitizer is told of each change.
 */
#include "tests/shim/emulate/emulate.h"

#include "tests/shim/emulate.h"
#include "tests/shim/emulate/cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#if defined(__has_feature) && !defined(__SANITIZE_ADDRESS__)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define STACK_BYTES ((size_t)128 << 10) /* of a fiber; sanitizers need most of it */
#define FIRST_FRAMES ((size_t)4096)
#define WARP_LANES 32u
#define MOST_THREADS 1024u /* of a block, on any device */
#define MOST_WARPS (MOST_THREADS / WARP_LANES)

struct fiber {
    struct emulate_self self;
    void *sp; /* where it left off, on its own stack */
    const void *stack;
    size_t stack_bytes;
    int done;
    unsigned turn; /* which of the warp's two sets of values it writes next */
};

struct warp {
    uint64_t value[2][WARP_LANES]; /* two sets: a lane may be in the next exchange while others still read this one's */
    uint32_t ready;                /* lanes */
    uint32_t waiting, mask;        /* lanes; of the meeting that is under way */
    int line;
};

struct grid {
    const char *name;
    void (*kernel)(void **args);
    void **args;
    struct fiber *fiber; /* of the block that runs */
    struct warp warp[MOST_WARPS];
    uint32_t nthreads, waiting, done;
    uint32_t ready; /* warps that have a lane that is */
    int line;       /* of the block's meeting */
    struct fiber *current;
    struct fiber host; /* who runs the blocks; its stack is known to the sanitizer only */
    uint64_t random;
};

__thread const struct emulate_self *emulate_self;
static __thread struct grid *running;
static uint64_t shuffle_seed; /* of the process, for tests that are one */

extern "C" void shim_kernels_shuffle(uint64_t seed)
{
    __atomic_store_n(&shuffle_seed, seed, __ATOMIC_RELAXED);
}

static void give_up(const struct grid *g, const char *what, int line)
{
    const struct emulate_self *s = &g->current->self;

    fprintf(stderr, "emulated kernel %s, block %u, thread %u, line %d: %s\n", g->name, s->block.x, s->thread.x, line,
            what);
    abort();
}

static uint64_t next_random(struct grid *g)
{
    g->random ^= g->random << 13;
    g->random ^= g->random >> 7;
    return g->random ^= g->random << 17;
}

/* ---- fibers ---------------------------------------------------------------------------------- */

/* Leaves what a call must preserve on the stack that is left, and takes it from the other one. */
extern "C" void emulate_switch(void **ret_sp, void *to);
extern "C" void emulate_first(void); /* where a new stack returns to */
extern "C" void emulate_fiber(void);

#if defined(__x86_64__)
__asm__(".text\n"
        ".p2align 4\n"
        ".globl emulate_switch\n"
        ".hidden emulate_switch\n"
        ".type emulate_switch, @function\n"
        "emulate_switch:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n"
        ".size emulate_switch, .-emulate_switch\n"
        ".globl emulate_first\n"
        ".hidden emulate_first\n"
        ".type emulate_first, @function\n"
        "emulate_first:\n"
        "    call emulate_fiber\n" /* aligns the stack as a call does; never returns */
        "    hlt\n"
        ".size emulate_first, .-emulate_first\n");
#define SAVED_WORDS 7 /* six registers and where to return to */
#define RETURN_WORD 6
#elif defined(__aarch64__)
__asm__(".text\n"
        ".p2align 4\n"
        ".globl emulate_switch\n"
        ".hidden emulate_switch\n"
        ".type emulate_switch, @function\n"
        "emulate_switch:\n"
        "    sub sp, sp, #160\n"
        "    stp x19, x20, [sp]\n    stp x21, x22, [sp, #16]\n    stp x23, x24, [sp, #32]\n"
        "    stp x25, x26, [sp, #48]\n    stp x27, x28, [sp, #64]\n    stp x29, x30, [sp, #80]\n"
        "    stp d8, d9, [sp, #96]\n    stp d10, d11, [sp, #112]\n"
        "    stp d12, d13, [sp, #128]\n    stp d14, d15, [sp, #144]\n"
        "    mov x9, sp\n    str x9, [x0]\n    mov sp, x1\n"
        "    ldp x19, x20, [sp]\n    ldp x21, x22, [sp, #16]\n    ldp x23, x24, [sp, #32]\n"
        "    ldp x25, x26, [sp, #48]\n    ldp x27, x28, [sp, #64]\n    ldp x29, x30, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n    ldp d10, d11, [sp, #112]\n"
        "    ldp d12, d13, [sp, #128]\n    ldp d14, d15, [sp, #144]\n"
        "    add sp, sp, #160\n"
        "    ret\n"
        ".size emulate_switch, .-emulate_switch\n"
        ".globl emulate_first\n"
        ".hidden emulate_first\n"
        ".type emulate_first, @function\n"
        "emulate_first:\n"
        "    bl emulate_fiber\n"
        "    brk #0\n"
        ".size emulate_first, .-emulate_first\n");
#define SAVED_WORDS 20
#define RETURN_WORD 11
#else
#error "tests/shim/emulate knows no way to change stacks on this processor: build with -DBUILD_TESTING=OFF"
#endif

/* The first bit at `from` or behind it, or else of all. There is one. */
static uint32_t one_of(uint32_t bits, uint32_t from)
{
    uint32_t behind = bits & UINT32_MAX << from;

    return (uint32_t)__builtin_ctz(behind ? behind : bits);
}

/* A fiber that can run, by chance or the first one; it is not ready any more. NULL: none can. */
static struct fiber *take_ready(struct grid *g)
{
    uint64_t random = g->random ? next_random(g) >> 20 : 0;

    if (!g->ready)
        return NULL;
    uint32_t at = one_of(g->ready, random % MOST_WARPS), lane;
    struct warp *w = &g->warp[at];
    lane = one_of(w->ready, random / MOST_WARPS % WARP_LANES);
    w->ready &= ~(1u << lane);
    if (!w->ready)
        g->ready &= ~(1u << at);
    return &g->fiber[at * WARP_LANES + lane];
}

static void change(struct grid *g, struct fiber *from, struct fiber *to)
{
    if (from == to)
        return;
    g->current = to;
    emulate_self = &to->self;
#ifdef __SANITIZE_ADDRESS__
    void *fake;
    __sanitizer_start_switch_fiber(from->done ? NULL : &fake, to->stack, to->stack_bytes);
    emulate_switch(&from->sp, to->sp);
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#else
    emulate_switch(&from->sp, to->sp);
#endif
}

/* To whoever can run, from one who has to wait or is done; to the host when all are. */
static void give_way(struct grid *g)
{
    struct fiber *to = take_ready(g);

    if (!to && g->done < g->nthreads)
        give_up(g, "the others wait for threads that have ended, or wait elsewhere", g->line);
    change(g, g->current, to ? to : &g->host);
}

extern "C" void emulate_fiber(void)
{
    struct grid *g = running;

#ifdef __SANITIZE_ADDRESS__
    if (!g->host.stack) /* the first fiber of all comes from the host */
        __sanitizer_finish_switch_fiber(NULL, &g->host.stack, &g->host.stack_bytes);
    else
        __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
    g->kernel(g->args);
    g->current->done = 1;
    g->done++;
    give_way(g);
    give_up(g, "a thread that has ended runs on", 0);
}

static void fiber_start(struct fiber *f)
{
    char *end = (char *)f->stack + f->stack_bytes;
    void **sp = (void **)end - SAVED_WORDS - 1; /* behind it the stack is aligned to 16 */

    sp = (void **)((uintptr_t)sp & ~(uintptr_t)15);
#if defined(__x86_64__)
    sp++; /* so that behind the seven words it is */
#endif
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(end - FIRST_FRAMES, FIRST_FRAMES); /* a fiber before it never returned from them */
#endif
    memset(sp, 0, SAVED_WORDS * sizeof *sp);
    sp[RETURN_WORD] = (void *)emulate_first;
    f->sp = sp;
    f->done = 0;
    f->turn = 0;
}

/* ---- meetings -------------------------------------------------------------------------------- */

static void make_ready(struct grid *g, uint32_t warp, uint32_t lanes)
{
    g->warp[warp].ready = lanes;
    g->ready |= 1u << warp;
}

void emulate_block_barrier(int line)
{
    struct grid *g = running;

    if (g->waiting == 0)
        g->line = line;
    if (g->line != line)
        give_up(g, "__syncthreads() that is not the one where others of the block wait", line);
    if (++g->waiting == g->nthreads) {
        g->waiting = 0;
        for (uint32_t i = 0; i < g->nthreads / WARP_LANES; i++)
            make_ready(g, i, UINT32_MAX);
    }
    give_way(g);
}

void emulate_warp_barrier(uint32_t mask, int line)
{
    struct grid *g = running;
    struct fiber *f = g->current;
    uint32_t at = f->self.thread.x / WARP_LANES, lane = f->self.thread.x % WARP_LANES;
    struct warp *w = &g->warp[at];

    if (w->waiting == 0) {
        w->line = line;
        w->mask = mask;
    }
    if (w->line != line || w->mask != mask || !(mask >> lane & 1))
        give_up(g, "not where the other lanes of the warp wait, or not in the mask", line);
    w->waiting |= 1u << lane;
    if (w->waiting == mask) {
        w->waiting = 0;
        make_ready(g, at, mask | (g->ready >> at & 1 ? w->ready : 0));
    }
    give_way(g);
}

const uint64_t *emulate_exchange(uint32_t mask, uint64_t value, int line)
{
    struct grid *g = running;
    struct fiber *f = g->current;
    uint64_t *set = g->warp[f->self.thread.x / WARP_LANES].value[f->turn++ % 2];

    set[f->self.thread.x % WARP_LANES] = value;
    emulate_warp_barrier(mask, line);
    return set;
}

/* ---- a grid ---------------------------------------------------------------------------------- */

static void run_block(struct grid *g, uint32_t block)
{
    memset(g->warp, 0xa5, sizeof g->warp); /* values that nobody has given are none that help */
    g->waiting = g->done = g->ready = 0;
    for (uint32_t i = 0; i < g->nthreads; i++) {
        g->fiber[i].self.block.x = block;
        fiber_start(&g->fiber[i]);
    }
    for (uint32_t i = 0; i < g->nthreads / WARP_LANES; i++) {
        g->warp[i].waiting = 0;
        make_ready(g, i, UINT32_MAX);
    }
    change(g, &g->host, take_ready(g));
}

/* All blocks, each once: from one that the seed says, in steps that have no divisor in common with their number. */
static void run_blocks(struct grid *g, uint32_t nblocks)
{
    uint64_t prime = 7919, at = g->random ? next_random(g) % nblocks : 0;
    uint64_t step = g->random && nblocks % prime ? prime : 1;

    for (uint32_t i = 0; i < nblocks; i++, at = (at + step) % nblocks)
        run_block(g, (uint32_t)at);
}

static char *map_stacks(uint32_t n)
{
    void *p = mmap(NULL, n * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED) {
        perror("emulated kernel: stacks of its threads");
        abort();
    }
    return (char *)p;
}

void emulate_grid(const char *name, void (*kernel)(void **args), const uint32_t grid[3], const uint32_t block[3],
                  void **args)
{
    struct grid *g = (struct grid *)calloc(1, sizeof *g);
    struct fiber *fiber = (struct fiber *)calloc(MOST_THREADS, sizeof *fiber);

    if (!g || !fiber || grid[0] == 0 || grid[1] != 1 || grid[2] != 1 || block[0] == 0 || block[0] % WARP_LANES ||
        block[0] > MOST_THREADS || block[1] != 1 || block[2] != 1) {
        fprintf(stderr, "emulated kernel %s: %u,%u,%u blocks of %u,%u,%u threads: only whole warps in x\n", name,
                grid[0], grid[1], grid[2], block[0], block[1], block[2]);
        abort();
    }
    char *stacks = map_stacks(block[0]);
    g->name = name;
    g->kernel = kernel;
    g->args = args;
    g->fiber = fiber;
    g->nthreads = block[0];
    g->random = __atomic_load_n(&shuffle_seed, __ATOMIC_RELAXED);
    for (uint32_t i = 0; i < block[0]; i++) {
        fiber[i].stack = stacks + i * STACK_BYTES;
        fiber[i].stack_bytes = STACK_BYTES;
        fiber[i].self.thread = {i, 0, 0};
        fiber[i].self.block_dim = {block[0], 1, 1};
        fiber[i].self.grid_dim = {grid[0], 1, 1};
    }
    running = g;
    run_blocks(g, grid[0]);
    running = NULL;
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stacks, block[0] * STACK_BYTES);
#endif
    munmap(stacks, block[0] * STACK_BYTES);
    free(fiber);
    free(g);
}
