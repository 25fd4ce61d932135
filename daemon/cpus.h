/* SPDX-License-Identifier: Apache-2.0 */
/* How the daemon shares the machine: which processors it runs on, and how nice it is. Both are inherited by every
 * thread, so they are set before the first one starts. */
#ifndef CAIRN_DAEMON_CPUS_H
#define CAIRN_DAEMON_CPUS_H

#include "core/base/error.h"

#include <sched.h>

/* "0-3,8": numbers and ranges, rising or not, none beyond what a set holds. "" is the empty set. */
int cpus_parse(const char *text, cpu_set_t *ret_set, struct cairn_error *err);
/* For the calling thread and those that it starts. "" and 0 leave what is inherited. */
int cpus_apply(const char *cpus, unsigned nice_level, struct cairn_error *err);
/* That this thread may run on. */
unsigned cpus_count(void);

#endif
