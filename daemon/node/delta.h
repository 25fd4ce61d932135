/* SPDX-License-Identifier: Apache-2.0 */
/* Deltas: a part as its XOR with the same part of an older checkpoint. */
#ifndef CAIRN_DAEMON_NODE_DELTA_H
#define CAIRN_DAEMON_NODE_DELTA_H

#include <stddef.h>

/* to ^= with. They do not overlap; any alignment. */
void delta_xor(char *to, const char *with, size_t len);

#endif
