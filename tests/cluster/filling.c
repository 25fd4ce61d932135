/* SPDX-License-Identifier: Apache-2.0 */
/* cluster-filling: a rank that speaks the local protocol itself, to fill its snapshots as slowly and as wrongly as a
 * test wants. One tensor "w" of bytes, of later ranks "wRANK"; what a part holds is a function of the step and the
 * part. Commands come on stdin, a line each, and every one is answered by a line on stdout:
 *
 *     begin STEP         "granted SAVE"
 *     begin STEP packed  the same, of one whose parts may be packed
 *     copy FROM TO       writes these parts: "copied"
 *     pack FROM TO       writes them packed, but every fifth: "copied"
 *     spoil PART         changes a byte of its page: "spoilt"
 *     parts N            PARTS
 *     packed FROM N [X]  PACKED; the first of them is said to have so many bytes
 *     sums SEED P [BAD]  SUMS, of which that of part P is wrong (-1: none); BAD: open, short, again
 *     word               writes the word: "written"
 *     filled             writes the word, and FILLED
 *     drop               DROP
 *     back               connects again with the arena of before (HAND_BACK, OPEN, RESUME)
 *     return             the same without RESUME, as one that has given the save up meanwhile
 *     event              waits for the next event of the save: "event STATE CODE MESSAGE"
 *     check STEP         restores the step and compares: "right"
 *
 * PARTS, PACKED, SUMS, FILLED, DROP and RESUME are answered by "ok", "error CODE MESSAGE" or "gone" (the connection has
 * ended).
 *
 *     cluster-filling JOB MIB [FROZEN [RANK WORLD]]     the first FROZEN parts hold the same in every step */
#include "core/base/bytes.h"
#include "core/base/error.h"
#include "core/model/hash.h"
#include "core/model/layout.h"
#include "core/proto/local.h"
#include "plugins/codec-float/part.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PATIENCE_S 30

struct rank {
    const char *job;
    uint32_t nparts, frozen, rank, world;
    char tensor[16];
    int fd;
    uint32_t next_id;
    int fds[LOCAL_MAX_FDS]; /* with what came last; -1: none */
    int arena_fd, ledger_fd;
    uint64_t arena_id, control_bytes;
    char *map;
    struct hash128 digest;
    uint64_t step, save;
    uint32_t word;
    uint32_t *pages;
    uint32_t *packed;              /* of each part: bytes in its page; 0: it lies there as it is */
    struct local_event events[16]; /* that came between answers */
    unsigned nevents;
    union {
        struct local_header h;
        struct local_opened opened;
        struct local_grant grant;
        struct local_event event;
        struct local_error error;
        char bytes[LOCAL_MAX_MESSAGE];
    } m; /* what came last; at the end: some of these are longer than they say */
};

static void die(const char *what)
{
    perror(what);
    exit(3);
}

static void say(struct rank *r, struct local_header *h, int type, size_t len, const int *fds, unsigned nfds)
{
    char control[CMSG_SPACE(sizeof(int) * LOCAL_MAX_FDS)] = {0};
    struct iovec iov = {h, len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    local_header_init(h, type, len, ++r->next_id);
    if (nfds) {
        msg.msg_control = control;
        msg.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
        memcpy(CMSG_DATA(c), fds, sizeof(int) * nfds);
    }
    (void)sendmsg(r->fd, &msg, MSG_NOSIGNAL); /* an end of the connection is seen by who waits for the answer */
}

/* False at the end of the connection. */
static bool hear(struct rank *r)
{
    char control[256];
    struct iovec iov = {r->m.bytes, sizeof r->m.bytes};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(r->fd, &msg, MSG_CMSG_CLOEXEC);
    struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;

    r->fds[0] = r->fds[1] = -1;
    if (n <= 0)
        return false;
    if (c && c->cmsg_type == SCM_RIGHTS)
        memcpy(r->fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0) <= sizeof r->fds ? c->cmsg_len - CMSG_LEN(0) : 0);
    return true;
}

