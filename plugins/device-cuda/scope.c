/* SPDX-License-Identifier: Apache-2.0 */
/* A thread's state in the runtime, as it was before. Three things belong to the caller's thread: its current device,
 * how its calls meet stream captures (calls that a capture forbids would end somebody's capture), and its last error,
 * which a training loop reads after its own calls. */
#include "plugins/device-cuda/device.h"

#include "core/base/error.h"

static int switch_device(struct scope *s, const struct cairn_device *d, struct cairn_error *err)
{
    const struct cuda *c = &d->cuda;
    cuda_error e;

    if (d->context) {
        cuda_driver_error r = c->context_push(d->context);
        if (r)
            return cairn_fail(err, CAIRN_E_IO, "make CUDA device %d current: driver's error %d", d->ordinal, (int)r);
        s->pushed = true;
        return 0;
    }
    e = c->get_device(&s->previous);
    if (e)
        return cairn_fail(err, CAIRN_E_IO, "ask for the current CUDA device: %s", c->error_string(e));
    if (s->previous == d->ordinal) {
        s->previous = -1;
        return 0;
    }
    e = c->set_device(d->ordinal);
    if (e) {
        s->previous = -1;
        return cairn_fail(err, CAIRN_E_IO, "make CUDA device %d current: %s", d->ordinal, c->error_string(e));
    }
    return 0;
}

int scope_enter(struct scope *s, const struct cairn_device *device, struct cairn_error *err)
{
    const struct cuda *c = &device->cuda;
    int r;

    *s = (struct scope){.device = device, .previous = -1, .mode = CUDA_CAPTURE_RELAXED, .pending = c->peek_error()};
    (void)c->capture_mode(&s->mode); /* fails for a mode that is none only */
    r = switch_device(s, device, err);
    if (r < 0)
        scope_leave(s);
    return r;
}

void scope_leave(struct scope *s)
{
    if (!s->device)
        return;
    const struct cuda *c = &s->device->cuda;
    if (s->pushed) {
        cuda_context popped;
        (void)c->context_pop(&popped);
    } else if (s->previous >= 0) {
        (void)c->set_device(s->previous);
    }
    (void)c->capture_mode(&s->mode);
    /* What the caller had pending stays pending; what came up meanwhile has been told in words. */
    if (s->pending == CUDA_OK && c->peek_error() != CUDA_OK)
        (void)c->take_error();
    s->device = NULL;
}
