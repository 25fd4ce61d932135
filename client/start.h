/* SPDX-License-Identifier: Apache-2.0 */
/* The start id: what names this start of a job, the same on all its ranks. */
#ifndef CAIRN_CLIENT_START_H
#define CAIRN_CLIENT_START_H

#include <cairn/cairn.h>

/* given, or from the launcher's environment, or random for a world of 1; INVAL when a larger world has none. */
int start_id_find(const char *given, uint32_t world_size, char ret_id[CAIRN_MAX_NAME + 1], struct cairn_error *err);

#endif
