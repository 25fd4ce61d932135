/* SPDX-License-Identifier: Apache-2.0 */
/* cairnd: puts the parts together, in the order in which they stand on each other, and takes them apart in reverse. */
#include "daemon/config.h"
#include "daemon/cpus.h"
#include "daemon/fdstore.h"
#include "daemon/io/keyring.h"
#include "daemon/io/log.h"
#include "daemon/node/node.h"
#include "daemon/peer/peer.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/proto/fragment.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

struct daemon {
    struct config config;
    uint64_t start; /* random: every start of a daemon has its own */
    uint64_t started_ns;
    struct loop *loop;
    struct workers *workers;
    struct plugins *plugins;
    struct meta *meta;
    struct fabric *fabric;
    struct keyring *keyring; /* NULL: loopback only */
    struct loop_timer refresh_keys;
    struct store *store;
    struct peer *peer;
    struct node *node;
    struct node_kept_fd *kept; /* arenas of the daemon before, until the node has them */
    unsigned nkept;
    int signal_fd;
    struct loop_op signal_op;
    struct signalfd_siginfo signal_info;
    struct loop_timer watchdog;
    uint64_t watchdog_us; /* systemd's; 0: none */
    struct loop_timer impatience;
    bool stopping;
};

#define STOP_PATIENCE_MS 10000

/* ---- the end --------------------------------------------------------------------------------- */

static void daemon_gone(void *arg)
{
    struct daemon *d = arg;

    d->peer = NULL;
    loop_stop(d->loop);
}

static void daemon_stop_peer(void *arg)
{
    struct daemon *d = arg;

    d->node = NULL;
    if (d->peer)
        peer_stop(d->peer, daemon_gone, d);
    else
        daemon_gone(d);
}

/* A stop that takes too long is an exit: whatever was not committed was never promised. */
static void daemon_impatient(struct loop_timer *t)
{
    (void)t;
    log_line(LOG_WARNING, "did not stop in order within %d s, exiting", STOP_PATIENCE_MS / 1000);
    _exit(1);
}

static void daemon_stop(struct daemon *d)
{
    if (d->stopping)
        return;
    d->stopping = true;
    sd_notify(0, "STOPPING=1");
    log_line(LOG_NOTICE, "stopping");
    loop_timer_after(d->loop, &d->impatience, STOP_PATIENCE_MS);
    if (d->node)
        node_stop(d->node, daemon_stop_peer, d);
    else
        daemon_stop_peer(d);
}

static void daemon_free(struct daemon *d)
{
    store_close(d->store);
    fabric_close(d->fabric);
    if (d->meta)
        meta_close(d->meta);
    workers_free(d->workers);
    plugins_free(d->plugins);
    if (d->loop)
        loop_timer_cancel(d->loop, &d->watchdog);
    if (d->loop)
        loop_timer_cancel(d->loop, &d->refresh_keys);
    keyring_free(d->keyring);
    loop_free(d->loop);
    if (d->signal_fd >= 0)
        close(d->signal_fd);
}

/* ---- signals, watchdog, status --------------------------------------------------------------- */

static void daemon_wait_signal(struct daemon *d);

static void daemon_read_keys(struct daemon *d)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (d->keyring && keyring_refresh(d->keyring, &err))
        log_line(LOG_NOTICE, "the keys of %s were read again", d->config.key_file);
    else if (err.message[0])
        log_line(LOG_ERROR, "the keys stay as they were: %s", err.message);
}

static void daemon_signalled(struct loop_op *op, int res)
{
    struct daemon *d = op->arg;

    if (res == sizeof d->signal_info && d->signal_info.ssi_signo == SIGHUP) {
        daemon_read_keys(d);
    } else if (res == sizeof d->signal_info) {
        daemon_stop(d);
        return;
    }
    if (res != -ECANCELED)
        daemon_wait_signal(d);
}

static void daemon_wait_signal(struct daemon *d)
{
    d->signal_op.done = daemon_signalled;
    d->signal_op.arg = d;
    loop_read(d->loop, &d->signal_op, d->signal_fd, &d->signal_info, sizeof d->signal_info, (uint64_t)-1);
}

