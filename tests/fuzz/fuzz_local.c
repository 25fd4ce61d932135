/* SPDX-License-Identifier: Apache-2.0 */
/* local_check over anything that a socket can bring. The first byte says how many descriptors came; the rest is the
 * message. What passes is read as its type, whole: an accepted message must hold all that its type promises. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/error.h"
#include "core/proto/local.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(const char *text)
{
    if (strlen(text) >= LOCAL_MAX_MESSAGE)
        abort();
}

static void read_all(int type, const void *m)
{
    switch (type) {
    case LOCAL_OPEN:
        use(((const struct local_open *)m)->job);
        use(((const struct local_open *)m)->start_id);
        break;
    case LOCAL_OPENED:
        use(((const struct local_opened *)m)->node);
        break;
    case LOCAL_RESTORE_OPEN:
        use(((const struct local_restore_open *)m)->job);
        break;
    case LOCAL_QUERY:
        use(((const struct local_query *)m)->job);
        break;
    case LOCAL_ERROR:
        use(((const struct local_error *)m)->message);
        break;
    case LOCAL_EVENT:
        use(((const struct local_event *)m)->message);
        break;
    case LOCAL_TEXT:
        use(((const struct local_text *)m)->text);
        break;
    case LOCAL_GRANT:
        for (uint32_t i = 0; i < ((const struct local_grant *)m)->nruns; i++)
            if (((const struct local_grant *)m)->runs[i].npages == 0)
                abort();
        break;
    case LOCAL_PARTS:
        if (((const struct local_parts *)m)->save == 0 || ((const struct local_parts *)m)->parts == 0)
            abort();
        break;
    case LOCAL_PACKED: {
        const struct local_packed *p = m;
        volatile uint32_t last = p->len[p->n - 1]; /* it is there */
        (void)last;
        if (p->save == 0 || p->n == 0 || p->n > LOCAL_MAX_PACKED || p->first + p->n < p->first)
            abort();
        break;
    }
    case LOCAL_SUMS:
        if (((const struct local_sums *)m)->save == 0)
            abort();
        break;
    default:
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (size < 1 || size - 1 > LOCAL_MAX_MESSAGE + 1)
        return 0;
    void *message = malloc(size - 1 ? size - 1 : 1); /* aligned, and no byte longer than what came */
    if (!message)
        return 0;
    memcpy(message, data + 1, size - 1);
    int type = local_check(message, size - 1, data[0] % (LOCAL_MAX_FDS + 2), &err);
    if (type > 0)
        read_all(type, message);
    else if (type != CAIRN_E_PROTOCOL || err.code != CAIRN_E_PROTOCOL || !err.message[0])
        abort();
    free(message);
    return 0;
}
