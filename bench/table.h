/* SPDX-License-Identifier: Apache-2.0 */
/* A workload: a table of tensors, and a file of trained state that they are filled from. Each line of the table is
 *
 *     DTYPE SECTION_OFFSET SECTION_BYTES START NAME DIM...
 *
 * A tensor's bytes are those of the section (weights, master copy, moments) from START on, around and around: that is
 * how the state of a trained model fills the shapes of a larger one. */
#ifndef CAIRN_BENCH_TABLE_H
#define CAIRN_BENCH_TABLE_H

#include <cairn/cairn.h>

#include <stddef.h>
#include <stdint.h>

#define TABLE_DIMS 4
#define TABLE_NAME 160

struct table_tensor {
    char name[TABLE_NAME];
    int dtype;
    uint32_t ndim;
    uint64_t shape[TABLE_DIMS];
    uint64_t section, section_bytes, start; /* where it is filled from */
    uint64_t bytes;
    char *data;
};

struct table {
    struct table_tensor *t;
    size_t n;
    char *memory; /* of all tensors, each at 64 bytes; anonymous, faulted in, huge pages where there are any */
    size_t mapped;
    uint64_t bytes; /* of all tensors, without the gaps */
};

/* Reads the table; with max_bytes not 0, as many tensors as have so many bytes: again from the begin when the table is
 * too short, the last one cut. Returns 0, or -1 after a message on stderr. */
int table_read(struct table *table, const char *path, uint64_t max_bytes);
/* Memory for all tensors, filled from the file when path is given. */
int table_fill(struct table *table, const char *path);
/* The same memory once more, not filled: a place to restore to. */
char *table_memory(size_t bytes);
/* Rewrites one byte in the given share of all pages, each time others. Returns the pages changed. */
size_t table_touch(struct table *table, double share, uint64_t seed);
void table_free(struct table *table);

#endif
