/* SPDX-License-Identifier: Apache-2.0 */
/* A retention rule's text: what is taken prints as text that means the same. */
#include "core/checkpoint/retention.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t fuzz_seed(uint8_t *buf, size_t room);

size_t fuzz_seed(uint8_t *buf, size_t room)
{
    static const char seed[] = "last=3 every=1000 for=24h";

    if (sizeof seed - 1 > room)
        abort();
    memcpy(buf, seed, sizeof seed - 1);
    return sizeof seed - 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct retention r = {.last = 0}, again = {.last = 0};
    char *text = malloc(len + 1), printed[RETENTION_TEXT];

    memcpy(text, data, len);
    text[len] = 0;
    if (retention_parse(text, &r, NULL) == 0) {
        retention_print(&r, printed);
        if (retention_parse(printed, &again, NULL) < 0 || memcmp(&r, &again, sizeof r) != 0)
            abort();
    }
    free(text);
    return 0;
}