static int daemon_catch_signals(struct daemon *d, struct cairn_error *err)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);            /* the keys are read again; without this it would end the daemon */
    sigprocmask(SIG_BLOCK, &set, NULL); /* before any thread starts: they inherit it */
    signal(SIGPIPE, SIG_IGN);
    d->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (d->signal_fd < 0)
        return cairn_fail_errno(err, errno, "catch signals");
    return 0;
}

/* Fed by the loop itself: a loop that hangs is restarted. */
static void daemon_feed_watchdog(struct loop_timer *t)
{
    struct daemon *d = t->arg;

    sd_notify(0, "WATCHDOG=1");
    loop_timer_after(d->loop, t, d->watchdog_us / 1000 / 3 + 1);
}

static void describe_peer(const struct daemon *d, json_t *o)
{
    struct peer_status st;
    json_t *p = json_object();

    peer_status(d->peer, &st);
    json_object_set_new(p, "id", json_string(d->config.peer_id));
    json_object_set_new(p, "registered", json_boolean(st.registered));
    json_object_set_new(p, "engine_accepted", json_boolean(st.engine_accepted));
    json_object_set_new(p, "nodes", json_integer(st.nodes));
    json_object_set_new(p, "streams_open", json_integer(st.streams_open));
    json_object_set_new(p, "fragments_stored", json_integer((json_int_t)st.fragments_stored));
    json_object_set_new(p, "bytes_stored", json_integer((json_int_t)st.bytes_stored));
    json_object_set_new(p, "fragments_read", json_integer((json_int_t)st.fragments_read));
    json_object_set_new(p, "bad_fragments", json_integer((json_int_t)st.bad_fragments));
    json_object_set_new(p, "scrub_last_unix_ms",
                        st.scrub_last_unix_ms ? json_integer((json_int_t)st.scrub_last_unix_ms) : json_null());
    json_object_set_new(p, "scrubbed_fragments", json_integer((json_int_t)st.scrubbed_fragments));
    json_object_set_new(p, "scrubbed_bad", json_integer((json_int_t)st.scrubbed_bad));
    json_object_set_new(p, "free_bytes", json_integer((json_int_t)st.free_bytes));
    json_object_set_new(p, "total_bytes", json_integer((json_int_t)st.total_bytes));
    json_object_set_new(o, "peer", p);
}

static void daemon_describe(void *arg, json_t *o)
{
    const struct daemon *d = arg;
    json_t *roles = json_array();

    json_object_set_new(o, "version", json_string(CAIRN_VERSION));
    json_object_set_new(o, "uptime_ms", json_integer((json_int_t)((loop_now_ns(d->loop) - d->started_ns) / 1000000)));
    if (d->config.is_node)
        json_array_append_new(roles, json_string("node"));
    if (d->config.is_peer)
        json_array_append_new(roles, json_string("peer"));
    json_object_set_new(o, "roles", roles);
    if (d->peer)
        describe_peer(d, o);
    else
        json_object_set_new(o, "peer", json_null());
}

/* ---- the beginning --------------------------------------------------------------------------- */

static unsigned worker_threads(const struct config *c)
{
    unsigned n = cpus_count() / 2;

    return c->workers ? c->workers : n > 1 ? n : 1;
}

static uint64_t arena_limit(const struct config *c)
{
    uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);

    return c->arena_max_mib ? (uint64_t)c->arena_max_mib << 20 : memory / 2;
}

/* A drain takes 300 bytes for each MiB of its snapshot, which lies in an arena, and 84 for each tensor. */
static uint64_t numerics_limit(const struct config *c)
{
    return c->numerics ? ((uint64_t)256 << 20) + arena_limit(c) / 1024 : 0;
}

static int make_directory(const char *path, struct cairn_error *err)
{
    if (mkdir(path, 0750) < 0 && errno != EEXIST)
        return cairn_fail_errno(err, errno, "create the directory %s", path);
    return 0;
}

/* ---- keys ------------------------------------------------------------------------------------ */

