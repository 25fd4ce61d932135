/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const code_names[] = {
    "ok",        "inval",    "nomem",   "io",        "timeout",     "busy",        "too_large",
    "not_found", "exists",   "fenced",  "stale_pin", "corrupt",     "unavailable", "no_space",
    "denied",    "protocol", "aborted", "forked",    "unsupported", "intr",
};

const char *cairn_code_name(int code)
{
    int n = (int)(sizeof(code_names) / sizeof(code_names[0]));

    return code <= 0 && code > -n ? code_names[-code] : "unknown";
}

/* Bytes of the caller's message field: an older caller's struct may be shorter, a zeroed one is taken as ours. */
static size_t message_room(const struct cairn_error *err)
{
    size_t size = err->size == 0 || err->size > sizeof(*err) ? sizeof(*err) : err->size;
    size_t before = offsetof(struct cairn_error, message);

    return size > before ? size - before : 0;
}

size_t cairn_whole_characters(const char *text, size_t len)
{
    size_t back = 0;

    while (back < 3 && back < len && ((unsigned char)text[len - 1 - back] & 0xc0) == 0x80)
        back++;
    if (back == len)
        return len;
    unsigned char lead = (unsigned char)text[len - 1 - back];
    size_t wants = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : lead >= 0xc0 ? 1 : 0;

    return wants > back ? len - 1 - back : len;
}

static void set_message(struct cairn_error *err, const char *text)
{
    size_t room = message_room(err);
    size_t len = strlen(text);

    if (!room)
        return;
    if (len >= room)
        len = cairn_whole_characters(text, room - 1);
    memmove(err->message, text, len);
    err->message[len] = '\0';
}

/* One byte more than a message, so that a cut is seen and made at a whole character. */
struct text {
    char s[sizeof(((struct cairn_error *)0)->message) + 1];
};

static void format_text(struct text *t, const char *fmt, va_list args) __attribute__((format(printf, 2, 0)));
static void format_text(struct text *t, const char *fmt, va_list args)
{
    if (vsnprintf(t->s, sizeof(t->s), fmt, args) < 0)
        t->s[0] = '\0';
}

static void append_text(struct text *t, const char *more, const char *end)
{
    size_t len = strlen(t->s);

    /* The cut is wanted: snprintf's result says nothing that set_message does not see. */
    (void)snprintf(t->s + len, sizeof(t->s) - len, ": %.*s", (int)(end - more), more);
}

int cairn_fail(struct cairn_error *err, int code, const char *fmt, ...)
{
    struct text t;
    va_list args;

    if (!err)
        return code;
    va_start(args, fmt);
    format_text(&t, fmt, args); /* before err changes: an argument may point into it */
    va_end(args);
    err->code = code;
    err->sys_errno = 0;
    set_message(err, t.s);
    return code;
}

int cairn_fail_errno(struct cairn_error *err, int sys_errno, const char *fmt, ...)
{
    int code = cairn_code_of_errno(sys_errno);
    char buf[128];
    struct text t;
    va_list args;

    if (!err)
        return code;
    va_start(args, fmt);
    format_text(&t, fmt, args);
    va_end(args);
    const char *why = strerror_r(sys_errno, buf, sizeof(buf));
    append_text(&t, why, why + strlen(why));
    err->code = code;
    err->sys_errno = sys_errno;
    set_message(err, t.s);
    return code;
}

int cairn_wrap(struct cairn_error *err, int code, const char *fmt, ...)
{
    struct text t;
    va_list args;

    if (!err)
        return code;
    va_start(args, fmt);
    format_text(&t, fmt, args);
    va_end(args);
    size_t len = strnlen(err->message, message_room(err));
    if (len)
        append_text(&t, err->message, err->message + len);
    err->code = code;
    set_message(err, t.s);
    return code;
}

void cairn_error_copy(struct cairn_error *dst, const struct cairn_error *src)
{
    struct text t;

    if (!dst || !src)
        return;
    size_t len = strnlen(src->message, message_room(src));
    memcpy(t.s, src->message, len);
    t.s[len] = '\0';
    dst->code = src->code;
    dst->sys_errno = src->sys_errno;
    set_message(dst, t.s);
}

int cairn_code_of_errno(int sys_errno)
{
    switch (sys_errno) {
    case ENOMEM:
        return CAIRN_E_NOMEM;
    case ETIMEDOUT:
        return CAIRN_E_TIMEOUT;
    case EAGAIN:
    case EBUSY:
        return CAIRN_E_BUSY;
    case EFBIG:
    case E2BIG:
    case EMSGSIZE:
        return CAIRN_E_TOO_LARGE;
    case ENOENT:
        return CAIRN_E_NOT_FOUND;
    case EEXIST:
    case EADDRINUSE:
        return CAIRN_E_EXISTS;
    case ECONNREFUSED:
    case ECONNRESET:
    case ECONNABORTED:
    case ENOTCONN:
    case EPIPE:
    case EHOSTUNREACH:
    case ENETUNREACH:
        return CAIRN_E_UNAVAILABLE;
    case ENOSPC:
    case EDQUOT:
        return CAIRN_E_NO_SPACE;
    case EACCES:
    case EPERM:
        return CAIRN_E_DENIED;
    case ENOSYS:
    case EOPNOTSUPP:
        return CAIRN_E_UNSUPPORTED;
    case EINTR:
        return CAIRN_E_INTR;
    default:
        return CAIRN_E_IO;
    }
}
