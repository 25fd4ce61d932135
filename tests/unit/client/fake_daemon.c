/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/client/fake_daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "core/model/catalog.h"
#include "core/model/stripe.h"
#include "core/model/hash.h"
#include "core/model/units.h"

#define MAX_CONNECTIONS 16
#define MAX_SHARDS 64
#define MAX_LAYOUTS 64
#define MAX_TYPES 128
#define MAX_GRANTED 16
#define CONTROL ((uint64_t)64 << 10)
#define SLOTS 3
#define SLOT_PARTS 4

struct shard { /* one rank's image of one step */
    uint64_t step;
    uint32_t rank, world_size;
    struct cairn_layout layout;
    char *image;
};

struct known {
    struct hash128 digest;
    struct cairn_layout layout;
};

struct granted { /* a save: several may be under way */
    uint64_t save, step;
    uint32_t layout, word;
    uint32_t *pages;
    bool packed;          /* it was begun as one that may be */
    uint32_t parts;       /* that were said to be in place */
    struct hash128 *said; /* what they were then */
    struct hash128 *sums; /* of the source */
    uint64_t seed;
};

struct connection {
    int fd;
    struct local_open open;
    char *arena; /* mapping */
    int handed;  /* descriptor of the arena that was handed back, or 0 */
    uint64_t handed_id;
    uint64_t arena_bytes;
    struct known layouts[MAX_LAYOUTS];
    unsigned nlayouts;
    uint64_t next_save;
    struct granted granted[MAX_GRANTED]; /* a ring */
    /* The newest save. */
    uint64_t save, step;
    uint32_t layout, word;
    uint32_t *pages;
    /* The restore that is open. */
    uint64_t restore_step;
    char *window;
    struct local_read reads[SLOTS];
    unsigned nreads;
};

struct held { /* a FAKE_LATE answer */
    int fd;
    size_t len;
    char message[64 << 10];
};

struct fake {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    char dir[64], path[96];
    int listener, wake;
    bool stop, restart, away, event_now, take_back, places;
    unsigned wander, copying, summed;
    uint64_t next_arena, knows;
    fake_unpack_fn unpack;
    int event_state, event_code, last_state, last_code;
    enum fake_fault fault[MAX_TYPES];
    int fault_code[MAX_TYPES], fault_times[MAX_TYPES];
    unsigned count[MAX_TYPES];
    char complaint[496];
    struct shard shards[MAX_SHARDS];
    unsigned nshards;
    struct connection connections[MAX_CONNECTIONS];
    struct held held[4];
    unsigned nheld;
};

static void complain(struct fake *f, const char *what)
{
    if (!f->complaint[0])
        (void)snprintf(f->complaint, sizeof(f->complaint), "%s", what);
}

static void must(bool ok, const char *what)
{
    if (!ok) {
        perror(what);
        abort(); /* the double itself is broken */
    }
}

/* ---- sending --------------------------------------------------------------------------------- */

static void send_message(int fd, const void *message, size_t len, const int *fds, unsigned nfds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control = {0};
    struct iovec iov = {(void *)message, len};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

    if (nfds) {
        m.msg_control = control.bytes;
        m.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        struct cmsghdr *h = CMSG_FIRSTHDR(&m);
        *h = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(nfds * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(h), fds, nfds * sizeof(int));
    }
    (void)!sendmsg(fd, &m, MSG_NOSIGNAL); /* the client may be gone: its tests look at its side */
}

static void send_error(int fd, uint32_t id, int code, const char *text)
{
    struct local_error e = {.code = code};

    local_header_init(&e.h, LOCAL_ERROR, sizeof(e), id);
    (void)snprintf(e.message, sizeof(e.message), "%s", text);
    send_message(fd, &e, sizeof(e), NULL, 0);
}

static void send_ok(int fd, uint32_t id)
{
    struct local_ok ok;

    local_header_init(&ok.h, LOCAL_OK, sizeof(ok), id);
    send_message(fd, &ok, sizeof(ok), NULL, 0);
}

static void send_event(int fd, uint64_t save, int state, int code)
{
    struct local_event e = {.save = save, .state = state, .code = code};

    local_header_init(&e.h, LOCAL_EVENT, sizeof(e), 0);
    if (code)
        (void)snprintf(e.message, sizeof(e.message), "rank 7 did not come");
    send_message(fd, &e, sizeof(e), NULL, 0);
}

/* Sends an answer as the fault of its request wants it. */
static void answer(struct fake *f, struct connection *c, enum fake_fault fault, void *message, size_t len,
                   const int *fds, unsigned nfds)
{
    struct local_header *h = message;

    if (fault == FAKE_WRONG_ID)
        h->id += 1000;
    if (fault == FAKE_LATE && f->nheld < 4 && len <= sizeof(f->held[0].message)) {
        struct held *late = &f->held[f->nheld++];
        late->fd = c->fd;
        late->len = len;
        memcpy(late->message, message, len);
        return;
    }
    send_message(c->fd, message, len, fds, nfds);
}

/* ---- connections ----------------------------------------------------------------------------- */

static void drop_layouts(struct connection *c)
{
    for (unsigned i = 0; i < c->nlayouts; i++)
        cairn_layout_free(&c->layouts[i].layout);
    c->nlayouts = 0;
}