#define KEYS_MS 1000 /* a changed file is read within */

static void daemon_refresh_keys(struct loop_timer *t)
{
    struct daemon *d = t->arg;

    daemon_read_keys(d);
    loop_timer_after(d->loop, t, KEYS_MS);
}

static bool is_loopback(const char *address)
{
    struct in_addr v4;
    struct in6_addr v6;

    if (inet_pton(AF_INET, address, &v4) == 1)
        return ntohl(v4.s_addr) >> 24 == 127;
    return inet_pton(AF_INET6, address, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

/* Without a key whoever reaches the address could read and write checkpoints. */
static int daemon_open_keys(struct daemon *d, struct cairn_error *err)
{
    const struct config *c = &d->config;
    bool local = is_loopback(c->bind);

    if (c->key_file[0]) {
        d->refresh_keys = (struct loop_timer){.fire = daemon_refresh_keys, .arg = d};
        loop_timer_after(d->loop, &d->refresh_keys, KEYS_MS);
        return keyring_open(c->key_file, &d->keyring, err);
    }
    if (!local && !c->insecure)
        return cairn_fail(
            err, CAIRN_E_DENIED,
            "[fabric] bind = %s, and no key: whoever reaches it could read and write checkpoints. Make a key "
            "(cairnd --make-key FILE), copy it to all daemons and set [fabric] key_file, or bind to 127.0.0.1",
            c->bind);
    if (!local)
        log_line(LOG_WARNING, "no [fabric] key_file: whoever reaches %s can read and write checkpoints", c->bind);
    else
        log_line(LOG_NOTICE, "no [fabric] key_file: only daemons of this machine can connect, on %s", c->bind);
    return 0;
}

static int daemon_start_machine_room(struct daemon *d, struct cairn_error *err)
{
    const struct config *c = &d->config;
    struct cairn_param meta_params[] = {{"path", c->meta_path},
                                        {"endpoints", c->meta_endpoints},
                                        {"prefix", c->meta_prefix},
                                        {"ca", c->meta_ca},
                                        {"cert", c->meta_cert},
                                        {"key", c->meta_key},
                                        {"user", c->meta_user},
                                        {"password_file", c->meta_password_file},
                                        {NULL, NULL}};
    struct fabric_config fc = {c->provider, c->bind};
    int r = loop_new(1024, &d->loop, err);

    if (r == 0)
        r = workers_new(d->loop, worker_threads(c), &d->workers, err);
    if (r == 0)
        r = plugins_new(c->plugins[0] ? c->plugins : NULL, &d->plugins, err);
    if (r == 0)
        r = make_directory(c->state, err);
    if (r == 0)
        r = plugins_meta_open(d->plugins, d->loop, c->meta_plugin, meta_params, &d->meta, err);
    if (r == 0)
        r = daemon_open_keys(d, err);
    if (r == 0)
        r = fabric_open(d->loop, &fc, &d->fabric, err);
    return r;
}

static int daemon_start_peer(struct daemon *d, struct cairn_error *err)
{
    const struct config *c = &d->config;
    char reserve[32], recycle[32], engine_path[CONFIG_TEXT + 16];
    struct cairn_param params[] = {
        {"path", c->store_path}, {"reserve_bytes", reserve}, {"recycle_bytes", recycle}, {NULL, NULL}};
    struct peer_deps deps = {d->loop, d->fabric, d->workers, NULL, d->meta, d->keyring};
    struct peer_config pc = {.id = c->peer_id,
                             .engine_path = engine_path,
                             .domain = c->domain,
                             .provider = c->provider,
                             .port = (uint16_t)c->port,
                             .slots_per_node = c->peer_slots,
                             .max_nodes = c->max_nodes,
                             .read_buffers = c->read_buffers,
                             .node_idle_ms = c->node_idle_ms,
                             .lease_ms = c->lease_ms,
                             .scrub_mib_s = c->scrub_mib_s};

    snprintf(engine_path, sizeof engine_path, "%s/engine", c->store_path);
    snprintf(reserve, sizeof reserve, "%llu", (unsigned long long)c->reserve_mib << 20);
    snprintf(recycle, sizeof recycle, "%llu", (unsigned long long)c->recycle_mib << 20);
    int r = plugins_store_open(d->plugins, d->loop, c->store, params, &d->store, err);
    if (r < 0)
        return r;
    deps.store = d->store;
    return peer_new(&deps, &pc, &d->peer, err);
}

static int daemon_start_node(struct daemon *d, struct cairn_error *err)
{
    const struct config *c = &d->config;
    struct node_deps deps = {d->loop, d->fabric, d->workers, d->plugins, d->meta, d->keyring};
    struct node_config nc = {.id = c->node,
                             .socket_path = c->socket,
                             .socket_mode = c->socket_mode,
                             .start = d->start,
                             .arena_max_bytes = arena_limit(c),
                             .arena_keep_s = c->arena_keep_s,
                             .window_bytes = (uint64_t)c->window_mib << 20,
                             .windows_max_bytes = (uint64_t)c->windows_max_mib << 20,
                             .fanout_max_bytes = (uint64_t)c->fanout_mib << 20,
                             .slots = c->slots,
                             .fragment_buffers =
                                 (unsigned)(((uint64_t)c->fragment_buffers_mib << 20) / FRAGMENT_MAX_RECORD),
                             .margin = c->margin,
                             .delta_chain = c->delta_chain,
                             .share_unchanged = c->share_unchanged,
                             .numerics_bytes = numerics_limit(c),
                             .common_fails = c->common_fails,
                             .domain = c->node_domain,
                             .fragment_late_ms = c->fragment_late_ms,
                             .sync_late_ms = c->sync_late_ms,
                             .connect_ms = c->connect_ms,
                             .backoff_ms = c->backoff_ms,
                             .checkpoint_ms = c->checkpoint_s * 1000,
                             .codecs = c->codecs,
                             .workers = worker_threads(c),
                             .rate = (uint64_t)c->rate_mib_s << 20,
                             .peer_rate = (uint64_t)c->peer_rate_mib_s << 20,
                             .spread = c->spread != 0,
                             .retention = c->retention,
                             .retention_ms = c->retention_interval_s * 1000,
                             .lease_ms = c->lease_ms,
                             .meta_ms = c->meta_timeout_ms,
                             .repair_mib_s = c->repair_mib_s,
                             .repair_every_s = c->repair_every_s,
                             .keep_fd = fdstore_keep,
                             .drop_fd = fdstore_drop,
                             .kept = d->kept,
                             .nkept = d->nkept};
    int r = node_new(&deps, &nc, &d->node, err);

    if (r == 0)
        node_set_describe(d->node, daemon_describe, d);
    return r;
}

/* A session has a handful of descriptors; the soft limit is made for select(). */
static void daemon_raise_limits(void)
{
    struct rlimit files;

    if (getrlimit(RLIMIT_NOFILE, &files) < 0)
        return;
    files.rlim_cur = files.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &files) < 0)
        log_line(LOG_WARNING, "the limit on descriptors stays: %s", strerror(errno));
}

