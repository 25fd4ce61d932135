/* SPDX-License-Identifier: Apache-2.0 */
/* Devices, threads' state, failures and counters. */
#include "tests/shim/internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct shim shim = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static const char *const fn_names[] = {
#define FN_TEXT(function_) #function_,
    SHIM_FUNCTIONS(FN_TEXT)};

static __thread struct {
    int device;
    int stack[8];
    int depth;
    int mode; /* of captures */
    int last;
} self;

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

int current_device(void)
{
    return self.depth ? self.stack[self.depth - 1] : self.device;
}

int thread_capture_mode(void)
{
    return self.mode;
}

void set_last_error(int code)
{
    self.last = code;
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
        self.last = code;
    pthread_mutex_unlock(&shim.lock);
    return code;
}

/* ---- the runtime's ------------------------------------------------------------------------------ */

SHIM_API const char *cudaGetErrorString(int code);
SHIM_API int cudaGetLastError(void);
SHIM_API int cudaPeekAtLastError(void);
SHIM_API int cudaRuntimeGetVersion(int *version);
SHIM_API int cudaDriverGetVersion(int *version);
SHIM_API int cudaGetDeviceCount(int *n);
SHIM_API int cudaGetDevice(int *device);
SHIM_API int cudaSetDevice(int device);
SHIM_API int cudaDeviceGetAttribute(int *value, unsigned attribute, int device);
SHIM_API int cudaDeviceGetPCIBusId(char *text, int room, int device);
SHIM_API int cudaDeviceGetStreamPriorityRange(int *least, int *greatest);
SHIM_API int cudaThreadExchangeStreamCaptureMode(unsigned *mode);
SHIM_API int cuDeviceGet(int *device, int ordinal);
SHIM_API int cuDeviceGetName(char *text, int room, int device);
SHIM_API int cuDevicePrimaryCtxRetain(void **context, int device);
SHIM_API int cuDevicePrimaryCtxRelease_v2(int device);
SHIM_API int cuCtxPushCurrent_v2(void *context);
SHIM_API int cuCtxPopCurrent_v2(void **context);

const char *cudaGetErrorString(int code)
{
    switch (code) {
    case 0:
        return "no error";
    case CUDA_E_INVALID_VALUE:
        return "invalid argument";
    case CUDA_E_MEMORY_ALLOCATION:
        return "out of memory";
    case CUDA_E_NO_DEVICE:
        return "no CUDA-capable device is detected";
    case CUDA_E_INVALID_DEVICE:
        return "invalid device ordinal";
    case CUDA_E_NOT_READY:
        return "device not ready";
    case CUDA_E_ILLEGAL_ADDRESS:
        return "an illegal memory access was encountered";
    case CUDA_E_CAPTURE_UNSUPPORTED:
        return "operation not permitted when stream is capturing";
    default:
        return "shim: some error";
    }
}

int cudaGetLastError(void)
{
    int code = self.last;

    self.last = 0;
    return code;
}

int cudaPeekAtLastError(void)
{
    return self.last;
}

int cudaRuntimeGetVersion(int *version)
{
    *version = 13000;
    return call_end(call_begin(FN_cudaRuntimeGetVersion, CALL_PLAIN));
}

int cudaDriverGetVersion(int *version)
{
    *version = 13000;
    return call_end(call_begin(FN_cudaDriverGetVersion, CALL_PLAIN));
}

int cudaGetDeviceCount(int *n)
{
    int code = call_begin(FN_cudaGetDeviceCount, CALL_PLAIN);

    *n = shim.ndevices;
    return call_end(code ? code : shim.ndevices ? 0 : CUDA_E_NO_DEVICE);
}

int cudaGetDevice(int *device)
{
    *device = current_device();
    return call_end(call_begin(FN_cudaGetDevice, CALL_PLAIN));
}

