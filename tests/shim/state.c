/* SPDX-License-Identifier: Apache-2.0 */
/* What tests ask for and ask about: failures, counters, what is left. */
#include "tests/shim/internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct shim shim = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static const char *const fn_names[] = {
#define FN_TEXT(function_) #function_,
    SHIM_FUNCTIONS(FN_TEXT)};

void misuse(const char *fmt, ...)
{
    va_list args;

    fputs("CUDA shim: misuse: ", stderr);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputs("\n", stderr);
    abort();
}

static uint64_t from_env(const char *name, uint64_t otherwise)
{
    const char *s = getenv(name);

    return s && *s ? strtoull(s, NULL, 10) : otherwise;
}

__attribute__((constructor)) static void start(void)
{
    shim.ndevices = (int)from_env("CAIRN_SHIM_DEVICES", 2);
    if (shim.ndevices > SHIM_DEVICES)
        shim.ndevices = SHIM_DEVICES;
    for (int i = 0; i < SHIM_DEVICES; i++)
        shim.devices[i].memory = from_env("CAIRN_SHIM_MEMORY_MB", 4096) << 20;
    shim.bytes_per_s = from_env("CAIRN_SHIM_BYTES_PER_S", 0);
    shim.delay_ns = from_env("CAIRN_SHIM_DELAY_NS", 0);
}

static bool is_final(int code)
{
    return code == 214 || code == 220 || code == 700 || code == 702 || code == 709 || code == 710 ||
           (code >= 714 && code <= 719) || code == 999;
}

static int planned(struct fail *f)
{
    return f->nth && --f->nth == 0 ? f->code : 0;
}

int call_begin(enum fn fn, enum call_kind kind)
{
    pthread_mutex_lock(&shim.lock);
    shim.calls[fn]++;
    int device = current_device(), code = planned(&shim.fails[fn]), any = planned(&shim.fail_any);
    code = code ? code : any;
    if (shim.ndevices == 0 && kind != CALL_PLAIN)
        return CUDA_E_NO_DEVICE;
    if (kind != CALL_PLAIN)
        shim.devices[device].active = true;
    if (is_final(code))
        shim.devices[device].lost = code;
    if (!code && kind != CALL_PLAIN)
        code = shim.devices[device].lost;
    if (!code && kind == CALL_UNSAFE && !capture_allows())
        code = CUDA_E_CAPTURE_UNSUPPORTED;
    return code;
}

int call_end(int code)
{
    if (code)
        set_last_error(code);
    pthread_mutex_unlock(&shim.lock);
    return code;
}

/* ---- the tests' --------------------------------------------------------------------------------- */

static struct fail *fail_of(const char *function)
{
    if (strcmp(function, "*") == 0)
        return &shim.fail_any;
    for (int i = 0; i < FN_COUNT; i++)
        if (strcmp(fn_names[i], function) == 0)
            return &shim.fails[i];
    misuse("the shim has no function %s", function);
}

SHIM_API void shim_fail(const char *function, uint64_t nth, int code)
{
    pthread_mutex_lock(&shim.lock);
    *fail_of(function) = (struct fail){.nth = nth, .code = code};
    pthread_mutex_unlock(&shim.lock);
}

SHIM_API void shim_fail_work(uint64_t nth, int code)
{
    pthread_mutex_lock(&shim.lock);
    shim.fail_work = (struct fail){.nth = nth, .code = code};
    pthread_mutex_unlock(&shim.lock);
}

SHIM_API uint64_t shim_calls(const char *function)
{
    uint64_t n = 0;

    pthread_mutex_lock(&shim.lock);
    if (strcmp(function, "*") == 0)
        for (int i = 0; i < FN_COUNT; i++)
            n += shim.calls[i];
    else
        n = shim.calls[fail_of(function) - shim.fails];
    pthread_mutex_unlock(&shim.lock);
    return n;
}

SHIM_API void shim_reset(void)
{
    shim_release(NULL);
    shim_hold_to_host(0);
    pthread_mutex_lock(&shim.lock);
    device_drain(-1);
    memset(shim.fails, 0, sizeof shim.fails);
    memset(shim.calls, 0, sizeof shim.calls);
    shim.fail_any = shim.fail_work = (struct fail){0};
    shim.delay_ns = shim.delay_seed = shim.bytes_per_s = shim.unpinned = shim.copied = 0;
    for (int i = 0; i < SHIM_DEVICES; i++)
        shim.devices[i] = (struct shim_device){.memory = shim.devices[i].memory,
                                               .used = shim.devices[i].used,
                                               .retained = shim.devices[i].retained,
                                               .legacy = shim.devices[i].legacy};
    set_last_error(0);
    memory_forget();
    pthread_mutex_unlock(&shim.lock);
}

SHIM_API void shim_left(struct shim_left *ret_left)
{
    struct shim_left left = {0};

    pthread_mutex_lock(&shim.lock);
    memory_left(&left);
    graphs_left(&left);
    libraries_left(&left);
    for (const struct stream *s = shim.streams; s; s = s->next)
        left.streams += s->alive && s != shim.devices[s->device].legacy;
    for (const struct event *e = shim.events; e; e = e->next)
        left.events += e->alive && !e->in_graph;
    for (int i = 0; i < SHIM_DEVICES; i++)
        left.contexts += shim.devices[i].retained;
    pthread_mutex_unlock(&shim.lock);
    *ret_left = left;
}

SHIM_API uint64_t shim_unpinned_copies(void)
{
    pthread_mutex_lock(&shim.lock);
    uint64_t n = shim.unpinned;
    pthread_mutex_unlock(&shim.lock);
    return n;
}

SHIM_API uint64_t shim_copied_bytes(void)
{
    pthread_mutex_lock(&shim.lock);
    uint64_t n = shim.copied;
    pthread_mutex_unlock(&shim.lock);
    return n;
}

SHIM_API int shim_context_active(int device)
{
    pthread_mutex_lock(&shim.lock);
    int active = shim.devices[device].active;
    pthread_mutex_unlock(&shim.lock);
    return active;
}

SHIM_API void shim_memory(int device, uint64_t bytes)
{
    pthread_mutex_lock(&shim.lock);
    shim.devices[device].memory = shim.devices[device].used + bytes;
    pthread_mutex_unlock(&shim.lock);
}

SHIM_API void shim_device_count(int n)
{
    pthread_mutex_lock(&shim.lock);
    shim.ndevices = n;
    pthread_mutex_unlock(&shim.lock);
}