static void forget_granted(struct granted *g)
{
    free(g->pages);
    free(g->said);
    free(g->sums);
    *g = (struct granted){0};
}

static void hang_up(struct connection *c)
{
    if (c->fd < 0)
        return;
    close(c->fd);
    if (c->arena)
        munmap(c->arena, CONTROL + c->arena_bytes);
    if (c->window)
        munmap(c->window, SLOTS * SLOT_PARTS * CAIRN_PART);
    drop_layouts(c);
    for (unsigned i = 0; i < MAX_GRANTED; i++)
        forget_granted(&c->granted[i]);
    if (c->handed)
        close(c->handed);
    free(c->pages);
    *c = (struct connection){.fd = -1};
}

static int memory(uint64_t len, int seals, char **ret_map)
{
    int fd = memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    must(fd >= 0 && ftruncate(fd, (off_t)len) == 0, "memfd");
    *ret_map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(*ret_map != MAP_FAILED, "mmap");
    must(!seals || fcntl(fd, F_ADD_SEALS, seals) == 0, "seal");
    return fd;
}

static void on_open(struct fake *f, struct connection *c, enum fake_fault fault, const struct local_open *m)
{
    struct local_opened a = {.session = 1 | f->knows};
    int fd = -1, fds[2];

    c->open = *m;
    local_header_init(&a.h, LOCAL_OPENED, sizeof(a), m->h.id);
    if (c->handed) {
        a.incarnation = 5;
        a.control_bytes = CONTROL;
        a.arena_id = c->handed_id;
        fd = c->handed;
        c->handed = 0;
        c->arena_bytes = a.arena_bytes = round_up_u64(m->arena_bytes, CAIRN_PART);
        c->arena = mmap(NULL, CONTROL + c->arena_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        must(c->arena != MAP_FAILED, "mmap");
    } else if (!(m->flags & CAIRN_OBSERVER)) {
        a.incarnation = 5;
        a.arena_id = ++f->next_arena;
        a.control_bytes = CONTROL;
        c->arena_bytes = a.arena_bytes = round_up_u64(m->arena_bytes, CAIRN_PART);
        fd = memory(CONTROL + c->arena_bytes, fault == FAKE_UNSEALED ? 0 : F_SEAL_SHRINK | F_SEAL_GROW, &c->arena);
        memset(c->arena + CONTROL, 0xa5, c->arena_bytes); /* what an earlier save left behind */
        if (fault == FAKE_BAD_VALUE)
            a.arena_bytes *= 2;
        if (fault == FAKE_WRONG_FD) {
            close(fd);
            fd = eventfd(0, EFD_CLOEXEC);
        }
    }
    fds[0] = fds[1] = fd; /* there is no ledger here: a client only keeps its descriptor */
    answer(f, c, fault, &a, sizeof(a), fds, fd >= 0 ? 2 : 0);
    if (fd >= 0)
        close(fd);
}

static void on_hand_back(struct fake *f, struct connection *c, const struct local_hand_back *m, int *fds)
{
    f->copying = m->copying;
    if (!f->take_back) {
        send_error(c->fd, m->h.id, CAIRN_E_INVAL, "the fake wants no arena back");
        return;
    }
    c->handed = fds[0];
    fds[0] = -1;
    c->handed_id = m->arena_id;
    send_ok(c->fd, m->h.id);
}

/* ---- saves ----------------------------------------------------------------------------------- */

static void on_resume(struct fake *f, struct connection *c, const struct local_resume *m)
{
    c->save = m->save;
    c->step = m->step;
    c->next_save = m->save;
    send_ok(c->fd, m->h.id);
    if (f->last_state)
        send_event(c->fd, m->save, f->last_state, 0);
}

static void on_layout(struct fake *f, struct connection *c, const struct local_layout *m, int fd)
{
    struct known *k = &c->layouts[c->nlayouts];
    char *bytes = malloc(m->len);
    struct cairn_error err = CAIRN_ERROR_INIT;

    must(bytes && c->nlayouts < MAX_LAYOUTS, "layouts");
    if (pread(fd, bytes, m->len, 0) != (ssize_t)m->len || !(fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK))
        complain(f, "the layout's memfd is short or not sealed");
    struct hash128 digest = cairn_layout_digest(bytes, m->len);
    if (digest.low != m->digest_low || digest.high != m->digest_high)
        complain(f, "the layout's digest is not its own");
    cairn_layout_init(&k->layout);
    if (cairn_layout_decode(&k->layout, bytes, m->len, &err) < 0) {
        complain(f, err.message);
    } else {
        k->digest = digest;
        c->nlayouts++;
    }
    free(bytes);
    send_ok(c->fd, m->h.id);
}

static void note_granted(struct connection *c, uint32_t nparts, bool packed)
{
    struct granted *g = &c->granted[c->save % MAX_GRANTED];

    forget_granted(g);
    *g = (struct granted){.save = c->save, .step = c->step, .layout = c->layout, .word = c->word, .packed = packed};
    g->pages = malloc((nparts + 1) * sizeof(*g->pages));
    g->said = calloc(nparts + 1, sizeof(*g->said));
    must(g->pages && g->said, "granted");
    memcpy(g->pages, c->pages, nparts * sizeof(*g->pages));
}

static struct granted *find_granted(struct connection *c, uint64_t save)
{
    struct granted *g = &c->granted[save % MAX_GRANTED];

    return save && g->save == save ? g : NULL;
}

static char *part_of(const struct connection *c, const struct granted *g, uint32_t part)
{
    return c->arena + CONTROL + g->pages[part] * CAIRN_PART;
}

/* What the next part is, which is not to change any more. */
static void note_part(const struct connection *c, struct granted *g)
{
    g->said[g->parts] =
        cairn_hash128(part_of(c, g, g->parts), cairn_layout_part_len(&c->layouts[g->layout].layout, g->parts));
    g->parts++;
}

static void unpack_part(struct fake *f, const struct connection *c, const struct granted *g, uint32_t len)
{
    const struct cairn_layout *l = &c->layouts[g->layout].layout;
    char *page = part_of(c, g, g->parts);
    char *from = malloc(len);

    must(from != NULL, "packed bytes");
    memcpy(from, page, len);
    if (len >= cairn_layout_part_len(l, g->parts) || !f->unpack ||
        f->unpack(from, len, cairn_layout_part_dtype(l, g->parts), page, cairn_layout_part_len(l, g->parts)) != 0)
        complain(f, "a part does not lie as PACKED says");
    free(from);
}

static void on_packed(struct fake *f, struct connection *c, enum fake_fault fault, const struct local_packed *m)
{
    struct granted *g = find_granted(c, m->save);
    struct local_ok ok;

    if (fault == FAKE_WELL &&
        (!g || !g->packed || m->first != g->parts || m->n > c->layouts[g->layout].layout.nparts - g->parts))
        complain(f, "PACKED of no save, of a plain one, or of parts that are not the next ones");
    for (uint32_t i = 0; fault == FAKE_WELL && !f->complaint[0] && i < m->n; i++) {
        if (m->len[i])
            unpack_part(f, c, g, m->len[i]);
        note_part(c, g);
    }
    local_header_init(&ok.h, LOCAL_OK, sizeof(ok), m->h.id);
    answer(f, c, fault, &ok, sizeof(ok), NULL, 0);
}

static void on_parts(struct fake *f, struct connection *c, const struct local_parts *m)
{
    struct granted *g = find_granted(c, m->save);

    send_ok(c->fd, m->h.id);
    if (!g || g->packed || m->parts <= g->parts || m->parts > c->layouts[g->layout].layout.nparts) {
        complain(f, "PARTS of no save, too many, or fewer than before");
        return;
    }
    while (g->parts < m->parts)
        note_part(c, g);
}

static void on_sums(struct fake *f, struct connection *c, const struct local_sums *m, int fd)
{
    struct granted *g = find_granted(c, m->save);

    send_ok(c->fd, m->h.id);
    if (!g || g->sums) {
        complain(f, "SUMS of no save, or twice");
        return;
    }
    size_t len = c->layouts[g->layout].layout.nparts * sizeof(*g->sums);
    g->sums = malloc(len);
    g->seed = m->seed;
    must(g->sums != NULL, "sums");
    if (pread(fd, g->sums, len, 0) != (ssize_t)len || !(fcntl(fd, F_GET_SEALS) & F_SEAL_WRITE))
        complain(f, "the sums' memfd is short or not sealed");
}

/* What was said of the parts before is what they are. */
static void check_said(struct fake *f, const struct connection *c, const struct granted *g)
{
    const struct cairn_layout *l = &c->layouts[g->layout].layout;

    f->summed = 0;
    for (uint32_t p = 0; p < l->nparts; p++) {
        struct hash128 is = {0};
        if (p < g->parts)
            is = cairn_hash128(part_of(c, g, p), cairn_layout_part_len(l, p));
        if (p < g->parts && memcmp(&is, &g->said[p], sizeof(is)) != 0)
            complain(f, "a part has changed after it was said to be in place");
        if (!g->sums || !(g->sums[p].low | g->sums[p].high))
            continue;
        is = cairn_hash128_seeded(part_of(c, g, p), cairn_layout_part_len(l, p), g->seed);
        f->summed++;
        if (memcmp(&is, &g->sums[p], sizeof(is)) != 0)
            complain(f, "a part is not what its sum says");
    }
}

/* Pages from the arena's end downwards in runs of 1, 2, 3, 1, ... pages: nothing lies where a careless client expects
 * it. */
static void on_begin(struct fake *f, struct connection *c, enum fake_fault fault, const struct local_begin *m)
{
    struct local_grant *g = calloc(1, sizeof(*g) + LOCAL_MAX_RUNS * sizeof(g->runs[0]));
    uint32_t at = (uint32_t)(c->arena_bytes / CAIRN_PART), n = 0;

    must(g != NULL, "grant");
    for (c->layout = 0; c->layout < c->nlayouts; c->layout++)
        if (c->layouts[c->layout].digest.low == m->digest_low)
            break;
    if (c->layout == c->nlayouts) {
        send_error(c->fd, m->h.id, CAIRN_E_NOT_FOUND, "no such layout");
        free(g);
        return;
    }
    uint32_t nparts = c->layouts[c->layout].layout.nparts;
    if (nparts > at) {
        send_error(c->fd, m->h.id, CAIRN_E_TOO_LARGE, "larger than the arena");
        free(g);
        return;
    }
    uint64_t ahead = (uint64_t)nparts * (f->wander ? c->next_save % f->wander : 0);
    at -= ahead + nparts <= at ? (uint32_t)ahead : 0;
    free(c->pages);
    c->pages = malloc((nparts + 1) * sizeof(*c->pages));
    must(c->pages != NULL, "pages");
    while (n < nparts) {
        uint32_t len = 1 + g->nruns % 3;
        if (len > nparts - n)
            len = nparts - n;
        at -= len;
        g->runs[g->nruns++] = (struct local_run){at, len};
        for (uint32_t i = 0; i < len; i++)
            c->pages[n++] = at + i;
    }
    if (fault == FAKE_BAD_VALUE && g->nruns)
        g->runs[0].first_page += 1u << 20;
    g->save = c->save = ++c->next_save;
    g->filled_word = c->word = (uint32_t)(c->save * 7 % LOCAL_FILLED_WORDS);
    c->step = m->step;
    note_granted(c, nparts, m->flags & LOCAL_BEGIN_PACKED);
    size_t len = sizeof(*g) + g->nruns * sizeof(g->runs[0]);
    local_header_init(&g->h, LOCAL_GRANT, len, m->h.id);
    answer(f, c, fault, g, len, NULL, 0);
    free(g);
}

/* Bytes of the image that no slice has must be zero within the parts' lengths. */
static void check_gaps(struct fake *f, const struct cairn_layout *l, const char *image)
{
    char *used = calloc(l->nparts ? l->nparts : 1, CAIRN_PART);

    must(used != NULL, "gaps");
    for (uint32_t i = 0; i < l->nslices; i++)
        memset(used + l->slices[i].image_offset, 1, l->slices[i].bytes);
    for (uint32_t p = 0; p < l->nparts; p++)
        for (size_t i = p * CAIRN_PART, end = i + cairn_layout_part_len(l, p); i < end; i++) {
            const char *unused = memchr(used + i, 0, end - i);
            i = unused ? (size_t)(unused - used) : end;
            if (unused && image[i])
                complain(f, "a gap is not zero");
        }
    free(used);
}

static void copy_layout(struct cairn_layout *to, const struct cairn_layout *from)
{
    struct bytes b = {0};

    must(cairn_layout_encode(from, &b, NULL) == 0, "encode");
    cairn_layout_init(to);
    must(cairn_layout_decode(to, b.data, b.len, NULL) == 0, "decode");
    bytes_free(&b);
}

static void keep_image(struct fake *f, struct connection *c, const struct granted *g)
{
    const struct cairn_layout *l = &c->layouts[g->layout].layout;
    struct shard *s = &f->shards[f->nshards++ % MAX_SHARDS];

    if (s->image) {
        free(s->image);
        cairn_layout_free(&s->layout);
    }
    *s = (struct shard){.step = g->step, .rank = c->open.rank, .world_size = c->open.world_size};
    copy_layout(&s->layout, l);
    s->image = malloc((l->nparts ? l->nparts : 1) * CAIRN_PART);
    must(s->image != NULL, "image");
    for (uint32_t p = 0; p < l->nparts; p++)
        memcpy(s->image + p * CAIRN_PART, part_of(c, g, p), CAIRN_PART);
    check_gaps(f, l, s->image);
}

static void on_filled(struct fake *f, struct connection *c, enum fake_fault fault, const struct local_save *m)
{
    struct local_ok ok;
    struct local_control *control = (struct local_control *)(void *)c->arena;

    const struct granted *g = find_granted(c, m->save);
    if (!g || __atomic_load_n(&control->filled[g->word], __ATOMIC_ACQUIRE) != m->save)
        complain(f, "FILLED without the filled word");
    if (g && g->packed && g->parts != c->layouts[g->layout].layout.nparts)
        complain(f, "FILLED before PACKED has told of all parts");
    if (g) {
        check_said(f, c, g);
        keep_image(f, c, g);
    }
    local_header_init(&ok.h, LOCAL_OK, sizeof(ok), m->h.id);
    answer(f, c, fault, &ok, sizeof(ok), NULL, 0);
    for (int state = CAIRN_SNAPSHOT; state <= f->last_state; state++)
        send_event(c->fd, m->save, state, 0);
    if (f->last_code)
        send_event(c->fd, m->save, 0, f->last_code);
}

static void on_why(struct connection *c, const struct local_save *m)
{
    struct local_text t = {0};

    local_header_init(&t.h, LOCAL_TEXT, sizeof(t), m->h.id);
    (void)snprintf(t.text, sizeof(t.text), "waiting for peer p3");
    send_message(c->fd, &t, sizeof(t), NULL, 0);
}

/* ---- restores -------------------------------------------------------------------------------- */

static const struct shard *find_shard(const struct fake *f, uint64_t step, uint32_t rank)
{
    for (unsigned i = f->nshards; i-- > 0 && i + MAX_SHARDS >= f->nshards;)
        if (f->shards[i % MAX_SHARDS].step == step && f->shards[i % MAX_SHARDS].rank == rank)
            return &f->shards[i % MAX_SHARDS];
    return NULL;
}

static uint64_t latest(const struct fake *f)
{
    uint64_t step = 0;

    for (unsigned i = 0; i < f->nshards && i < MAX_SHARDS; i++)
        if (f->shards[i].step > step)
            step = f->shards[i].step;
    return step;
}

static void cut_chunks(struct cairn_catalog_shard *s)
{
    s->chunks = calloc(s->layout.nparts ? s->layout.nparts : 1, sizeof(*s->chunks));
    must(s->chunks != NULL, "chunks");
    for (uint32_t p = 0; p < s->layout.nparts;) {
        uint32_t n = cairn_chunk_parts(&s->layout, p, SLOT_PARTS);
        s->chunks[s->nchunks++] = (struct cairn_chunk_range){p, n};
        p += n;
    }
}

static int make_catalog(struct fake *f, uint64_t step, struct cairn_catalog *cat)
{
    const struct shard *first = find_shard(f, step, 0);

    if (!first)
        return CAIRN_E_NOT_FOUND;
    cat->step = step;
    cat->incarnation = 5;
    cat->world_size = cat->nshards = first->world_size;
    cat->shards = calloc(cat->nshards, sizeof(*cat->shards));
    must(cat->shards != NULL, "catalog");
    for (uint32_t i = 0; i < cat->nshards; i++) {
        const struct shard *s = find_shard(f, step, i);
        if (!s)
            return CAIRN_E_NOT_FOUND;
        cat->shards[i].rank = i;
        copy_layout(&cat->shards[i].layout, &s->layout);
        cut_chunks(&cat->shards[i]);
    }
    return 0;
}

static void on_restore_open(struct fake *f, struct connection *c, enum fake_fault fault,
                            const struct local_restore_open *m)
{
    struct cairn_catalog cat;
    struct bytes b = {0};
    struct local_restore_opened a = {.restore = 9, .slots = SLOTS, .slot_parts = SLOT_PARTS};
    char *map;
    int fds[2];

    cairn_catalog_init(&cat);
    c->restore_step = m->step == CAIRN_LATEST ? latest(f) : m->step;
    if (make_catalog(f, c->restore_step, &cat) < 0) {
        send_error(c->fd, m->h.id, CAIRN_E_NOT_FOUND, "no such checkpoint");
        cairn_catalog_free(&cat);
        return;
    }
    must(cairn_catalog_encode(&cat, &b, NULL) == 0, "catalog");
    a.catalog_bytes = b.len;
    fds[0] = memory(b.len, 0, &map);
    memcpy(map, b.data, b.len);
    if (fault == FAKE_BAD_VALUE)
        memset(map, 0xff, b.len < 16 ? b.len : 16);
    munmap(map, b.len);
    must(fcntl(fds[0], F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0, "seal");
    if (c->window)
        munmap(c->window, SLOTS * SLOT_PARTS * CAIRN_PART);
    fds[1] =
        memory(SLOTS * SLOT_PARTS * CAIRN_PART, fault == FAKE_UNSEALED ? 0 : F_SEAL_SHRINK | F_SEAL_GROW, &c->window);
    local_header_init(&a.h, LOCAL_RESTORE_OPENED, sizeof(a), m->h.id);
    answer(f, c, fault, &a, sizeof(a), fds, 2);
    close(fds[0]);
    close(fds[1]);
    bytes_free(&b);
    cairn_catalog_free(&cat);
}

/* What was not asked for is filled with rubbish. */
static void serve_read(struct fake *f, struct connection *c, const struct local_read *m)
{
    const struct shard *s = find_shard(f, c->restore_step, m->shard);
    char *slot = c->window + m->slot * SLOT_PARTS * CAIRN_PART;
    uint32_t first = 0, n = 0;

    must(s != NULL && m->slot < SLOTS, "read");
    for (uint32_t i = 0; first < s->layout.nparts; i++, first += n) {
        n = cairn_chunk_parts(&s->layout, first, SLOT_PARTS);
        if (i == m->chunk)
            break;
    }
    must(first < s->layout.nparts, "chunk");
    memset(slot, 0xee, SLOT_PARTS * CAIRN_PART);
    for (uint32_t i = 0; i < n; i++)
        if (m->part_mask >> i & 1)
            memcpy(slot + i * CAIRN_PART, s->image + (first + i) * CAIRN_PART,
                   cairn_layout_part_len(&s->layout, first + i));
    struct local_read_done done = {.slot = m->slot};
    local_header_init(&done.h, LOCAL_READ_DONE, sizeof(done), m->h.id);
    send_message(c->fd, &done, sizeof(done), NULL, 0);
}

/* Only of the newest save: its pages are known. */
static bool make_places(struct fake *f, const struct connection *c, const struct local_places *m,
                        struct local_place **ret_places, uint32_t *ret_n)
{
    const struct shard *s = find_shard(f, c->restore_step, m->shard);
    uint32_t first = 0;

    if (!f->places || !s || c->step != c->restore_step || c->open.rank != m->shard || !c->pages)
        return false;
    *ret_places = calloc(s->layout.nparts + 1, sizeof **ret_places);
    must(*ret_places != NULL, "places");
    for (*ret_n = 0; first < s->layout.nparts; ++*ret_n) {
        struct local_place *p = &(*ret_places)[*ret_n];
        struct hash_stream *h = hash_stream_new();
        must(h != NULL, "hash");
        p->nparts = cairn_chunk_parts(&s->layout, first, SLOT_PARTS);
        for (uint32_t i = 0; i < p->nparts; i++, first++) {
            p->page[i] = c->pages[first];
            p->len[i] = (uint32_t)cairn_layout_part_len(&s->layout, first);
            hash_stream_add(h, s->image + first * CAIRN_PART, p->len[i]);
        }
        struct hash128 sum = hash_stream_end(h);
        p->entry_low = sum.low;
        p->entry_high = sum.high;
        hash_stream_free(h);
    }
    return true;
}

static void on_places(struct fake *f, struct connection *c, enum fake_fault fault, const struct local_places *m)
{
    struct local_places_are a = {0};
    struct local_place *places = NULL;
    uint32_t n = 0;
    char *map;

    if (fault == FAKE_LATE)
        usleep(150000);
    if (!make_places(f, c, m, &places, &n)) {
        send_error(c->fd, m->h.id, CAIRN_E_NOT_FOUND, "not in the arena");
        return;
    }
    if (fault == FAKE_BAD_VALUE && n)
        places[0].page[0] = UINT32_MAX / 2;
    if (fault == FAKE_UNSEALED && n > 1)
        places[n - 1].page[0] ^= 1; /* another answer than before: it has moved */
    a.nchunks = n;
    int fd = memory(n * sizeof *places + 1, 0, &map);
    memcpy(map, places, n * sizeof *places);
    munmap(map, n * sizeof *places + 1);
    must(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0, "seal");
    local_header_init(&a.h, LOCAL_PLACES_ARE, sizeof a, m->h.id);
    bool well = fault == FAKE_UNSEALED || fault == FAKE_BAD_VALUE || fault == FAKE_LATE;
    answer(f, c, well ? FAKE_WELL : fault, &a, sizeof a, &fd, 1);
    close(fd);
    free(places);
}

/* The last that was asked for comes first. */
static void serve_reads(struct fake *f, struct connection *c)
{
    while (c->nreads > 0)
        serve_read(f, c, &c->reads[--c->nreads]);
}

static void on_query(struct fake *f, struct connection *c, enum fake_fault fault, const struct local_query *m)
{
    static const char json[] = "{\"fake\": true}";
    struct local_answer a = {.len = sizeof(json) - 1};
    char *map;
    int fd = memory(sizeof(json), 0, &map);

    memcpy(map, json, sizeof(json));
    munmap(map, sizeof(json));
    if (fault == FAKE_BAD_VALUE)
        a.len = 1 << 20;
    local_header_init(&a.h, LOCAL_ANSWER, sizeof(a), m->h.id);
    answer(f, c, fault, &a, sizeof(a), &fd, 1);
    close(fd);
}

static void on_latest(struct fake *f, struct connection *c, const struct local_latest *m)
{
    struct local_latest_is a = {.step = latest(f), .incarnation = 5};

    local_header_init(&a.h, LOCAL_LATEST_IS, sizeof(a), m->h.id);
    if (f->nshards)
        send_message(c->fd, &a, sizeof(a), NULL, 0);
    else
        send_error(c->fd, m->h.id, CAIRN_E_NOT_FOUND, "job has no checkpoint");
}

/* ---- the loop -------------------------------------------------------------------------------- */

static void obey(struct fake *f, struct connection *c, enum fake_fault fault, const void *m, int *fds)
{
    const struct local_header *h = m;

    switch (h->type) {
    case LOCAL_OPEN:
        on_open(f, c, fault, m);
        break;
    case LOCAL_HAND_BACK:
        on_hand_back(f, c, m, fds);
        break;
    case LOCAL_RESUME:
        on_resume(f, c, m);
        break;
    case LOCAL_LAYOUT:
        on_layout(f, c, m, fds[0]);
        break;
    case LOCAL_BEGIN:
        on_begin(f, c, fault, m);
        break;
    case LOCAL_FILLED:
        on_filled(f, c, fault, m);
        break;
    case LOCAL_PARTS:
        on_parts(f, c, m);
        break;
    case LOCAL_PACKED:
        on_packed(f, c, fault, m);
        break;
    case LOCAL_SUMS:
        on_sums(f, c, m, fds[0]);
        break;
    case LOCAL_WHY:
        on_why(c, m);
        break;
    case LOCAL_LATEST:
        on_latest(f, c, m);
        break;
    case LOCAL_RESTORE_OPEN:
        on_restore_open(f, c, fault, m);
        break;
    case LOCAL_READ:
        c->reads[c->nreads++] = *(const struct local_read *)m;
        break;
    case LOCAL_PLACES:
        on_places(f, c, fault, m);
        break;
    case LOCAL_QUERY:
        on_query(f, c, fault, m);
        break;
    default:
        send_ok(c->fd, h->id);
    }
}

static enum fake_fault next_fault(struct fake *f, unsigned type, int *ret_code)
{
    enum fake_fault fault = f->fault[type];

    *ret_code = f->fault_code[type];
    if (fault && f->fault_times[type] && --f->fault_times[type] == 0)
        f->fault[type] = FAKE_WELL;
    return fault;
}

static void handle(struct fake *f, struct connection *c, const void *m, int *fds)
{
    const struct local_header *h = m;
    struct local_latest_is stray = {0};
    char garbage[40];
    int code;
    enum fake_fault fault = next_fault(f, h->type, &code);

    f->count[h->type]++;
    pthread_cond_broadcast(&f->changed);
    switch (fault) {
    case FAKE_SILENT:
        break;
    case FAKE_CLOSE:
        hang_up(c);
        break;
    case FAKE_GARBAGE:
        memset(garbage, 0x5a, sizeof(garbage));
        send_message(c->fd, garbage, sizeof(garbage), NULL, 0);
        break;
    case FAKE_WRONG_TYPE:
        local_header_init(&stray.h, LOCAL_LATEST_IS, sizeof(stray), h->id);
        send_message(c->fd, &stray, sizeof(stray), NULL, 0);
        break;
    case FAKE_ERROR:
        send_error(c->fd, h->id, code, "the fake says no");
        break;
    default:
        obey(f, c, fault, m, fds);
    }
}

/* One message; false when there is none. */
static bool receive(struct fake *f, struct connection *c)
{
    union {
        struct local_header h;
        uint64_t align;
        char bytes[64 << 10];
    } m;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control;
    struct iovec iov = {m.bytes, sizeof(m.bytes)};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    struct cairn_error err = CAIRN_ERROR_INIT;
    int fds[2] = {-1, -1};
    unsigned nfds = 0;

    ssize_t n = recvmsg(c->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0 && errno == EAGAIN)
        return false;
    if (n <= 0) {
        hang_up(c);
        return false;
    }
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&msg); h; h = CMSG_NXTHDR(&msg, h)) {
        nfds = (unsigned)((h->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds, CMSG_DATA(h), nfds * sizeof(int));
    }
    if (local_check(m.bytes, (size_t)n, nfds, &err) < 0) {
        complain(f, err.message);
        hang_up(c);
    } else {
        handle(f, c, m.bytes, fds);
    }
    for (unsigned i = 0; i < nfds; i++)
        close(fds[i]);
    return c->fd >= 0;
}

static void listen_again(struct fake *f)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};

    (void)unlink(f->path);
    memcpy(at.sun_path, f->path, strlen(f->path) + 1);
    f->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    must(f->listener >= 0 && bind(f->listener, (struct sockaddr *)&at, sizeof(at)) == 0 && listen(f->listener, 8) == 0,
         "listen");
}

