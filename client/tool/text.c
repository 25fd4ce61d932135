/* SPDX-License-Identifier: Apache-2.0 */
#include "client/tool/text.h"

#include "core/base/cleanup.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct table {
    unsigned columns;
    bool right[TABLE_MAX_COLUMNS];
    size_t width[TABLE_MAX_COLUMNS];
    char **cells;
    size_t n, room;
    bool broken; /* memory ran out: cells are missing */
};

/* ---- tables ---------------------------------------------------------------------------------- */

struct table *table_new(const char *titles)
{
    _cleanup_free_ char *copy = strdup(titles);
    struct table *t = calloc(1, sizeof *t);
    char *save = NULL;

    if (!t || !copy) {
        free(t);
        return NULL;
    }
    for (char *w = strtok_r(copy, " ", &save); w && t->columns < TABLE_MAX_COLUMNS; w = strtok_r(NULL, " ", &save)) {
        t->right[t->columns++] = w[0] == '>';
        table_cell(t, "%s", w[0] == '>' ? w + 1 : w);
    }
    return t;
}

/* How wide a UTF-8 text is: its characters, without care for wide ones. */
static size_t text_width(const char *s)
{
    size_t n = 0;

    for (; *s; s++)
        n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

/* Names and reasons come from elsewhere: nothing of them may steer the terminal. */
static void make_printable(char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < ' ' || *s == 0x7f)
            *s = '?';
}

static bool table_reserve(struct table *t)
{
    size_t room = t->room ? 2 * t->room : 64;

    if (t->n < t->room)
        return true;
    char **more = realloc(t->cells, room * sizeof *more);
    if (!more)
        return false;
    t->cells = more;
    t->room = room;
    return true;
}

void table_cell(struct table *t, const char *fmt, ...)
{
    va_list ap;
    char *text;

    va_start(ap, fmt);
    int len = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (len < 0 || !table_reserve(t)) {
        if (len >= 0)
            free(text);
        t->broken = true;
        return;
    }
    make_printable(text);
    size_t width = text_width(text), column = t->n < t->columns ? t->n : t->n % t->columns;
    if (width > t->width[column])
        t->width[column] = width;
    t->cells[t->n++] = text;
}

static void print_cell(const struct table *t, size_t i)
{
    size_t column = i % t->columns;
    int pad = (int)(t->width[column] - text_width(t->cells[i]));
    bool last = column + 1 == t->columns;

    printf("%s%*s%s%*s%s", column ? "  " : "", t->right[column] ? pad : 0, "", t->cells[i],
           t->right[column] || last ? 0 : pad, "", last ? "\n" : "");
}

void table_print(const struct table *t)
{
    for (size_t i = 0; i < t->n; i++)
        print_cell(t, i);
    if (t->broken)
        fputs("cairn: out of memory, rows are missing\n", stderr);
}

void table_free(struct table *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n; i++)
        free(t->cells[i]);
    free(t->cells);
    free(t);
}

/* ---- figures --------------------------------------------------------------------------------- */

struct figure figure_bytes(uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    struct figure f;
    double v = (double)bytes;
    unsigned u = 0;

    while (v >= 1024 && u < 6) {
        v /= 1024;
        u++;
    }
    snprintf(f.text, sizeof f.text, u ? "%.1f %s" : "%.0f %s", v, units[u]);
    return f;
}

struct figure figure_ms(uint64_t ms)
{
    uint64_t s = ms / 1000;
    struct figure f;

    if (ms < 1000)
        snprintf(f.text, sizeof f.text, "%u ms", (unsigned)ms);
    else if (s < 60)
        snprintf(f.text, sizeof f.text, "%.1f s", (double)ms / 1000);
    else if (s < 3600)
        snprintf(f.text, sizeof f.text, "%u min %u s", (unsigned)(s / 60), (unsigned)(s % 60));
    else if (s < 86400)
        snprintf(f.text, sizeof f.text, "%u h %u min", (unsigned)(s / 3600), (unsigned)(s / 60 % 60));
    else
        snprintf(f.text, sizeof f.text, "%llu d %u h", (unsigned long long)(s / 86400), (unsigned)(s / 3600 % 24));
    return f;
}

struct figure figure_time(int64_t unix_ms)
{
    time_t seconds = (time_t)(unix_ms / 1000);
    struct figure f = {"-"};
    struct tm tm;

    if (unix_ms && localtime_r(&seconds, &tm))
        strftime(f.text, sizeof f.text, "%Y-%m-%d %H:%M:%S", &tm);
    return f;
}

struct figure figure_dims(const json_t *array)
{
    struct figure f = {"["};
    size_t at = 1, i;
    json_t *v;

    json_array_foreach(array, i, v)
    {
        int n = snprintf(f.text + at, sizeof f.text - at, "%s%lld", i ? ", " : "", (long long)json_integer_value(v));
        if (n < 0 || at + (size_t)n >= sizeof f.text - 6) {
            snprintf(f.text + at, sizeof f.text - at, "...");
            at += 3;
            break;
        }
        at += (size_t)n;
    }
    snprintf(f.text + at, sizeof f.text - at, "]");
    return f;
}

/* ---- members --------------------------------------------------------------------------------- */

const char *member_text(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? s : "";
}

uint64_t member_number(const json_t *o, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(o, key));
}
