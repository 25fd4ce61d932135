/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CAIRN_TESTS_SHIM_EMULATE_EMULATE_H
#define CAIRN_TESTS_SHIM_EMULATE_EMULATE_H

#include <stdint.h>

/* Runs kernel(args) once for each thread of the grid. */
void emulate_grid(const char *name, void (*kernel)(void **args), const uint32_t grid[3], const uint32_t block[3],
                  void **args);

#endif
