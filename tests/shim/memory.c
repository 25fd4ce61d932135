/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of devices, which is the host's, and the host's that is pinned. What was freed stays unreadable where it was,
 * so that whoever uses it still is found out. */
#include "tests/shim/internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static struct range *ranges; /* by base */
static size_t nranges, room;

/* Index of the first range that ends behind p. */
static size_t range_at(const void *p)
{
    size_t low = 0, high = nranges;

    while (low < high) {
        size_t mid = (low + high) / 2;
        if (ranges[mid].base + ranges[mid].bytes > (const char *)p)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

const struct range *range_find(const void *p)
{
    size_t i = range_at(p);

    return i < nranges && ranges[i].base <= (const char *)p ? &ranges[i] : NULL;
}

static void range_add(struct range r)
{
    size_t i = range_at(r.base);

    if (nranges == room) {
        room = room ? 2 * room : 64;
        ranges = realloc(ranges, room * sizeof *ranges);
        if (!ranges)
            misuse("no memory");
    }
    memmove(&ranges[i + 1], &ranges[i], (nranges++ - i) * sizeof *ranges);
    ranges[i] = r;
}

static void range_remove(const struct range *r)
{
    size_t i = (size_t)(r - ranges);

    memmove(&ranges[i], &ranges[i + 1], (--nranges - i) * sizeof *ranges);
}

enum side range_side(const void *p, size_t n)
{
    size_t i = range_at(p);
    const struct range *r = i < nranges ? &ranges[i] : NULL;

    if (!r || r->base >= (const char *)p + n)
        return SIDE_UNPINNED;
    if (r->kind == RANGE_FREED)
        misuse("%zu bytes at %p were freed", n, p);
    if (r->base > (const char *)p || r->base + r->bytes < (const char *)p + n)
        return SIDE_BAD; /* in part, or over the end of an allocation or registration */
    return r->kind == RANGE_HOST || r->kind == RANGE_REGISTERED ? SIDE_PINNED : SIDE_DEVICE;
}

void memory_left(struct shim_left *left)
{
    for (size_t i = 0; i < nranges; i++) {
        left->allocations += ranges[i].kind == RANGE_DEVICE || ranges[i].kind == RANGE_MANAGED;
        left->host_allocations += ranges[i].kind == RANGE_HOST;
        left->registrations += ranges[i].kind == RANGE_REGISTERED;
    }
}

void memory_forget(void)
{
    for (size_t i = nranges; i > 0; i--) {
        if (ranges[i - 1].kind == RANGE_FREED)
            munmap(ranges[i - 1].base, ranges[i - 1].bytes);
        if (ranges[i - 1].kind == RANGE_FREED || ranges[i - 1].kind == RANGE_REGISTERED)
            range_remove(&ranges[i - 1]);
    }
}

static int take(void **ret, size_t bytes, enum range_kind kind, int device)
{
    size_t len = (bytes + 4095) / 4096 * 4096;
    char *base =
        mmap(NULL, len ? len : 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (base == MAP_FAILED || bytes == 0)
        return CUDA_E_MEMORY_ALLOCATION;
    range_add((struct range){.base = base, .bytes = bytes, .kind = kind, .device = device});
    *ret = base;
    return 0;
}

static int take_device(void **ret, size_t bytes, enum range_kind kind)
{
    struct shim_device *d = &shim.devices[current_device()];

    if (bytes > d->memory - d->used)
        return CUDA_E_MEMORY_ALLOCATION;
    d->used += bytes;
    return take(ret, bytes, kind, current_device());
}

SHIM_API int cudaMalloc(void **ret, size_t bytes);
SHIM_API int cudaMallocManaged(void **ret, size_t bytes, unsigned flags);
SHIM_API int cudaFree(void *p);
SHIM_API int cudaMemGetInfo(size_t *ret_free, size_t *ret_total);
SHIM_API int cudaHostAlloc(void **ret, size_t bytes, unsigned flags);
SHIM_API int cudaFreeHost(void *p);
SHIM_API int cudaHostRegister(void *p, size_t bytes, unsigned flags);
SHIM_API int cudaHostUnregister(void *p);
SHIM_API int cudaHostGetDevicePointer(void **ret, void *p, unsigned flags);
SHIM_API int cudaPointerGetAttributes(cuda_pointer *ret, const void *p);

int cudaMalloc(void **ret, size_t bytes)
{
    int code = call_begin(FN_cudaMalloc, CALL_UNSAFE);

    return call_end(code ? code : take_device(ret, bytes, RANGE_DEVICE));
}

int cudaMallocManaged(void **ret, size_t bytes, unsigned flags)
{
    int code = call_begin(FN_cudaMallocManaged, CALL_UNSAFE);

    (void)flags;
    return call_end(code ? code : take_device(ret, bytes, RANGE_MANAGED));
}

static int give_back(void *p, bool host)
{
    const struct range *r = range_find(p);

    if (!p)
        return 0;
    if (!r || r->base != p)
        return CUDA_E_INVALID_VALUE;
    if (r->kind == RANGE_FREED)
        misuse("%p was freed before", p);
    if (host != (r->kind == RANGE_HOST) || r->kind == RANGE_REGISTERED)
        return CUDA_E_INVALID_VALUE;
    device_drain(-1); /* as the real one: it waits */
    r = range_find(p);
    if (!host)
        shim.devices[r->device].used -= r->bytes;
    if (mprotect(p, r->bytes, PROT_NONE) < 0 || madvise(p, r->bytes, MADV_DONTNEED) < 0)
        misuse("cannot take %p away", p);
    ranges[r - ranges].kind = RANGE_FREED;
    return 0;
}

int cudaFree(void *p)
{
    int code = call_begin(FN_cudaFree, CALL_UNSAFE);

    return call_end(code ? code : give_back(p, false));
}

int cudaMemGetInfo(size_t *ret_free, size_t *ret_total)
{
    int code = call_begin(FN_cudaMemGetInfo, CALL_CONTEXT);
    const struct shim_device *d = &shim.devices[current_device()];

    *ret_free = d->memory - d->used;
    *ret_total = d->memory;
    return call_end(code);
}

int cudaHostAlloc(void **ret, size_t bytes, unsigned flags)
{
    int code = call_begin(FN_cudaHostAlloc, CALL_UNSAFE);

    (void)flags;
    return call_end(code ? code : take(ret, bytes, RANGE_HOST, current_device()));
}

int cudaFreeHost(void *p)
{
    int code = call_begin(FN_cudaFreeHost, CALL_UNSAFE);

    return call_end(code ? code : give_back(p, true));
}

int cudaHostRegister(void *p, size_t bytes, unsigned flags)
{
    int code = call_begin(FN_cudaHostRegister, CALL_UNSAFE);

    if (code)
        return call_end(code);
    if (!p || bytes == 0 || flags > 15)
        return call_end(CUDA_E_INVALID_VALUE);
    if (range_side(p, bytes) != SIDE_UNPINNED)
        return call_end(CUDA_E_ALREADY_REGISTERED);
    range_add((struct range){.base = p, .bytes = bytes, .kind = RANGE_REGISTERED});
    return call_end(0);
}

int cudaHostUnregister(void *p)
{
    int code = call_begin(FN_cudaHostUnregister, CALL_UNSAFE);
    const struct range *r = range_find(p);

    if (code)
        return call_end(code);
    if (!r || r->base != p || r->kind != RANGE_REGISTERED)
        return call_end(CUDA_E_NOT_REGISTERED);
    range_remove(r);
    return call_end(0);
}

int cudaHostGetDevicePointer(void **ret, void *p, unsigned flags)
{
    int code = call_begin(FN_cudaHostGetDevicePointer, CALL_CONTEXT);
    const struct range *r = range_find(p);

    if (!code && (flags || !r || (r->kind != RANGE_HOST && r->kind != RANGE_REGISTERED)))
        code = CUDA_E_INVALID_VALUE;
    if (!code)
        *ret = p;
    return call_end(code);
}

int cudaPointerGetAttributes(cuda_pointer *ret, const void *p)
{
    int code = call_begin(FN_cudaPointerGetAttributes, CALL_CONTEXT);
    const struct range *r = range_find(p);

    if (code)
        return call_end(code);
    *ret = (cuda_pointer){.type = CUDA_MEMORY_UNREGISTERED, .device = -2};
    if (!r || r->kind == RANGE_FREED)
        return call_end(0);
    bool host = r->kind == RANGE_HOST || r->kind == RANGE_REGISTERED;
    ret->type = host ? CUDA_MEMORY_HOST : r->kind == RANGE_MANAGED ? CUDA_MEMORY_MANAGED : CUDA_MEMORY_DEVICE;
    ret->device = r->device;
    memcpy(&ret->device_pointer, &p, sizeof p);
    if (ret->type != CUDA_MEMORY_DEVICE)
        ret->host_pointer = ret->device_pointer;
    return call_end(0);
}
