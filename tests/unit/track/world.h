/* SPDX-License-Identifier: Apache-2.0 */
/* A simulated trainer, kernel and arena around core/model/track.c: tensors of a few pages that are written to, move and
 * are lost sight of; saves into arena pages that other plans and interrupted saves used before. What a save leaves in
 * the arena must be what the tensors hold. The kernel is a test double here; test_track.c has the real one. */
#ifndef CAIRN_TESTS_UNIT_TRACK_WORLD_H
#define CAIRN_TESTS_UNIT_TRACK_WORLD_H

#include <stddef.h>
#include <stdint.h>

/* Obeys the bytes, one operation after the other. False: a save was not what it should be. ret_skipped: pages that were
 * left out. */
int track_world_run(const uint8_t *bytes, size_t len, uint64_t *ret_skipped);

#endif
