/* SPDX-License-Identifier: Apache-2.0 */
/* What wire.c and wire_care.c share. */
#ifndef CAIRN_CORE_PROTO_WIRE_INTERNAL_H
#define CAIRN_CORE_PROTO_WIRE_INTERNAL_H

#include "core/proto/wire.h"

#include "wire.pb-c.h"

/* protobuf-c's strings are char *, though packing only reads them. */
static inline char *wire_str(const char *s)
{
    return (char *)(uintptr_t)s;
}
int wire_pack(const Cairn__Wire__V1__Envelope *e, uint8_t buf[WIRE_MAX], struct cairn_error *err);
int wire_get_name(const char *what, const char *from, char to[CAIRN_MAX_NAME + 1], struct cairn_error *err);
int wire_get_status(int32_t code, const char *message, struct wire_status *to, struct cairn_error *err);

/* ---- wire_care.c: SCRUB to ENGINE_ACCEPTED --------------------------------------------------- */
const char *wire_care_name(int type); /* NULL: not one of them */
int wire_care_encode(Cairn__Wire__V1__Envelope *e, const struct wire_message *m, uint8_t buf[WIRE_MAX],
                     struct cairn_error *err);
int wire_care_decode(const Cairn__Wire__V1__Envelope *e, struct wire_message *m, struct cairn_error *err);

#endif
