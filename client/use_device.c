/* SPDX-License-Identifier: Apache-2.0 */
/* Devices in the open: to use one before the first save, and the fence. */
#include "client/session.h"
#include "core/base/error.h"

/* An observer has no arena, and a connection that is lost none yet: the first save that needs it pins it. */
static int pin_now(struct cairn_session *s, struct device *d, struct cairn_error *err)
{
    struct attachment *a = session_attached(s);
    struct arena *arena = NULL;
    int r = 0;

    if (a && a->arena_serial && session_hold_arena(s, a, &arena, NULL) == 0)
        r = device_pin_arena(d, arena, err);
    session_release_arena(s, arena);
    session_detach(s, a);
    return r;
}

int cairn_session_use_device(struct cairn_session *session, uint32_t device, struct cairn_error *err)
{
    struct device *d = NULL;
    int r = session_check(session, err);

    if (r == 0)
        r = devices_use(&session->devices, device, &d, err);
    return r < 0 ? r : pin_now(session, d, err);
}

int cairn_save_fence(struct cairn_session *session, uint32_t device, void *stream, struct cairn_error *err)
{
    int r = session_check(session, err);

    if (r < 0)
        return r;
    if (!device_is_number(device))
        return cairn_fail(err, CAIRN_E_INVAL, "%#x is no device: use CAIRN_CUDA(i)", device);
    struct device *d = devices_find(&session->devices, device);
    if (!d) /* no save had a tensor there */
        return 0;
    r = device_fence(d, stream, err);
    return r < 0 ? cairn_wrap(err, r, "hold a stream back until saves have been copied") : 0;
}
