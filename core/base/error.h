/* SPDX-License-Identifier: Apache-2.0 */
/* One idiom for errors: return a negative enum cairn_code and fill an optional struct cairn_error.
 *
 *     if (fd < 0)
 *         return cairn_fail_errno(err, errno, "open %s", path);
 *     r = store_open(path, &store, err);
 *     if (r < 0)
 *         return cairn_wrap(err, r, "start peer %s", id);      -> "start peer p1: open /x: No such file or directory"
 */
#ifndef CAIRN_CORE_BASE_ERROR_H
#define CAIRN_CORE_BASE_ERROR_H

#include <cairn/cairn.h>

/* Fills err (if not NULL) and returns code. The message is cut at its size, never overflows. */
int cairn_fail(struct cairn_error *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* The same from an errno (positive): the code is chosen from it, ": strerror" is appended. */
int cairn_fail_errno(struct cairn_error *err, int sys_errno, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Puts "context: " before the message that is there and returns code. */
int cairn_wrap(struct cairn_error *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Copies src into dst (either may be NULL), keeping dst's size. */
void cairn_error_copy(struct cairn_error *dst, const struct cairn_error *src);
/* How much of the first len bytes of text are whole characters: a UTF-8 sequence that their end cuts is left out.
 * Messages go into JSON. */
size_t cairn_whole_characters(const char *text, size_t len);
/* The enum cairn_code for a positive errno. */
int cairn_code_of_errno(int sys_errno);

#endif