static int daemon_start(struct daemon *d, struct cairn_error *err)
{
    daemon_raise_limits();
    int r = cpus_apply(d->config.cpus, d->config.nice, err);

    if (r == 0)
        r = daemon_catch_signals(d, err);

    if (r == 0)
        r = fdstore_take(&d->kept, &d->nkept, err);
    if (r == 0 && getrandom(&d->start, sizeof d->start, 0) != sizeof d->start)
        r = cairn_fail_errno(err, errno, "draw a random number");
    if (r == 0)
        r = daemon_start_machine_room(d, err);
    if (r == 0 && d->config.is_peer)
        r = daemon_start_peer(d, err);
    if (r == 0 && d->config.is_node)
        r = daemon_start_node(d, err);
    free(TAKE_PTR(d->kept));
    if (r < 0)
        return r;
    d->started_ns = loop_now_ns(d->loop);
    d->impatience = (struct loop_timer){.fire = daemon_impatient, .arg = d};
    d->watchdog = (struct loop_timer){.fire = daemon_feed_watchdog, .arg = d};
    if (sd_watchdog_enabled(0, &d->watchdog_us) > 0)
        daemon_feed_watchdog(&d->watchdog);
    daemon_wait_signal(d);
    return 0;
}

static int daemon_run(struct daemon *d)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    const struct config *c = &d->config;
    int r = daemon_start(d, &err);

    if (r < 0) {
        log_line(LOG_ERROR, "cannot start: %s", err.message);
        _exit(1); /* parts that started have operations in flight: the kernel ends them */
    }
    log_line(LOG_NOTICE, "cairnd %s ready: node %s, roles %s, provider %s, metadata %s", CAIRN_VERSION, c->node,
             c->roles, c->provider, c->meta_path);
    sd_notify(0, "READY=1");
    r = loop_run(d->loop, &err);
    if (r < 0) {
        log_line(LOG_ERROR, "the event loop failed: %s", err.message);
        _exit(1);
    }
    daemon_free(d);
    return 0;
}

