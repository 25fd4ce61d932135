/* SPDX-License-Identifier: Apache-2.0 */
/* Writing a safetensors file (github.com/huggingface/safetensors, README "Format"): an 8-byte little-endian header
 * length, a JSON header padded with spaces, then the tensors without holes. The file is made under a temporary name,
 * mapped, filled by the caller, synced and renamed: it is there as a whole or not at all. */
#ifndef CAIRN_CLIENT_TOOL_SAFETENSORS_H
#define CAIRN_CLIENT_TOOL_SAFETENSORS_H

#include <cairn/cairn.h>
#include <jansson.h>
#include <stdbool.h>

struct safetensors {
    char *path, *temporary;
    json_t *header;
    json_t *metadata; /* strings; borrowed from header */
    uint64_t bytes;   /* of all tensors so far */
    int fd;
    char *map;
    size_t map_len;
    char *data; /* of the first tensor, once mapped */
};

/* path is copied. */
int safetensors_new(const char *path, struct safetensors *ret, struct cairn_error *err);
void safetensors_note(struct safetensors *s, const char *key, const char *value);
/* Adds a tensor; *ret_at is where its bytes go, from data on. EXISTS when the name is taken. */
int safetensors_add(struct safetensors *s, const char *name, int dtype, uint32_t ndim, const uint64_t *shape,
                    uint64_t bytes, uint64_t *ret_at, struct cairn_error *err);
/* Makes and maps the file with its header. */
int safetensors_map(struct safetensors *s, bool overwrite, struct cairn_error *err);
/* Syncs and renames it. */
int safetensors_finish(struct safetensors *s, struct cairn_error *err);
/* Removes what was not finished. */
void safetensors_free(struct safetensors *s);

/* A text file beside them, and a newline at its end: made under a temporary name, synced, renamed over what is there.
 */
int safetensors_write_text(const char *path, const char *text, struct cairn_error *err);

#endif