/* The answer to what was said last; events are kept. */
static bool answer(struct rank *r)
{
    while (hear(r)) {
        if (r->m.h.type != LOCAL_EVENT)
            return true;
        if (r->nevents < 16)
            r->events[r->nevents++] = r->m.event;
    }
    return false;
}

static void print_answer(struct rank *r)
{
    if (!answer(r))
        printf("gone\n");
    else if (r->m.h.type == LOCAL_ERROR && r->m.h.id == 0)
        printf("%s\n", answer(r) ? "still here" : "gone");
    else if (r->m.h.type == LOCAL_ERROR)
        printf("error %d %s\n", r->m.error.code, r->m.error.message);
    else
        printf("ok\n");
}

static void must_answer(struct rank *r, int type, const char *what)
{
    if (answer(r) && r->m.h.type == type)
        return;
    fprintf(stderr, "%s: %s\n", what, r->m.h.type == LOCAL_ERROR ? r->m.error.message : "another answer");
    exit(3);
}

static void dial(struct rank *r)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    struct timeval patience = {PATIENCE_S, 0};

    snprintf(to.sun_path, sizeof to.sun_path, "%s", getenv("CAIRN_SOCKET"));
    r->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (r->fd < 0 || setsockopt(r->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0 ||
        connect(r->fd, (void *)&to, sizeof to) < 0)
        die("connect");
}

static int memfd_of(const void *data, size_t len, bool sealed)
{
    int fd = memfd_create("filling", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || pwrite(fd, data, len, 0) != (ssize_t)len ||
        (sealed && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0))
        die("memfd");
    return fd;
}

static void open_rank(struct rank *r)
{
    struct local_open m = {.rank = r->rank,
                           .world_size = r->world,
                           .timeout_ms = PATIENCE_S * 1000,
                           .arena_bytes = (uint64_t)r->nparts * 3 / 2 * CAIRN_PART};

    snprintf(m.job, sizeof m.job, "%s", r->job);
    snprintf(m.start_id, sizeof m.start_id, "first");
    say(r, &m.h, LOCAL_OPEN, sizeof m, NULL, 0);
    must_answer(r, LOCAL_OPENED, "OPEN");
    if (r->map && r->m.opened.arena_id != r->arena_id) {
        fprintf(stderr, "it got another arena\n");
        exit(3);
    }
    r->arena_fd = r->fds[0];
    r->ledger_fd = r->fds[1];
    r->arena_id = r->m.opened.arena_id;
    r->control_bytes = r->m.opened.control_bytes;
    uint64_t needed = LOCAL_KNOWS_PARTS | LOCAL_KNOWS_SUMS; /* and PACKED, where a test packs */
    if ((r->m.opened.session & needed) != needed) {
        fprintf(stderr, "the daemon does not know PARTS and SUMS\n");
        exit(3);
    }
    if (!r->map)
        r->map =
            mmap(NULL, r->control_bytes + r->m.opened.arena_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, r->arena_fd, 0);
    if (r->map == MAP_FAILED)
        die("mmap");
}

static void send_layout(struct rank *r)
{
    uint64_t n = (uint64_t)r->nparts * CAIRN_PART - 1000; /* the last part is a short one */
    struct cairn_tensor t = {.size = sizeof t, .name = r->tensor, .dtype = CAIRN_BYTES, .ndim = 1, .shape = &n};
    struct cairn_layout l;
    struct bytes encoded = {0};
    struct local_layout m = {.len = 0};

    cairn_layout_init(&l);
    if (cairn_layout_add(&l, &t, NULL) < 0 || cairn_layout_place(&l, NULL) < 0 ||
        cairn_layout_encode(&l, &encoded, NULL) < 0 || l.nparts != r->nparts)
        exit(3);
    r->digest = cairn_layout_digest(encoded.data, encoded.len);
    m.digest_low = r->digest.low;
    m.digest_high = r->digest.high;
    m.len = encoded.len;
    int fd = memfd_of(encoded.data, encoded.len, true);
    say(r, &m.h, LOCAL_LAYOUT, sizeof m, &fd, 1);
    must_answer(r, LOCAL_OK, "LAYOUT");
    close(fd);
    bytes_free(&encoded);
    cairn_layout_free(&l);
}