static const char usage[] =
    "usage: cairnd [--config FILE] [--check] [--options] [--make-key FILE] [--version] [--help]\n"
    "\n"
    "The node-local daemon of Cairn: takes checkpoints from training processes and stores fragments.\n"
    "  -c, --config FILE   read this configuration (default /etc/cairn/cairnd.conf when it exists)\n"
    "      --check         read the configuration, say whether it is right, and exit\n"
    "      --options       print every option with its default, and exit\n"
    "      --make-key FILE write a new key for [fabric] key_file, of mode 0600, and exit\n"
    "      --version       print the version, and exit\n"
    "  -h, --help          print this, and exit\n";

static int setup_log(const struct config *c, struct cairn_error *err)
{
    static const struct {
        const char *name;
        enum log_level level;
    } levels[] = {{"error", LOG_ERROR}, {"warning", LOG_WARNING}, {"notice", LOG_NOTICE}, {"detail", LOG_DETAIL}};

    for (size_t i = 0; i < sizeof levels / sizeof levels[0]; i++) {
        if (strcmp(c->log, levels[i].name) == 0) {
            log_setup(levels[i].level, c->node);
            return 0;
        }
    }
    return cairn_fail(err, CAIRN_E_INVAL, "[daemon] log = %s: error, warning, notice or detail is wanted", c->log);
}

int main(int argc, char **argv)
{
    static const struct option long_options[] = {{"config", required_argument, NULL, 'c'},
                                                 {"check", no_argument, NULL, 'k'},
                                                 {"options", no_argument, NULL, 'o'},
                                                 {"make-key", required_argument, NULL, 'm'},
                                                 {"version", no_argument, NULL, 'v'},
                                                 {"help", no_argument, NULL, 'h'},
                                                 {NULL, 0, NULL, 0}};
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct daemon d = {.signal_fd = -1};
    const char *path = access("/etc/cairn/cairnd.conf", R_OK) == 0 ? "/etc/cairn/cairnd.conf" : NULL;
    bool check = false;
    int o;

    while ((o = getopt_long(argc, argv, "c:h", long_options, NULL)) != -1) {
        switch (o) {
        case 'c':
            path = optarg;
            break;
        case 'k':
            check = true;
            break;
        case 'o':
            config_print_options();
            return 0;
        case 'm':
            if (keyring_make(optarg, &err) == 0)
                return 0;
            fprintf(stderr, "cairnd: %s\n", err.message);
            return 1;
        case 'v':
            printf("cairnd %s\n", CAIRN_VERSION);
            return 0;
        case 'h':
            fputs(usage, stdout);
            return 0;
        default:
            fputs(usage, stderr);
            return 2;
        }
    }
    int r = config_load(&d.config, path, &err);
    if (r == 0)
        r = setup_log(&d.config, &err);
    if (r < 0 || optind < argc) {
        fprintf(stderr, "cairnd: %s\n", r < 0 ? err.message : "too many arguments");
        return 2;
    }
    if (check) {
        printf("%s: ok\n", path ? path : "defaults");
        return 0;
    }
    return daemon_run(&d);
}
