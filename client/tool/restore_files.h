/* SPDX-License-Identifier: Apache-2.0 */
/* cairn restore --format files: the directory that `cairn watch` has taken up, written again into --to under its own
 * name: of all ranks together, or with --rank of one. Returns an exit code. */
#ifndef CAIRN_CLIENT_TOOL_RESTORE_FILES_H
#define CAIRN_CLIENT_TOOL_RESTORE_FILES_H

#include "client/tool/tool.h"

int restore_files(struct tool *t, uint64_t step);

#endif
