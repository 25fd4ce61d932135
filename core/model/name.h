/* SPDX-License-Identifier: Apache-2.0 */
/* Names that users choose. They become paths and keys, so nothing but [A-Za-z0-9._-] passes. */
#ifndef CAIRN_CORE_MODEL_NAME_H
#define CAIRN_CORE_MODEL_NAME_H

#include <cairn/cairn.h>

/* what names the thing in the message: "job", "start id", "peer id". */
int cairn_name_check(const char *what, const char *name, struct cairn_error *err);
/* A tensor's name: 1 to CAIRN_MAX_TENSOR_NAME bytes of valid UTF-8, no control characters. */
int cairn_tensor_name_check(const char *name, size_t len, struct cairn_error *err);

#endif
