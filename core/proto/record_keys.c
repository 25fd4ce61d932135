/* SPDX-License-Identifier: Apache-2.0 */
/* Keys. Steps and incarnations are zero-padded so that the engine's order is theirs. */
#include "core/proto/record.h"

#include "core/base/error.h"
#include "core/model/name.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROOT "cairn/v1/"

void record_key_peer(char *buf, const char *peer)
{
    snprintf(buf, RECORD_KEY_MAX, ROOT "peers/%s", peer);
}

void record_prefix_peers(char *buf)
{
    snprintf(buf, RECORD_KEY_MAX, ROOT "peers/");
}

void record_key_engine(char *buf)
{
    snprintf(buf, RECORD_KEY_MAX, ROOT "engine");
}

void record_prefix_jobs(char *buf)
{
    snprintf(buf, RECORD_KEY_MAX, ROOT "jobs/");
}

void record_key_job(char *buf, const char *job, const char *what)
{
    snprintf(buf, RECORD_KEY_MAX, ROOT "jobs/%s/%s", job, what);
}

void record_key_crew(char *buf, const char *job, const char *node)
{
    snprintf(buf, RECORD_KEY_MAX, ROOT "jobs/%s/nodes/%s", job, node);
}

void record_prefix_ckpts(char *buf, const char *job)
{
    snprintf(buf, RECORD_KEY_MAX, ROOT "jobs/%s/ckpt/", job);
}

void record_key_sweeper(char *buf)
{
    snprintf(buf, RECORD_KEY_MAX, ROOT "sweeper");
}

void record_key_ckpt(char *buf, const char *job, uint64_t step, uint64_t incarnation, const char *what)
{
    snprintf(buf, RECORD_KEY_MAX, ROOT "jobs/%s/ckpt/%020" PRIu64 ".%010" PRIu64 "/%s", job, step, incarnation, what);
}

/* sscanf takes more than we write: signs, blanks, other widths. */
static bool is_own(const char *key, const char *job, uint64_t step, uint64_t incarnation, const char *what)
{
    char again[RECORD_KEY_MAX];

    record_key_ckpt(again, job, step, incarnation, what);
    return strcmp(again, key) == 0;
}

int record_parse_ckpt(const char *key, char ret_job[CAIRN_MAX_NAME + 1], uint64_t *ret_step, uint64_t *ret_incarnation,
                      const char **ret_what, struct cairn_error *err)
{
    static const char prefix[] = ROOT "jobs/";
    char job[CAIRN_MAX_NAME + 2];
    uint64_t step, incarnation;
    int end = 0;

    if (strncmp(key, prefix, sizeof prefix - 1) == 0 &&
        sscanf(key + sizeof prefix - 1, "%129[^/]/ckpt/%20" SCNu64 ".%20" SCNu64 "/%n", job, &step, &incarnation,
               &end) == 3 &&
        end > 0 && cairn_name_check("job", job, NULL) == 0 &&
        is_own(key, job, step, incarnation, key + sizeof prefix - 1 + end)) {
        memcpy(ret_job, job, CAIRN_MAX_NAME + 1);
        *ret_step = step;
        *ret_incarnation = incarnation;
        *ret_what = key + sizeof prefix - 1 + end;
        return 0;
    }
    return cairn_fail(err, CAIRN_E_CORRUPT, "the metadata key %.200s is no checkpoint's", key);
}

const char *record_hold_name(const char *what, const char *kind)
{
    size_t len = strlen(kind);

    return strncmp(what, kind, len) == 0 ? what + len : NULL;
}
