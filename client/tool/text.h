/* SPDX-License-Identifier: Apache-2.0 */
/* Tables and figures for people. */
#ifndef CAIRN_CLIENT_TOOL_TEXT_H
#define CAIRN_CLIENT_TOOL_TEXT_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#define TABLE_MAX_COLUMNS 12

struct table; /* columns as wide as their widest cell */

/* titles: one word for each column, parted by spaces; those that begin with '>' are set to the right. NULL without
 * memory. */
struct table *table_new(const char *titles);
/* Adds the next cell; its control characters are shown as '?'. */
void table_cell(struct table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void table_print(const struct table *t);
void table_free(struct table *t);

struct figure {
    char text[48];
};
struct figure figure_bytes(uint64_t bytes);     /* "31.2 MiB" */
struct figure figure_ms(uint64_t ms);           /* "2 h 5 min" */
struct figure figure_time(int64_t unix_ms);     /* local time; "-" for 0 */
struct figure figure_dims(const json_t *array); /* "[256, 192]" */

/* Members of an object; "" and 0 when missing. */
const char *member_text(const json_t *o, const char *key);
uint64_t member_number(const json_t *o, const char *key);

#endif
