/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "daemon/cpus.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

/* A number without sign or blanks; NULL when there is none, or one that no set holds. */
static const char *parse_cpu(const char *s, unsigned *ret)
{
    unsigned n = 0;

    if (!isdigit((unsigned char)*s))
        return NULL;
    for (; isdigit((unsigned char)*s); s++) {
        n = n * 10 + (unsigned)(*s - '0');
        if (n >= CPU_SETSIZE)
            return NULL;
    }
    *ret = n;
    return s;
}

static const char *parse_range(const char *s, cpu_set_t *set)
{
    unsigned first, last;

    s = parse_cpu(s, &first);
    last = first;
    if (s && *s == '-')
        s = parse_cpu(s + 1, &last);
    if (!s || last < first)
        return NULL;
    for (unsigned c = first; c <= last; c++)
        CPU_SET(c, set);
    return s;
}

int cpus_parse(const char *text, cpu_set_t *ret_set, struct cairn_error *err)
{
    const char *s = text;
    cpu_set_t set;

    CPU_ZERO(&set);
    while (s && *s) {
        s = parse_range(s, &set);
        if (s && *s == ',' && s[1])
            s++;
        else if (s && *s)
            s = NULL;
    }
    if (!s)
        return cairn_fail(err, CAIRN_E_INVAL,
                          "\"%s\" is no list of processors: numbers below %d and ranges as in 0-3,8 are wanted", text,
                          CPU_SETSIZE);
    *ret_set = set;
    return 0;
}

int cpus_apply(const char *cpus, unsigned nice_level, struct cairn_error *err)
{
    cpu_set_t set;
    int r = cpus_parse(cpus, &set, err);

    if (r < 0)
        return r;
    if (cpus[0] && sched_setaffinity(0, sizeof set, &set) < 0)
        return cairn_fail_errno(err, errno, "run on processors %s ([daemon] cpus): are there such ones here", cpus);
    if (nice_level && setpriority(PRIO_PROCESS, 0, (int)nice_level) < 0)
        return cairn_fail_errno(err, errno, "be nice by %u ([daemon] nice)", nice_level);
    return 0;
}

unsigned cpus_count(void)
{
    cpu_set_t set;
    long online = sysconf(_SC_NPROCESSORS_ONLN);

    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return (unsigned)CPU_COUNT(&set);
    return online > 0 ? (unsigned)online : 1; /* more processors than a set holds */
}
