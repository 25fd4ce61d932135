/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels by name, and memory at the edge of what there is: a byte too far is a fault, with sanitizers or without. */
#ifndef CAIRN_TESTS_UNIT_KERNELS_LAUNCH_H
#define CAIRN_TESTS_UNIT_KERNELS_LAUNCH_H

#include <stddef.h>
#include <stdint.h>

/* Fails the test when there is no such kernel. arg: its struct. */
void launch(const char *name, uint32_t blocks, uint32_t threads, const void *arg);
uint64_t next_random(uint64_t *state);
void fill_random(void *p, size_t len, uint64_t seed);

/* len bytes; the first byte behind them cannot be touched. */
uint8_t *edge_alloc(size_t len);
void edge_free(uint8_t *p, size_t len);

#endif