static void do_restart(struct fake *f)
{
    for (unsigned i = 0; i < MAX_CONNECTIONS; i++)
        hang_up(&f->connections[i]);
    if (f->listener >= 0)
        close(f->listener);
    f->listener = -1;
    (void)unlink(f->path);
    if (!f->away)
        listen_again(f);
    f->restart = false;
    pthread_cond_broadcast(&f->changed);
}

static void accept_one(struct fake *f)
{
    int fd = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);

    for (unsigned i = 0; i < MAX_CONNECTIONS && fd >= 0; i++)
        if (f->connections[i].fd < 0) {
            f->connections[i].fd = fd;
            return;
        }
    if (fd >= 0)
        close(fd);
}

static void do_event(struct fake *f)
{
    for (unsigned i = 0; i < MAX_CONNECTIONS; i++)
        if (f->connections[i].fd >= 0 && f->connections[i].save)
            send_event(f->connections[i].fd, f->connections[i].save, f->event_state, f->event_code);
    f->event_now = false;
}

static void send_held(struct fake *f)
{
    for (unsigned i = 0; i < f->nheld; i++)
        send_message(f->held[i].fd, f->held[i].message, f->held[i].len, NULL, 0);
    f->nheld = 0;
}

static bool nobody_is_late(const struct fake *f)
{
    for (unsigned i = 0; i < MAX_TYPES; i++)
        if (f->fault[i] == FAKE_LATE)
            return false;
    return true;
}

