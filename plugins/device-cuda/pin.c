/* SPDX-License-Identifier: Apache-2.0 */
/* Pinned host memory. It is registered piece by piece, so that other threads' calls of the runtime, which wait for a
 * registration, come in between; a copy must stay within one registration. */
#include "plugins/device-cuda/device.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <string.h>

#define PIECE ((uint64_t)256 << 20)

static uint64_t pieces_of(uint64_t bytes)
{
    return (bytes + PIECE - 1) / PIECE;
}

static void unregister(struct cairn_device *d, struct pinned *p)
{
    for (uint64_t i = 0; i < pieces_of(p->bytes); i++)
        if (p->ours[i])
            (void)d->cuda.host_unregister(p->base + i * PIECE); /* only a lost context refuses, and took it along */
}

/* Where the device does not know registered memory by its address on the host, single copies translate it and
 * batches do not: they end with an illegal access. */
static void forgo_batches(struct cairn_device *d)
{
    pthread_mutex_lock(&d->lock);
    d->no_batches = true;
    pthread_mutex_unlock(&d->lock);
}

static int register_pieces(struct cairn_device *d, struct pinned *p, struct cairn_error *err)
{
    for (uint64_t i = 0; i < pieces_of(p->bytes); i++) {
        _cleanup_scope_ struct scope s = {0};
        uint64_t at = i * PIECE, len = p->bytes - at < PIECE ? p->bytes - at : PIECE;
        int r = scope_enter(&s, d, err);
        if (r < 0)
            return r;
        cuda_error e = d->cuda.host_register(p->base + at, len, CUDA_HOST_PORTABLE | CUDA_HOST_MAPPED);
        if (e != CUDA_OK && e != CUDA_E_ALREADY_REGISTERED)
            return device_fail(d, err, e, "pin the arena (cudaHostRegister)");
        p->ours[i] = e == CUDA_OK;
        void *mapped = NULL;
        if (d->cuda.host_pointer(&mapped, p->base + at, 0) == CUDA_OK)
            p->mapped[i] = mapped;
        if (mapped != p->base + at)
            forgo_batches(d);
    }
    return 0;
}

static int remember(struct cairn_device *d, const struct pinned *p)
{
    struct pinned *more;

    pthread_mutex_lock(&d->pins_lock);
    more = realloc(d->pins, (d->npins + 1) * sizeof *more);
    if (more) {
        d->pins = more;
        d->pins[d->npins++] = *p;
    }
    pthread_mutex_unlock(&d->pins_lock);
    return more ? 0 : CAIRN_E_NOMEM;
}

static void forget(struct cairn_device *d, struct pinned *p)
{
    struct scope s = {0};

    (void)scope_enter(&s, d, NULL);
    unregister(d, p);
    scope_leave(&s);
    free(p->ours);
    free(p->mapped);
}

int device_pin(struct cairn_device *d, void *base, uint64_t bytes, struct cairn_error *err)
{
    struct pinned p = {.base = base, .bytes = bytes};
    int r = device_usable(d, err);

    if (r < 0)
        return r;
    if (!base || bytes == 0)
        return cairn_fail(err, CAIRN_E_INVAL, "pin %llu bytes at %p: nothing to pin", (unsigned long long)bytes, base);
    p.ours = calloc(pieces_of(bytes), 1);
    p.mapped = calloc(pieces_of(bytes), sizeof *p.mapped);
    if (!p.ours || !p.mapped) {
        free(p.ours);
        free(p.mapped);
        return cairn_fail(err, CAIRN_E_NOMEM, "pin %llu bytes: no memory", (unsigned long long)bytes);
    }
    r = register_pieces(d, &p, err);
    if (r == 0 && remember(d, &p) < 0)
        r = cairn_fail(err, CAIRN_E_NOMEM, "pin %llu bytes: no memory", (unsigned long long)bytes);
    if (r < 0)
        forget(d, &p);
    return r;
}

void device_unpin(struct cairn_device *d, void *base, uint64_t bytes)
{
    struct pinned found = {0};

    pthread_mutex_lock(&d->pins_lock);
    for (size_t i = 0; i < d->npins && !found.base; i++)
        if (d->pins[i].base == base && d->pins[i].bytes == bytes) {
            found = d->pins[i];
            d->pins[i] = d->pins[--d->npins];
        }
    pthread_mutex_unlock(&d->pins_lock);
    if (found.base)
        forget(d, &found);
}

void pins_free(struct cairn_device *d)
{
    for (size_t i = 0; i < d->npins; i++)
        forget(d, &d->pins[i]);
    free(d->pins);
    d->pins = NULL;
    d->npins = 0;
}

/* pins_lock is held. */
static const struct pinned *pin_of(const struct cairn_device *d, const void *p)
{
    for (size_t i = 0; i < d->npins; i++)
        if ((const char *)p >= d->pins[i].base && (const char *)p < d->pins[i].base + d->pins[i].bytes)
            return &d->pins[i];
    return NULL;
}

uint64_t pin_room(struct cairn_device *d, const void *p)
{
    uint64_t room = 0;

    pthread_mutex_lock(&d->pins_lock);
    const struct pinned *pin = pin_of(d, p);
    if (pin) {
        uint64_t at = (uint64_t)((const char *)p - pin->base), left = pin->bytes - at;
        room = PIECE - at % PIECE < left ? PIECE - at % PIECE : left;
    }
    pthread_mutex_unlock(&d->pins_lock);
    return room;
}

bool pins_map(struct cairn_device *d, void *const *page, uint32_t n, void **ret_mapped)
{
    bool all = true;

    pthread_mutex_lock(&d->pins_lock);
    for (uint32_t i = 0; i < n && all; i++) {
        const struct pinned *pin = page[i] ? pin_of(d, page[i]) : NULL;
        uint64_t at = pin ? (uint64_t)((char *)page[i] - pin->base) : 0;
        ret_mapped[i] = pin && pin->mapped[at / PIECE] ? pin->mapped[at / PIECE] + at % PIECE : NULL;
        all = !page[i] || ret_mapped[i];
    }
    pthread_mutex_unlock(&d->pins_lock);
    return all;
}