static void fill_part(const struct rank *r, char *to, uint64_t step, uint32_t part)
{
    uint64_t x = ((part < r->frozen ? 0 : step) << 32 | part) * 0x9e3779b97f4a7c15ull + 1;

    for (size_t i = 0; i < CAIRN_PART; i += 8) {
        x = x * 6364136223846793005ull + 1442695040888963407ull;
        uint64_t v = (x & 0x00ffff00ffff00ffull) | 0x3c00003c00003c00ull; /* some of it is worth packing */
        memcpy(to + i, &v, 8);
    }
}

static uint32_t part_len(const struct rank *r, uint32_t part)
{
    return part + 1 == r->nparts ? CAIRN_PART - 1000 : CAIRN_PART;
}

/* ---- commands -------------------------------------------------------------------------------- */

static void cmd_begin(struct rank *r, uint64_t step, bool packed)
{
    struct local_begin m = {.step = step,
                            .digest_low = r->digest.low,
                            .digest_high = r->digest.high,
                            .wait_ms = PATIENCE_S * 1000,
                            .flags = packed ? LOCAL_BEGIN_PACKED : 0};

    say(r, &m.h, LOCAL_BEGIN, sizeof m, NULL, 0);
    must_answer(r, LOCAL_GRANT, "BEGIN");
    r->step = step;
    r->save = r->m.grant.save;
    r->word = r->m.grant.filled_word;
    r->nevents = 0;
    for (uint32_t i = 0, part = 0; i < r->m.grant.nruns; i++)
        for (uint32_t j = 0; j < r->m.grant.runs[i].npages && part < r->nparts; j++)
            r->pages[part++] = r->m.grant.runs[i].first_page + j;
    printf("granted %llu\n", (unsigned long long)r->save);
}

static char *page_of(const struct rank *r, uint32_t part)
{
    return r->map + r->control_bytes + (size_t)r->pages[part] * CAIRN_PART;
}

static void cmd_copy(struct rank *r, uint32_t from, uint32_t to)
{
    for (uint32_t p = from; p < to && p < r->nparts; p++)
        fill_part(r, page_of(r, p), r->step, p);
    printf("copied\n");
}

/* As a device does it. */
static void cmd_pack(struct rank *r, uint32_t from, uint32_t to)
{
    char *plain = malloc(CAIRN_PART);

    if (!plain)
        die("malloc");
    for (uint32_t p = from; p < to && p < r->nparts; p++) {
        uint32_t len = part_len(r, p);
        fill_part(r, plain, r->step, p);
        r->packed[p] =
            p % 5 == 4 ? 0
                       : (uint32_t)part_encode(kernel_best(), plain, len, CAIRN_BYTES, 0, page_of(r, p), len / 20 * 19);
        if (!r->packed[p] && p % 5 != 4)
            die("a part that cannot be packed");
        if (!r->packed[p])
            memcpy(page_of(r, p), plain, len);
    }
    free(plain);
    printf("copied\n");
}

static void cmd_packed(struct rank *r, uint32_t first, uint32_t n, uint32_t lie)
{
    size_t len = sizeof(struct local_packed) + n * sizeof(uint32_t);
    struct local_packed *m = calloc(1, len);

    if (!m)
        die("malloc");
    m->save = r->save;
    m->first = first;
    m->n = n;
    for (uint32_t i = 0; i < n; i++)
        m->len[i] = first + i < r->nparts ? r->packed[first + i] : 0;
    m->len[0] = lie ? lie : m->len[0];
    say(r, &m->h, LOCAL_PACKED, len, NULL, 0);
    print_answer(r);
    free(m);
}