static void turn(struct fake *f, const struct pollfd *p)
{
    uint64_t value;

    if (p[0].revents)
        must(read(f->wake, &value, sizeof(value)) == sizeof(value), "wake");
    if (f->restart) {
        do_restart(f);
        return;
    }
    if (f->event_now)
        do_event(f);
    if (nobody_is_late(f))
        send_held(f);
    if (p[1].revents)
        accept_one(f);
    for (unsigned i = 0; i < MAX_CONNECTIONS; i++) {
        struct connection *c = &f->connections[i];
        while (c->fd >= 0 && c->nreads < SLOTS && receive(f, c))
            ;
        serve_reads(f, c);
    }
}

static void *run(void *arg)
{
    struct fake *f = arg;

    pthread_mutex_lock(&f->lock);
    while (!f->stop) {
        struct pollfd p[2 + MAX_CONNECTIONS];
        p[0] = (struct pollfd){.fd = f->wake, .events = POLLIN};
        p[1] = (struct pollfd){.fd = f->listener, .events = POLLIN};
        for (unsigned i = 0; i < MAX_CONNECTIONS; i++)
            p[2 + i] = (struct pollfd){.fd = f->connections[i].fd, .events = POLLIN};
        pthread_mutex_unlock(&f->lock);
        (void)poll(p, 2 + MAX_CONNECTIONS, -1);
        pthread_mutex_lock(&f->lock);
        turn(f, p);
    }
    pthread_mutex_unlock(&f->lock);
    return NULL;
}

