/* SPDX-License-Identifier: Apache-2.0 */
/* cluster-put JOB STEP NAME FILE [NAME FILE]...: saves files' bytes as tensors of any name and waits for the commit, so
 * that tests can store what no tool of ours would. */
#include <cairn/cairn.h>

#include <stdio.h>
#include <stdlib.h>

static int put(struct cairn_save *save, const char *name, const char *path, struct cairn_error *err)
{
    static char room[8 << 20]; /* all files, until the seal */
    static size_t used;
    FILE *f = fopen(path, "rb");
    uint64_t bytes = f ? fread(room + used, 1, sizeof room - used, f) : 0;
    struct cairn_tensor t = {
        .size = sizeof t, .name = name, .dtype = CAIRN_BYTES, .ndim = 1, .shape = &bytes, .data = room + used};

    if (f)
        fclose(f);
    used += bytes;
    return cairn_save_add(save, &t, err);
}

int main(int argc, char **argv)
{
    struct cairn_session_options so = {.size = sizeof so, .world_size = 1, .arena_bytes = 16 << 20};
    struct cairn_save_options o = {.size = sizeof o};
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_session *session = NULL;
    struct cairn_save *save = NULL;

    if (argc < 5 || argc % 2 == 0)
        return 2;
    so.job = argv[1];
    o.step = strtoull(argv[2], NULL, 10);
    int r = cairn_session_open(&so, &session, &err);
    if (r == 0)
        r = cairn_save_begin(session, &o, &save, &err);
    for (int i = 3; i < argc && r == 0; i += 2)
        r = put(save, argv[i], argv[i + 1], &err);
    if (r == 0)
        r = cairn_save_seal(save, &err);
    if (r == 0)
        r = cairn_save_wait(save, CAIRN_COMMITTED, 30000, &err);
    if (r < 0)
        fprintf(stderr, "%s\n", err.message);
    cairn_save_free(save);
    cairn_session_close(session);
    return r < 0;
}