static void cmd_parts(struct rank *r, uint32_t parts)
{
    struct local_parts m = {.save = r->save, .parts = parts};

    say(r, &m.h, LOCAL_PARTS, sizeof m, NULL, 0);
    print_answer(r);
}

static void cmd_sums(struct rank *r, uint64_t seed, int wrong, const char *bad)
{
    struct local_sums m = {.save = r->save, .seed = seed};
    struct local_sum *sums = calloc(r->nparts, sizeof *sums);
    char *part = malloc(CAIRN_PART);

    if (!sums || !part)
        die("malloc");
    for (uint32_t p = 0; p < r->nparts; p++) {
        fill_part(r, part, r->step, p);
        struct hash128 sum = cairn_hash128_seeded(part, part_len(r, p), seed);
        sums[p] = (struct local_sum){sum.low, sum.high ^ ((int)p == wrong)};
    }
    size_t len = (r->nparts - (strcmp(bad, "short") == 0)) * sizeof *sums;
    int fd = memfd_of(sums, len, strcmp(bad, "open") != 0);
    if (strcmp(bad, "again") == 0) {
        say(r, &m.h, LOCAL_SUMS, sizeof m, &fd, 1);
        must_answer(r, LOCAL_OK, "SUMS");
    }
    say(r, &m.h, LOCAL_SUMS, sizeof m, &fd, 1);
    print_answer(r);
    close(fd);
    free(part);
    free(sums);
}

static void write_word(struct rank *r)
{
    struct local_control *control = (void *)r->map;

    __atomic_store_n(&control->filled[r->word], r->save, __ATOMIC_RELEASE);
}

static void cmd_filled(struct rank *r)
{
    struct local_save m = {.save = r->save};

    write_word(r);
    say(r, &m.h, LOCAL_FILLED, sizeof m, NULL, 0);
    print_answer(r);
}

static void cmd_drop(struct rank *r)
{
    struct local_drop m = {.save = r->save, .step = r->step};

    say(r, &m.h, LOCAL_DROP, sizeof m, NULL, 0);
    print_answer(r);
}

static void cmd_back(struct rank *r, bool asks)
{
    struct local_hand_back back = {.arena_id = r->arena_id, .rank = r->rank};
    struct local_resume resume = {.save = r->save, .step = r->step};
    int fds[2] = {r->arena_fd, r->ledger_fd};

    close(r->fd);
    dial(r);
    snprintf(back.job, sizeof back.job, "%s", r->job);
    snprintf(back.start_id, sizeof back.start_id, "first");
    say(r, &back.h, LOCAL_HAND_BACK, sizeof back, fds, 2);
    must_answer(r, LOCAL_OK, "HAND_BACK");
    close(fds[0]);
    close(fds[1]);
    open_rank(r);
    send_layout(r);
    r->nevents = 0;
    if (!asks) {
        printf("ok\n");
        return;
    }
    say(r, &resume.h, LOCAL_RESUME, sizeof resume, NULL, 0);
    print_answer(r);
}

static void cmd_event(struct rank *r)
{
    if (r->nevents == 0) {
        if (!hear(r) || r->m.h.type != LOCAL_EVENT) {
            printf("gone\n");
            return;
        }
        r->events[r->nevents++] = r->m.event;
    }
    printf("event %d %d %s\n", r->events[0].state, r->events[0].code, r->events[0].message);
    memmove(&r->events[0], &r->events[1], --r->nevents * sizeof r->events[0]);
}

