/* SPDX-License-Identifier: Apache-2.0 */
/* The cluster's keys, from a file that only this daemon may read:
 *
 *     # comment
 *     ID HEX          the first key signs; all are believed
 *     ID HEX
 *
 * ID is a number from 1 to 2^32 - 1, HEX at least 32 bytes. To rotate: add the new key as the last line everywhere,
 * then move it to the top everywhere, then remove the old one; daemons read a changed file within a second, without a
 * stop. A changed file that cannot be used leaves the keys as they are, and is complained about once. A connection that
 * a key opened outlives it. */
#ifndef CAIRN_DAEMON_IO_KEYRING_H
#define CAIRN_DAEMON_IO_KEYRING_H

#include "core/proto/proof.h"

#include <stdbool.h>
#include <stddef.h>

#define KEYRING_MAX_KEYS 16
#define KEYRING_MIN_BYTES 32
#define KEYRING_MAX_BYTES 128

struct keyring;
/* Errors: DENIED when others can read the file, or it is not ours; INVAL names the line. */
int keyring_open(const char *path, struct keyring **ret_keyring, struct cairn_error *err);
void keyring_free(struct keyring *k); /* NULL allowed */
/* Reads the file again when it has changed. True when the keys are others now; a failure is in err, and keeps the old
 * ones. */
bool keyring_refresh(struct keyring *k, struct cairn_error *err);
int keyring_sign(struct keyring *k, const void *data, size_t len, uint8_t ret_tag[PROOF_TAG], uint32_t *ret_key_id);
/* 0, or CAIRN_E_DENIED: an unknown key, or not signed with it. In constant time for a known key. */
int keyring_verify(struct keyring *k, uint32_t key_id, const void *data, size_t len, const uint8_t tag[PROOF_TAG]);
/* Writes a new file of mode 0600 with one random key; EXISTS when the file is there. */
int keyring_make(const char *path, struct cairn_error *err);

#endif
