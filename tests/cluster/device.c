/* SPDX-License-Identifier: Apache-2.0 */
/* cluster-device: a rank whose one tensor lies on a device of the CUDA runtime's double (tests/shim). Commands come on
 * stdin, a line each, and every one is answered by a line on stdout:
 *
 *     save STEP RATE     seals a save of that step; the copy engine moves RATE bytes a second (0: all it can): "sealed"
 *     rate RATE          another rate from here on: "set"
 *     spoil PART         changes a byte of that part once it is in the arena, as nobody should: "spoilt"
 *     wait               "committed", or "failed CODE MESSAGE"
 *     packed             "MIB of it were packed"
 *     check STEP         restores the step to the host and compares: "right"
 *
 *     cluster-device JOB MIB [sums|pack] */
#include "bench/random.h"
#include "tests/shim/shim.h"

#include <cairn/cairn.h>

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cudaMalloc(void **ret, size_t bytes);

#define MIB ((size_t)1 << 20)
#define PATIENCE_MS 60000

struct rank {
    struct cairn_session *session;
    struct cairn_save *save;
    uint64_t bytes, count;
    char *on_device; /* of the double: it is the host's */
};

static void die(const char *what, const struct cairn_error *err)
{
    fprintf(stderr, "%s: %s\n", what, err ? err->message : "failed");
    exit(3);
}

/* Pairs of numbers from 1 to 2, so that packing pays. */
static void fill(char *to, uint64_t bytes, uint64_t step)
{
    for (uint64_t at = 0; at < bytes; at += 8) {
        uint64_t x = (mix(step << 40 ^ at) & 0x007fffff007fffff) | 0x3f8000003f800000;
        memcpy(to + at, &x, 8);
    }
}

static struct cairn_tensor tensor(const struct rank *r, void *data, uint32_t device)
{
    return (struct cairn_tensor){.size = sizeof(struct cairn_tensor),
                                 .name = "w",
                                 .dtype = CAIRN_F32,
                                 .ndim = 1,
                                 .shape = &r->count,
                                 .data = data,
                                 .device = device};
}

static void cmd_save(struct rank *r, uint64_t step, uint64_t rate)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_save_options o = {.size = sizeof o, .step = step, .timeout_ms = PATIENCE_MS};
    struct cairn_tensor t = tensor(r, r->on_device, CAIRN_CUDA(0));

    cairn_save_free(r->save);
    r->save = NULL;
    fill(r->on_device, r->bytes, step);
    shim_speed(rate);
    if (cairn_save_begin(r->session, &o, &r->save, &err) < 0 || cairn_save_add(r->save, &t, &err) < 0 ||
        cairn_save_seal(r->save, &err) < 0)
        die("save", &err);
    printf("sealed\n");
}

static void cmd_rate(uint64_t rate)
{
    shim_speed(rate);
    printf("set\n");
}

static void cmd_wait(struct rank *r)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    int code = cairn_save_wait(r->save, CAIRN_COMMITTED, PATIENCE_MS, &err);

    if (code < 0)
        printf("failed %d %s\n", code, err.message);
    else
        printf("committed\n");
}

static void cmd_packed(const struct rank *r)
{
    struct cairn_save_info info = {.size = sizeof info};

    if (cairn_save_info(r->save, &info) < 0)
        die("info", NULL);
    printf("%" PRIu64 " of it were packed\n", (uint64_t)(info.packed_bytes / MIB));
}

/* The first save of an arena has its parts in the order of its pages, behind the control area. */
static void cmd_spoil(unsigned part)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[400];
    uintptr_t begin = 0;

    while (maps && fgets(line, sizeof line, maps))
        if (strstr(line, "cairn-arena") && strstr(line, "rw-s") && sscanf(line, "%" SCNxPTR, &begin) == 1)
            break;
    if (maps)
        fclose(maps);
    if (!begin)
        die("find the arena", NULL);
    shim_drain(); /* what is on its way would be written over it */
    *(volatile char *)(begin + (2 + part) * MIB + 77) ^= 1;
    printf("spoilt\n");
}

static void cmd_check(const struct rank *r, uint64_t step)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_restore *restore = NULL;
    char *got = malloc(r->bytes), *want = malloc(r->bytes);
    struct cairn_tensor t = tensor(r, got, CAIRN_HOST);

    if (!got || !want || cairn_restore_open(r->session, step, PATIENCE_MS, &restore, &err) < 0 ||
        cairn_restore_add(restore, &t, &err) < 0 || cairn_restore_run(restore, PATIENCE_MS, NULL, NULL, &err) < 0)
        die("restore", &err);
    fill(want, r->bytes, step);
    printf("%s\n", memcmp(got, want, r->bytes) == 0 ? "right" : "wrong");
    cairn_restore_free(restore);
    free(got);
    free(want);
}

static void run(struct rank *r, const char *line)
{
    uint64_t a, b;

    if (sscanf(line, "save %" SCNu64 " %" SCNu64, &a, &b) == 2)
        cmd_save(r, a, b);
    else if (sscanf(line, "rate %" SCNu64, &a) == 1)
        cmd_rate(a);
    else if (sscanf(line, "spoil %" SCNu64, &a) == 1)
        cmd_spoil((unsigned)a);
    else if (strcmp(line, "wait\n") == 0)
        cmd_wait(r);
    else if (strcmp(line, "packed\n") == 0)
        cmd_packed(r);
    else if (sscanf(line, "check %" SCNu64, &a) == 1)
        cmd_check(r, a);
    else
        printf("what? %s", line);
}

int main(int argc, char **argv)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct rank r = {.bytes = argc > 2 ? strtoull(argv[2], NULL, 10) * MIB : 0};
    bool packs = argc > 3 && strcmp(argv[3], "pack") == 0;
    struct cairn_session_options o = {.size = sizeof o,
                                      .world_size = 1,
                                      .start_id = "first",
                                      .arena_bytes = r.bytes * 3 / 2,
                                      .timeout_ms = PATIENCE_MS,
                                      .flags = packs ? CAIRN_PACK : argc > 3 ? CAIRN_SOURCE_SUMS : 0};
    char line[100];

    if (argc < 3)
        return 2;
    r.count = r.bytes / 4;
    o.job = argv[1];
    setenv("CAIRN_CUDART", SHIM_FILE, 1);
    setenv("CAIRN_PLUGIN_PATH", PLUGIN_DIR, 1);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (cairn_session_open(&o, &r.session, &err) < 0 || cairn_session_use_device(r.session, CAIRN_CUDA(0), &err) < 0)
        die("open", &err);
    if (cudaMalloc((void **)&r.on_device, r.bytes) != 0)
        die("cudaMalloc", NULL);
    printf("open\n");
    while (fgets(line, sizeof line, stdin))
        run(&r, line);
    cairn_save_free(r.save);
    cairn_session_close(r.session);
    return 0;
}
