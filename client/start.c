/* SPDX-License-Identifier: Apache-2.0 */
#include "client/start.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "core/base/error.h"
#include "core/model/hash.h"
#include "core/model/name.h"

struct launcher {
    const char *name;
    const char *id;      /* environment variable of the run */
    const char *restart; /* environment variable of its restarts */
};
static const struct launcher launchers[] = {
    {"torchrun", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"},
    {"slurm", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"},
};

/* A run id that says nothing: torchrun's default is the same for every start. */
static bool names_nothing(const char *id)
{
    return !id || !*id || strcmp(id, "none") == 0;
}

static void write_hex(char *ret_id, const char *prefix, struct hash128 h)
{
    (void)snprintf(ret_id, CAIRN_MAX_NAME + 1, "%s%016llx%016llx", prefix, (unsigned long long)h.high,
                   (unsigned long long)h.low);
}

/* Launchers allow more in their ids than names may hold: those go in as a digest. */
static void write_id(char *ret_id, const struct launcher *l, const char *id, const char *restart)
{
    int n = snprintf(ret_id, CAIRN_MAX_NAME + 1, "%s-%s-%s", l->name, id, restart);

    if (n > 0 && n <= CAIRN_MAX_NAME && cairn_name_check("start id", ret_id, NULL) == 0)
        return;
    char digest[2 * 16 + 1];
    write_hex(digest, "", cairn_hash128(id, strlen(id)));
    unsigned long count = strtoul(restart, NULL, 10);
    (void)snprintf(ret_id, CAIRN_MAX_NAME + 1, "%s-%s-%lu", l->name, digest, count);
}

static bool from_launcher(char *ret_id)
{
    for (size_t i = 0; i < sizeof(launchers) / sizeof(launchers[0]); i++) {
        const char *id = getenv(launchers[i].id);
        const char *restart = getenv(launchers[i].restart);
        if (names_nothing(id))
            continue;
        write_id(ret_id, &launchers[i], id, restart && *restart ? restart : "0");
        return true;
    }
    return false;
}

int start_id_find(const char *given, uint32_t world_size, char ret_id[CAIRN_MAX_NAME + 1], struct cairn_error *err)
{
    struct hash128 random;

    if (given) {
        int r = cairn_name_check("start id", given, err);
        if (r == 0)
            memcpy(ret_id, given, strlen(given) + 1);
        return r;
    }
    if (from_launcher(ret_id))
        return 0;
    if (world_size > 1)
        return cairn_fail(err, CAIRN_E_INVAL,
                          "a world of %u needs a start id: set start_id, or run under torchrun with --rdzv-id or Slurm",
                          world_size);
    if (getrandom(&random, sizeof(random), 0) != (ssize_t)sizeof(random))
        return cairn_fail_errno(err, errno, "draw a start id");
    write_hex(ret_id, "start-", random);
    return 0;
}