/* ---- control --------------------------------------------------------------------------------- */

static void poke(struct fake *f)
{
    uint64_t one = 1;

    must(write(f->wake, &one, sizeof(one)) == sizeof(one), "poke");
}

struct fake *fake_start(void)
{
    struct fake *f = calloc(1, sizeof(*f));

    must(f != NULL, "fake");
    strcpy(f->dir, "/tmp/cairn-fake-XXXXXX");
    must(mkdtemp(f->dir) != NULL, "mkdtemp");
    (void)snprintf(f->path, sizeof(f->path), "%s/socket", f->dir);
    f->last_state = CAIRN_COMMITTED;
    f->knows = LOCAL_KNOWS | LOCAL_KNOWS_PACKED;
    f->wake = eventfd(0, EFD_CLOEXEC);
    for (unsigned i = 0; i < MAX_CONNECTIONS; i++)
        f->connections[i].fd = -1;
    must(pthread_mutex_init(&f->lock, NULL) == 0 && pthread_cond_init(&f->changed, NULL) == 0, "lock");
    listen_again(f);
    must(pthread_create(&f->thread, NULL, run, f) == 0, "thread");
    return f;
}

void fake_stop(struct fake *f)
{
    pthread_mutex_lock(&f->lock);
    f->stop = true;
    pthread_mutex_unlock(&f->lock);
    poke(f);
    pthread_join(f->thread, NULL);
    f->away = true;
    do_restart(f);
    for (unsigned i = 0; i < MAX_SHARDS && i < f->nshards; i++) {
        free(f->shards[i].image);
        cairn_layout_free(&f->shards[i].layout);
    }
    close(f->wake);
    rmdir(f->dir);
    pthread_mutex_destroy(&f->lock);
    pthread_cond_destroy(&f->changed);
    free(f);
}

