/* SPDX-License-Identifier: Apache-2.0 */
/* Trees in checkpoints: a rank's document, and where the bytes of its files are. */
#ifndef CAIRN_CLIENT_TOOL_FILES_STORED_H
#define CAIRN_CLIENT_TOOL_FILES_STORED_H

#include "client/tool/files.h"

/* Reads and checks a rank's document; entries have the rank. NOT_FOUND: the rank has saved no files. CORRUPT: it is not
 * what `cairn watch` writes; nothing of it is handed out. */
int files_stored(struct cairn_restore *restore, uint32_t rank, uint32_t timeout_ms, struct files *ret,
                 struct cairn_error *err);

struct files_slice {  /* a file's tensor */
    const char *path; /* as long as the restore */
    uint32_t rank;
    uint64_t index; /* for cairn_restore_add_slice() */
    uint64_t bytes; /* of the slice */
};
struct files_slices {
    struct files_slice *list; /* in order of rank and path */
    uint64_t count;
};
int files_slices(struct cairn_restore *restore, struct files_slices *ret, struct cairn_error *err);
void files_slices_free(struct files_slices *s);
/* Of a file; CORRUPT when there is none, or it is shorter than the file. */
int files_slice_of(const struct files_slices *s, const struct files_entry *e, const struct files_slice **ret,
                   struct cairn_error *err);

#endif