static void cmd_check(struct rank *r, uint64_t step)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_session_options so = {.size = sizeof so, .job = r->job, .flags = CAIRN_OBSERVER};
    uint64_t n = (uint64_t)r->nparts * CAIRN_PART - 1000;
    char *data = malloc((size_t)r->nparts * CAIRN_PART), *want = malloc(CAIRN_PART);
    struct cairn_tensor t = {
        .size = sizeof t, .name = r->tensor, .dtype = CAIRN_BYTES, .ndim = 1, .shape = &n, .data = data};
    struct cairn_session *session = NULL;
    struct cairn_restore *restore = NULL;

    if (!data || !want)
        die("malloc");
    int code = cairn_session_open(&so, &session, &err);
    if (code == 0)
        code = cairn_restore_open(session, step, PATIENCE_S * 1000, &restore, &err);
    if (code == 0)
        code = cairn_restore_add(restore, &t, &err);
    if (code == 0)
        code = cairn_restore_run(restore, PATIENCE_S * 1000, NULL, NULL, &err);
    bool right = code == 0;
    for (uint32_t p = 0; p < r->nparts && right; p++) {
        fill_part(r, want, step, p);
        right = memcmp(data + (size_t)p * CAIRN_PART, want, part_len(r, p)) == 0;
    }
    printf("%s %s\n", right ? "right" : "wrong", code < 0 ? err.message : "");
    cairn_restore_free(restore);
    cairn_session_close(session);
    free(data);
    free(want);
}

static void run(struct rank *r, char *line)
{
    char bad[16] = "";
    unsigned long long a, b, lie = 0;
    int wrong;

    if (sscanf(line, "begin %llu %15s", &a, bad) >= 1)
        cmd_begin(r, a, strcmp(bad, "packed") == 0);
    else if (sscanf(line, "pack %llu %llu", &a, &b) == 2)
        cmd_pack(r, (uint32_t)a, (uint32_t)b);
    else if (sscanf(line, "packed %llu %llu %llu", &a, &b, &lie) >= 2)
        cmd_packed(r, (uint32_t)a, (uint32_t)b, (uint32_t)lie);
    else if (sscanf(line, "spoil %llu", &a) == 1)
        printf("spoilt %d\n", ++page_of(r, (uint32_t)a)[5]);
    else if (sscanf(line, "copy %llu %llu", &a, &b) == 2)
        cmd_copy(r, (uint32_t)a, (uint32_t)b);
    else if (sscanf(line, "parts %llu", &a) == 1)
        cmd_parts(r, (uint32_t)a);
    else if (sscanf(line, "sums %llu %d %15s", &a, &wrong, bad) >= 2)
        cmd_sums(r, a, wrong, bad);
    else if (strcmp(line, "filled\n") == 0)
        cmd_filled(r);
    else if (strcmp(line, "word\n") == 0)
        write_word(r), printf("written\n");
    else if (strcmp(line, "drop\n") == 0)
        cmd_drop(r);
    else if (strcmp(line, "back\n") == 0)
        cmd_back(r, true);
    else if (strcmp(line, "return\n") == 0)
        cmd_back(r, false);
    else if (strcmp(line, "event\n") == 0)
        cmd_event(r);
    else if (sscanf(line, "check %llu", &a) == 1)
        cmd_check(r, a);
    else
        printf("what? %s", line);
}

int main(int argc, char **argv)
{
    struct rank *r = calloc(1, sizeof *r);
    char line[200];

    if (!r || argc < 3 || argc > 6 || !getenv("CAIRN_SOCKET")) {
        fprintf(stderr, "usage: CAIRN_SOCKET=... cluster-filling JOB MIB [FROZEN [RANK WORLD]]\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    r->job = argv[1];
    r->nparts = (uint32_t)strtoul(argv[2], NULL, 10);
    r->frozen = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 0;
    r->rank = argc > 5 ? (uint32_t)strtoul(argv[4], NULL, 10) : 0;
    r->world = argc > 5 ? (uint32_t)strtoul(argv[5], NULL, 10) : 1;
    if (r->rank > 0)
        snprintf(r->tensor, sizeof r->tensor, "w%u", r->rank);
    else
        strcpy(r->tensor, "w");
    r->pages = calloc(r->nparts, sizeof *r->pages);
    r->packed = calloc(r->nparts, sizeof *r->packed);
    dial(r);
    open_rank(r);
    send_layout(r);
    printf("open\n");
    while (fgets(line, sizeof line, stdin))
        run(r, line);
    free(r->pages);
    free(r->packed);
    free(r);
    return 0;
}