const char *fake_path(const struct fake *f)
{
    return f->path;
}

void fake_restart(struct fake *f, int away)
{
    pthread_mutex_lock(&f->lock);
    f->restart = true;
    f->away = away;
    poke(f);
    while (f->restart)
        pthread_cond_wait(&f->changed, &f->lock);
    pthread_mutex_unlock(&f->lock);
}

void fake_fault(struct fake *f, int type, enum fake_fault fault, int code, int times)
{
    pthread_mutex_lock(&f->lock);
    f->fault[type] = fault;
    f->fault_code[type] = code;
    f->fault_times[type] = times;
    pthread_mutex_unlock(&f->lock);
    poke(f);
}

void fake_events(struct fake *f, int last_state, int code)
{
    pthread_mutex_lock(&f->lock);
    f->last_state = last_state;
    f->last_code = code;
    pthread_mutex_unlock(&f->lock);
}

void fake_event_now(struct fake *f, int state, int code)
{
    pthread_mutex_lock(&f->lock);
    f->event_now = true;
    f->event_state = state;
    f->event_code = code;
    pthread_mutex_unlock(&f->lock);
    poke(f);
}

unsigned fake_count(struct fake *f, int type)
{
    pthread_mutex_lock(&f->lock);
    unsigned n = f->count[type];
    pthread_mutex_unlock(&f->lock);
    return n;
}

