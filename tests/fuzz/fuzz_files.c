/* SPDX-License-Identifier: Apache-2.0 */
/* Untrusted documents of files, names, link targets and markers: what is accepted lies within its tree, and comes back
 * the same when it is written again. */
#include "client/tool/files.h"
#include "client/tool/watch_rules.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t fuzz_seed_nth(unsigned i, uint8_t *buf, size_t room);

static size_t put(uint8_t *buf, size_t room, char kind, const char *text, size_t len)
{
    if (len + 1 > room)
        abort();
    buf[0] = (uint8_t)kind;
    memcpy(buf + 1, text, len);
    return len + 1;
}

static size_t seed_document(uint8_t *buf, size_t room)
{
    struct files_entry e[] = {
        {.kind = FILES_DIRECTORY, .path = (char *)"sub", .mode = 0755},
        {.kind = FILES_FILE, .path = (char *)"sub/model.safetensors", .mode = 0644, .size = 1 << 20},
        {.kind = FILES_LINK, .path = (char *)"sub/link", .target = (char *)"../sub"}};
    struct files f;
    char *text = NULL;
    size_t len = 0;

    files_init(&f);
    files_set_name(&f, "global_step5", NULL);
    files_set_tracker(&f, "latest", "global_step5", NULL);
    for (size_t i = 0; i < 3; i++)
        files_add(&f, &e[i], NULL);
    if (files_finish(&f, NULL) < 0 || files_encode(&f, &text, &len, NULL) < 0)
        abort();
    len = put(buf, room, 'd', text, len);
    free(text);
    files_free(&f);
    return len;
}

size_t fuzz_seed_nth(unsigned i, uint8_t *buf, size_t room)
{
    static const char *const seeds[] = {"pa/b/../c.bin-0123456789", "ta/b/link\0../../c/d-0123456789",
                                        "nepoch=1-step=300-of-0000001000",
                                        "m{\"global_step\": 500, \"log_history\": []}"};
    static const size_t lens[] = {25, 30, 32, 41};

    if (i % 5 == 0)
        return seed_document(buf, room);
    return put(buf, room, seeds[i % 5 - 1][0], seeds[i % 5 - 1] + 1, lens[i % 5 - 1] - 1);
}

/* An independent check: no component but names. */
static void must_be_inside(const char *path)
{
    if (path[0] == '/' || !*path)
        abort();
    for (const char *at = path; at;) {
        size_t len = strcspn(at, "/");
        if (len == 0 || len > 255 || (len == 1 && at[0] == '.') || (len == 2 && at[0] == '.' && at[1] == '.'))
            abort();
        at = at[len] ? at + len + 1 : NULL;
    }
    for (const char *c = path; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            abort();
}

static void target_must_be_inside(const char *path, const char *target)
{
    int depth = 0;

    if (target[0] == '/' || !*target)
        abort();
    for (const char *c = path; *c; c++)
        depth += *c == '/';
    for (const char *at = target; at;) {
        size_t len = strcspn(at, "/");
        depth += len == 2 && at[0] == '.' && at[1] == '.' ? -1 : 1;
        if (depth < 0)
            abort();
        at = at[len] ? at + len + 1 : NULL;
    }
}

static void document(const char *text, size_t len)
{
    struct files f, g;
    char *again;
    size_t n;

    if (files_decode(&f, text, len, NULL) < 0)
        return;
    must_be_inside(f.name);
    for (uint32_t i = 0; i < f.count; i++) {
        must_be_inside(f.entries[i].path);
        if (f.entries[i].kind == FILES_LINK)
            target_must_be_inside(f.entries[i].path, f.entries[i].target);
        if (f.entries[i].mode & ~0777u)
            abort();
    }
    if (files_encode(&f, &again, &n, NULL) < 0 || files_decode(&g, again, n, NULL) < 0 || !files_describe(&g, &f))
        abort();
    free(again);
    files_free(&f);
    files_free(&g);
}

static void names(char kind, char *text, size_t len)
{
    const char *second = memchr(text, '\0', len);
    uint64_t step;

    if (kind == 'p' && files_path_check(text, NULL) == 0)
        must_be_inside(text);
    if (kind == 't' && second && files_path_check(text, NULL) == 0 && files_target_check(text, second + 1, NULL) == 0)
        target_must_be_inside(text, second + 1);
    if (kind == 'n') {
        (void)watch_step_of("**", text, &step);
        (void)watch_step_of("epoch=*-step=*", text, &step);
        if (watch_step_of("*", text, &step) && strspn(text, "0123456789") != strlen(text))
            abort();
    }
    if (kind == 'm') {
        (void)watch_marker_says(watch_preset("hf"), text, len, "checkpoint-500", 500);
        (void)watch_marker_says(watch_preset("megatron"), text, len, "iter_0000500", 500);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (len < 1)
        return 0;
    char *text = malloc(len + 1); /* with two ends: names are strings */
    if (!text)
        return 0;
    memcpy(text, data + 1, len - 1);
    text[len - 1] = text[len] = '\0';
    if (data[0] == 'd')
        document(text, len - 1);
    else
        names((char)data[0], text, len - 1);
    free(text);
    return 0;
}
