/* SPDX-License-Identifier: Apache-2.0 */
/* Formats that are Python's own (pickles inside) are read and written in Python, by the package's cairn.convert: this
 * tool becomes that interpreter. */
#ifndef CAIRN_CLIENT_TOOL_CONVERT_H
#define CAIRN_CLIENT_TOOL_CONVERT_H

#include "client/tool/tool.h"

/* Does not return unless there is no interpreter; the exit code is then that of the error. */
int convert_export(const struct tool *t, const char *format, uint64_t step);

#endif