int cudaSetDevice(int device)
{
    int code = call_begin(FN_cudaSetDevice, CALL_PLAIN);

    if (!code && (device < 0 || device >= shim.ndevices))
        code = CUDA_E_INVALID_DEVICE;
    if (code)
        return call_end(code);
    if (self.depth)
        self.stack[self.depth - 1] = device;
    else
        self.device = device;
    shim.devices[device].active = true; /* as since version 12 */
    return call_end(shim.devices[device].lost);
}

int cudaDeviceGetAttribute(int *value, unsigned attribute, int device)
{
    int code = call_begin(FN_cudaDeviceGetAttribute, CALL_PLAIN);

    if (!code && (device < 0 || device >= shim.ndevices))
        code = CUDA_E_INVALID_DEVICE;
    *value = attribute == CUDA_ATTRIBUTE_MAX_PITCH         ? 1 << 20
             : attribute == CUDA_ATTRIBUTE_MULTIPROCESSORS ? 4
             : attribute == CUDA_ATTRIBUTE_MAJOR           ? 9
                                                           : 0;
    return call_end(code);
}

int cudaDeviceGetPCIBusId(char *text, int room, int device)
{
    snprintf(text, (size_t)room, "0000:%02x:00.0", (unsigned)device & 0xff);
    return call_end(call_begin(FN_cudaDeviceGetPCIBusId, CALL_PLAIN));
}

int cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return call_end(call_begin(FN_cudaDeviceGetStreamPriorityRange, CALL_CONTEXT));
}

int cudaThreadExchangeStreamCaptureMode(unsigned *mode)
{
    int code = call_begin(FN_cudaThreadExchangeStreamCaptureMode, CALL_PLAIN), before = self.mode;

    if (!code && *mode > CUDA_CAPTURE_RELAXED)
        code = CUDA_E_INVALID_VALUE;
    if (!code) {
        self.mode = (int)*mode;
        *mode = (unsigned)before;
    }
    return call_end(code);
}

/* ---- the driver's ------------------------------------------------------------------------------- */

/* Its errors are no business of the runtime's last error. */
static int driver_end(int code)
{
    pthread_mutex_unlock(&shim.lock);
    return code;
}

int cuDeviceGet(int *device, int ordinal)
{
    int code = call_begin(FN_cuDeviceGet, CALL_PLAIN);

    *device = ordinal;
    return driver_end(code ? code : ordinal >= 0 && ordinal < shim.ndevices ? 0 : CUDA_E_INVALID_DEVICE);
}

int cuDeviceGetName(char *text, int room, int device)
{
    snprintf(text, (size_t)room, "CUDA shim %d", device);
    return driver_end(call_begin(FN_cuDeviceGetName, CALL_PLAIN));
}

int cuDevicePrimaryCtxRetain(void **context, int device)
{
    int code = call_begin(FN_cuDevicePrimaryCtxRetain, CALL_PLAIN);

    if (code)
        return driver_end(code);
    shim.devices[device].retained++;
    shim.devices[device].active = true;
    *context = &shim.devices[device];
    return driver_end(0);
}

int cuDevicePrimaryCtxRelease_v2(int device)
{
    int code = call_begin(FN_cuDevicePrimaryCtxRelease_v2, CALL_PLAIN);

    if (!code && shim.devices[device].retained-- == 0)
        misuse("the context of device %d was released once too often", device);
    return driver_end(code);
}

int cuCtxPushCurrent_v2(void *context)
{
    int code = call_begin(FN_cuCtxPushCurrent_v2, CALL_PLAIN);

    if (code)
        return driver_end(code);
    if (self.depth == 8)
        misuse("contexts were pushed and not popped");
    self.stack[self.depth++] = (int)((struct shim_device *)context - shim.devices);
    return driver_end(0);
}

int cuCtxPopCurrent_v2(void **context)
{
    (void)call_begin(FN_cuCtxPopCurrent_v2, CALL_PLAIN); /* that it fails helps nobody */
    if (self.depth == 0)
        misuse("a context was popped that was not pushed");
    *context = &shim.devices[self.stack[--self.depth]];
    return driver_end(0);
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
    self.last = 0;
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
        left.events += e->alive;
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
