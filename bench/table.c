/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/table.h"

#include "bench/random.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_TENSORS ((size_t)1 << 20)
#define MAX_BYTES ((uint64_t)1 << 40)
#define HUGE ((size_t)2 << 20)

static int dtype_named(const char *name)
{
    for (int d = CAIRN_BYTES; d <= CAIRN_C64; d++)
        if (cairn_dtype_name(d) && strcmp(cairn_dtype_name(d), name) == 0)
            return d;
    return 0;
}

static int parse_line(char *line, struct table_tensor *t)
{
    char dtype[16];
    int used = 0;
    unsigned long long section, bytes, start, dim;

    if (sscanf(line, "%15s %llu %llu %llu %159s%n", dtype, &section, &bytes, &start, t->name, &used) != 5)
        return -1;
    t->dtype = dtype_named(dtype);
    t->section = section;
    t->section_bytes = bytes;
    t->start = start;
    t->bytes = cairn_dtype_size(t->dtype);
    for (char *at = line + used; sscanf(at, "%llu%n", &dim, &used) == 1; at += used) {
        if (t->ndim == TABLE_DIMS || dim == 0 || dim > MAX_BYTES)
            return -1;
        t->shape[t->ndim++] = dim;
        if (__builtin_mul_overflow(t->bytes, dim, &t->bytes) || t->bytes > MAX_BYTES)
            return -1;
    }
    return t->bytes && t->section_bytes ? 0 : -1;
}

static int append(struct table *table, const struct table_tensor *t)
{
    if ((table->n & (table->n - 1)) == 0) {
        size_t room = table->n ? table->n * 2 : 1;
        struct table_tensor *more = room > MAX_TENSORS ? NULL : realloc(table->t, room * sizeof *more);
        if (!more)
            return -1;
        table->t = more;
    }
    table->t[table->n++] = *t;
    table->bytes += t->bytes;
    return 0;
}

/* The table's own tensors, again and again under other names, until there are max_bytes; the last one loses rows. */
static int to_size(struct table *table, uint64_t max_bytes)
{
    size_t own = table->n;

    for (size_t i = 0; table->bytes < max_bytes; i++) {
        struct table_tensor t = table->t[i % own];
        char name[TABLE_NAME];
        snprintf(name, sizeof name, "again%zu.%.140s", i / own + 1, t.name);
        memcpy(t.name, name, sizeof name);
        t.start += i * 4096; /* not the same bytes as before */
        if (append(table, &t) < 0)
            return -1;
    }
    while (table->n > 1 && table->bytes - table->t[table->n - 1].bytes >= max_bytes)
        table->bytes -= table->t[--table->n].bytes;
    struct table_tensor *last = &table->t[table->n - 1];
    if (table->bytes > max_bytes && last->ndim) {
        uint64_t row = last->bytes / last->shape[0];
        uint64_t cut = (table->bytes - max_bytes) / row;
        cut = cut >= last->shape[0] ? last->shape[0] - 1 : cut;
        last->shape[0] -= cut;
        last->bytes -= cut * row;
        table->bytes -= cut * row;
    }
    return 0;
}

int table_read(struct table *table, const char *path, uint64_t max_bytes)
{
    char line[512];
    FILE *f = fopen(path, "re");
    int r = f ? 0 : -1;

    *table = (struct table){0};
    while (r == 0 && fgets(line, sizeof line, f)) {
        struct table_tensor t = {0};
        r = parse_line(line, &t) < 0 ? -1 : append(table, &t);
    }
    if (f)
        fclose(f);
    if (r == 0 && table->n && max_bytes)
        r = to_size(table, max_bytes);
    if (r < 0 || !table->n) {
        fprintf(stderr, "table: %s cannot be read, or its tensor %zu makes no sense\n", path, table->n + 1);
        table_free(table);
        return -1;
    }
    return 0;
}

char *table_memory(size_t bytes)
{
    char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    (void)madvise(p, bytes, MADV_HUGEPAGE); /* small pages do as well, slower */
    memset(p, 1, bytes);
    return p;
}

static void fill(struct table_tensor *t, const char *file)
{
    const char *section = file + t->section;
    uint64_t at = t->start % t->section_bytes / 8 * 8;

    for (uint64_t done = 0; done < t->bytes;) {
        uint64_t len = t->section_bytes - at;
        len = len < t->bytes - done ? len : t->bytes - done;
        memcpy(t->data + done, section + at, len);
        done += len;
        at = 0;
    }
}

static int fill_all(struct table *table, const char *path)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    char *file = MAP_FAILED;

    if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size > 0)
        file = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (fd >= 0)
        close(fd);
    if (file == MAP_FAILED)
        return -1;
    int r = 0;
    for (size_t i = 0; i < table->n && r == 0; i++) {
        struct table_tensor *t = &table->t[i];
        r = t->section + t->section_bytes > (uint64_t)st.st_size ? -1 : 0;
        if (r == 0)
            fill(t, file);
    }
    munmap(file, (size_t)st.st_size);
    return r;
}

int table_fill(struct table *table, const char *path)
{
    size_t at = 0;

    for (size_t i = 0; i < table->n; i++)
        table->mapped += (table->t[i].bytes + 63) / 64 * 64;
    table->mapped = (table->mapped + HUGE - 1) / HUGE * HUGE;
    table->memory = table_memory(table->mapped);
    if (!table->memory) {
        fprintf(stderr, "table: no memory for a state of %zu bytes\n", table->mapped);
        return -1;
    }
    for (size_t i = 0; i < table->n; i++) {
        table->t[i].data = table->memory + at;
        at += (table->t[i].bytes + 63) / 64 * 64;
    }
    if (path && fill_all(table, path) < 0) {
        fprintf(stderr, "table: %s has not the bytes that the table names\n", path);
        return -1;
    }
    return 0;
}

size_t table_touch(struct table *table, double share, uint64_t seed)
{
    size_t pages = table->mapped / 4096, touched = 0;
    uint64_t bound = share >= 1 ? UINT64_MAX : (uint64_t)(share * 18446744073709551615.0);

    for (size_t i = 0; i < pages; i++)
        if (mix(mix(seed) + i) <= bound) {
            table->memory[i * 4096 + (seed & 4095)] ^= 1;
            touched++;
        }
    return touched;
}

void table_free(struct table *table)
{
    if (table->memory)
        munmap(table->memory, table->mapped);
    free(table->t);
    *table = (struct table){0};
}
