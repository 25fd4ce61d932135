/* SPDX-License-Identifier: Apache-2.0 */
/* What encoding and decoding must agree on about a stripe's parity. */
#ifndef CAIRN_DAEMON_NODE_PARITY_H
#define CAIRN_DAEMON_NODE_PARITY_H

#include "core/model/stripe.h"

/* The Cauchy matrix's rows: k of the identity, then m of parity. It depends on k and m only, so that any reader can
 * make it again. */
void parity_matrix(unsigned k, unsigned m, unsigned char matrix[CAIRN_MAX_FRAGS * CAIRN_MAX_K]);
/* Bytes that parity covers: the longest encoded part in whole blocks; shorter ones count as zero-extended. */
uint32_t parity_len(const struct cairn_part_code *part, unsigned k);

#endif