const char *fake_complaint(struct fake *f)
{
    pthread_mutex_lock(&f->lock);
    const char *what = f->complaint[0] ? f->complaint : NULL;
    pthread_mutex_unlock(&f->lock);
    return what;
}

void fake_places(struct fake *f, int on)
{
    pthread_mutex_lock(&f->lock);
    f->places = on;
    pthread_mutex_unlock(&f->lock);
}

void fake_knows(struct fake *f, uint64_t knows)
{
    pthread_mutex_lock(&f->lock);
    f->knows = knows;
    pthread_mutex_unlock(&f->lock);
}

void fake_unpacks(struct fake *f, fake_unpack_fn unpack)
{
    pthread_mutex_lock(&f->lock);
    f->unpack = unpack;
    pthread_mutex_unlock(&f->lock);
}

void fake_wander(struct fake *f, unsigned places)
{
    pthread_mutex_lock(&f->lock);
    f->wander = places;
    pthread_mutex_unlock(&f->lock);
}

void fake_damage(struct fake *f, unsigned part)
{
    pthread_mutex_lock(&f->lock);
    for (unsigned i = 0; i < MAX_CONNECTIONS; i++)
        if (f->connections[i].arena && f->connections[i].pages)
            f->connections[i].arena[CONTROL + f->connections[i].pages[part] * CAIRN_PART] ^= 1;
    pthread_mutex_unlock(&f->lock);
}

void fake_take_back(struct fake *f, int on)
{
    pthread_mutex_lock(&f->lock);
    f->take_back = on;
    pthread_mutex_unlock(&f->lock);
}

unsigned fake_copying(struct fake *f)
{
    pthread_mutex_lock(&f->lock);
    unsigned n = f->copying;
    pthread_mutex_unlock(&f->lock);
    return n;
}

unsigned fake_summed(struct fake *f)
{
    pthread_mutex_lock(&f->lock);
    unsigned n = f->summed;
    pthread_mutex_unlock(&f->lock);
    return n;
}

bool fake_wait_count(struct fake *f, int type, unsigned n, unsigned ms)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += ms / 1000 + 1;
    pthread_mutex_lock(&f->lock);
    while (f->count[type] < n && pthread_cond_timedwait(&f->changed, &f->lock, &until) == 0)
        ;
    bool came = f->count[type] >= n;
    pthread_mutex_unlock(&f->lock);
    return came;
}
