/* SPDX-License-Identifier: Apache-2.0 */
#include "client/device_loads.h"

#include <unistd.h>

#include "client/packet.h"
#include "core/base/error.h"

#define MAX_RUNS 64 /* of one call of the plugin */
#define MIN_NAP_US 20
#define MAX_NAP_US 1000
#define GRACE_MS 5000 /* beyond the deadline, for what still reads and writes memory */

void device_loads_init(struct device_loads *l, int64_t deadline_ns)
{
    l->deadline_ns = deadline_ns;
    l->nloads = 0;
}

static int find_load(struct device_loads *l, struct device *d, struct one_load **ret_load, struct cairn_error *err)
{
    for (unsigned i = 0; i < l->nloads; i++)
        if (l->loads[i].device == d) {
            *ret_load = &l->loads[i];
            return 0;
        }
    struct one_load *load = &l->loads[l->nloads]; /* a device is there once: there is room */
    *load = (struct one_load){.device = d};
    int r = device_loader(d, &load->loader, err);
    if (r < 0)
        return cairn_wrap(err, r, "begin a restore");
    l->nloads++;
    *ret_load = load;
    return 0;
}

/* ---- waiting --------------------------------------------------------------------------------- */

static int nap(const struct one_load *load, unsigned *us, int64_t deadline_ns, struct cairn_error *err)
{
    if (clock_now_ns() >= deadline_ns)
        return cairn_fail(err, CAIRN_E_TIMEOUT, "%s: copies to the device have not ended in time", load->device->name);
    usleep(*us);
    *us = *us < MAX_NAP_US / 2 ? 2 * *us : MAX_NAP_US;
    return 0;
}

static int finish_load(struct one_load *load, int64_t deadline_ns, struct cairn_error *err)
{
    unsigned us = MIN_NAP_US;

    while (load->ticket) {
        int r = device_loaded(load->device, load->loader, load->ticket, err);
        if (r == 1)
            load->ticket = 0;
        else if (r == 0)
            r = nap(load, &us, deadline_ns, err);
        if (r < 0)
            return r;
    }
    return 0;
}

int device_loads_finish(struct device_loads *l, struct cairn_error *err)
{
    int r = 0;

    for (unsigned i = 0; i < l->nloads && r == 0; i++)
        r = finish_load(&l->loads[i], l->deadline_ns, err);
    return r;
}

void device_loads_free(struct device_loads *l)
{
    int64_t deadline_ns = deadline_in_ms(GRACE_MS);

    for (unsigned i = 0; i < l->nloads; i++) {
        struct one_load *load = &l->loads[i];
        if (finish_load(load, deadline_ns, NULL) == CAIRN_E_TIMEOUT)
            __atomic_store_n(&load->device->all->kept, true, __ATOMIC_RELAXED); /* it is left behind on purpose */
        else
            device_loader_free(load->device, load->loader);
    }
    l->nloads = 0;
}

/* ---- runs ------------------------------------------------------------------------------------ */

struct batch {
    struct one_load *load;
    int64_t deadline_ns;
    struct cairn_device_run runs[MAX_RUNS];
    uint32_t n;
};

/* Older tickets end meanwhile: the plugin takes that for room. */
static int flush(struct batch *b, struct cairn_error *err)
{
    unsigned us = MIN_NAP_US;
    int r = 0;

    while (b->n) {
        r = device_load(b->load->device, b->load->loader, b->runs, b->n, &b->load->ticket, err);
        if (r == 0)
            b->n = 0;
        if (r == 0 || r != CAIRN_E_BUSY)
            return r;
        if (b->load->ticket)
            r = device_loaded(b->load->device, b->load->loader, b->load->ticket, err);
        if (r >= 0 || r == CAIRN_E_BUSY)
            r = nap(b->load, &us, b->deadline_ns, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int push(struct batch *b, const struct cairn_device_run *run, struct cairn_error *err)
{
    b->runs[b->n++] = *run;
    return b->n == MAX_RUNS ? flush(b, err) : 0;
}

/* What lies side by side in the image is one run of the plugin's; of a row that has more beside it, each stretch is. */
static int push_run(struct batch *b, const struct cairn_box_run *run, const char *from, struct cairn_error *err)
{
    bool together = run->image_stride == run->bytes;
    uint64_t n = together ? 1 : run->count;
    int r = 0;

    for (uint64_t i = 0; i < n && r == 0; i++) {
        struct cairn_device_run one = {.from = from + i * run->image_stride,
                                       .to = run->target + (int64_t)i * run->target_stride,
                                       .count = together ? run->count : 1,
                                       .stride_bytes = together ? run->target_stride : (int64_t)run->bytes,
                                       .elem = (uint32_t)run->bytes};
        r = push(b, &one, err);
    }
    return r;
}

int device_loads_put(struct device_loads *l, struct device *d, const struct cairn_box_copy *copy, const char *src,
                     uint64_t begin, size_t len, struct cairn_error *err)
{
    struct batch b = {.deadline_ns = l->deadline_ns};
    struct cairn_box_runs runs;
    struct cairn_box_run run;
    int r = find_load(l, d, &b.load, err);

    cairn_box_runs_begin(&runs, copy, begin, len);
    while (r == 0 && cairn_box_runs_next(&runs, &run))
        r = push_run(&b, &run, src + (run.image - begin), err);
    return r == 0 ? flush(&b, err) : r;
}
