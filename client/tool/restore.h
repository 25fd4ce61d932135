/* SPDX-License-Identifier: Apache-2.0 */
/* cairn restore to safetensors: what the ways of cutting a checkpoint into files share. */
#ifndef CAIRN_CLIENT_TOOL_RESTORE_H
#define CAIRN_CLIENT_TOOL_RESTORE_H

#include "client/tool/safetensors.h"
#include "client/tool/tool.h"

#include <time.h>

struct job {
    struct tool *t;
    struct cairn_restore *restore;
    struct cairn_checkpoint_info info;
    const char *name;
    json_t *files; /* that were written, for --json */
    bool terminal;
    struct timespec begin;
};

/* A file of the given name in --to, with where it comes from in its metadata. */
int job_file_new(struct job *j, const char *name, struct safetensors *ret, struct cairn_error *err);
/* With r 0 reads what was added to the restore, finishes the file and notes it; frees it in any case. Returns r or
 * what failed. */
int job_file_end(struct job *j, struct safetensors *s, int r, struct cairn_error *err);
/* Notes a file that is there. */
void job_note_file(struct job *j, const char *path, uint64_t bytes);

uint64_t job_bytes_of(int dtype, uint32_t ndim, const uint64_t *length);
/* --only: whether a tensor goes out. */
bool job_wants(const struct job *j, const char *name);
/* --strip: the tensor's name in the file; a part of name. */
const char *job_name_out(const struct job *j, const char *name);
/* What is no tensor of the model but Cairn's own: the structure of a state dict and what is in it beside tensors. */
bool job_is_document(const char *name);

/* One file for each rank. */
int restore_ranks(struct job *j, struct cairn_error *err);
/* Whole tensors, in one file or in several with an index. */
int restore_merged(struct job *j, struct cairn_error *err);

#endif
