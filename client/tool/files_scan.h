/* SPDX-License-Identifier: Apache-2.0 */
/* Trees of files in directories. Every path is walked component by component from an open directory, and no link is
 * followed on the way: whoever may write there cannot lead us elsewhere. */
#ifndef CAIRN_CLIENT_TOOL_FILES_SCAN_H
#define CAIRN_CLIENT_TOOL_FILES_SCAN_H

#include "client/tool/files.h"

#include <sys/stat.h>

/* Everything below an open directory, which stays the caller's. Refuses what is no file, directory or link of the tree,
 * by name. */
int files_scan(int root, const char *name, struct files *ret, struct cairn_error *err);
/* A number that changes when a file comes, goes, grows or is written to. */
int files_signature(int root, uint64_t *ret_signature, struct cairn_error *err);
/* Opens the directory that a path lies in; *ret_name is its last component, within path. */
int files_open_parent(int root, const char *path, int *ret_fd, const char **ret_name, struct cairn_error *err);
/* Opens a regular file to read, and is not held up by anything else that got its name. */
int files_open(int root, const char *path, int *ret_fd, struct stat *ret_st, struct cairn_error *err);
/* Whether the file is the one that was scanned, as it was then. */
bool files_is_scanned(const struct files_entry *e, const struct stat *st);
/* Removes a directory of dir and all that is in it. */
int files_remove(int dir, const char *name, struct cairn_error *err);

#endif
