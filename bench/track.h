/* SPDX-License-Identifier: Apache-2.0 */
/* Whether this build of the library can copy changed pages only: one line. */
#ifndef CAIRN_BENCH_TRACK_H
#define CAIRN_BENCH_TRACK_H

#define BENCH_TRACKS 1 /* 0 for a library without CAIRN_TRACK and cairn_save_info */

#if BENCH_TRACKS
#define BENCH_TRACK_FLAG CAIRN_TRACK
#else
#define BENCH_TRACK_FLAG 0
#endif

#endif
