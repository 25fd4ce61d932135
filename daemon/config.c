/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/config.h"

#include "core/model/stripe.h"
#include "core/base/error.h"
#include "core/model/name.h"
#include "core/model/units.h"
#include "daemon/cpus.h"

#include <ctype.h>
#include <errno.h>
#include <glob.h>
#include <ini.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum option_kind { TEXT, NUMBER, OCTAL };
struct option {
    const char *section, *key;
    enum option_kind kind;
    size_t offset;
    const char *preset;
    unsigned long min, max; /* of a number */
    const char *help;
};
#define CONFIG_LINE 198 /* bytes without its end; inih's buffer has 200 */
#define AT(member_) offsetof(struct config, member_)

static const struct option options[] = {
    {"daemon", "node", TEXT, AT(node), "", 0, 0, "this daemon's name in the cluster; empty: the host's name"},
    {"daemon", "roles", TEXT, AT(roles), "node,peer", 0, 0, "node: serves local ranks; peer: stores fragments"},
    {"daemon", "socket", TEXT, AT(socket), "/run/cairn/cairnd.sock", 0, 0, "where local clients connect"},
    {"daemon", "socket_mode", OCTAL, AT(socket_mode), "0660", 0, 0777, "permissions of the socket"},
    {"daemon", "state", TEXT, AT(state), "/var/lib/cairn", 0, 0, "directory of what must survive a restart"},
    {"daemon", "log", TEXT, AT(log), "notice", 0, 0, "error, warning, notice or detail"},
    {"daemon", "workers", NUMBER, AT(workers), "0", 0, 256, "threads that encode; 0: half of its processors"},
    {"daemon", "cpus", TEXT, AT(cpus), "", 0, 0, "processors that it runs on, as 0-3,8; empty: all"},
    {"daemon", "nice", NUMBER, AT(nice), "0", 0, 19, "how much the daemon gives way to other processes"},
    {"daemon", "plugins", TEXT, AT(plugins), "", 0, 0, "directory of cairn-NAME.so; empty: the installed one"},
    {"fabric", "provider", TEXT, AT(provider), "tcp;ofi_rxm", 0, 0, "libfabric provider"},
    {"fabric", "bind", TEXT, AT(bind), "127.0.0.1", 0, 0, "numeric address of this machine that peers reach"},
    {"fabric", "port", NUMBER, AT(port), "0", 0, 65535, "of the peer role; 0: any"},
    {"fabric", "key_file", TEXT, AT(key_file), "", 0, 0, "keys that daemons prove to hold; empty: loopback only"},
    {"fabric", "insecure", NUMBER, AT(insecure), "0", 0, 1, "1: other addresses than loopback without a key"},
    {"meta", "plugin", TEXT, AT(meta_plugin), "sqlite", 0, 0, "sqlite: for one machine; etcd: for a cluster"},
    {"meta", "path", TEXT, AT(meta_path), "", 0, 0, "of SQLite's database; empty: STATE/meta.db"},
    {"meta", "endpoints", TEXT, AT(meta_endpoints), "", 0, 0, "of etcd: http://HOST:2379, ... or https://"},
    {"meta", "prefix", TEXT, AT(meta_prefix), "", 0, 0, "stands before every key in etcd: a namespace"},
    {"meta", "ca", TEXT, AT(meta_ca), "", 0, 0, "file of the authorities that etcd's certificates are from"},
    {"meta", "cert", TEXT, AT(meta_cert), "", 0, 0, "file of this daemon's certificate for etcd"},
    {"meta", "key", TEXT, AT(meta_key), "", 0, 0, "file of its private key"},
    {"meta", "user", TEXT, AT(meta_user), "", 0, 0, "of etcd; empty: none"},
    {"meta", "password_file", TEXT, AT(meta_password_file), "", 0, 0, "its password, in a file of mode 0600"},
    {"meta", "timeout_ms", NUMBER, AT(meta_timeout_ms), "5000", 10, 600000, "deadline of one metadata request"},
    {"meta", "lease_ms", NUMBER, AT(lease_ms), "5000", 100, 600000, "a daemon silent for so long is taken for dead"},
    {"peer", "id", TEXT, AT(peer_id), "", 0, 0, "name of this storage peer; empty: the node's"},
    {"peer", "store", TEXT, AT(store), "file", 0, 0, "store plugin"},
    {"peer", "path", TEXT, AT(store_path), "", 0, 0, "directory of the store; empty: STATE/peer"},
    {"peer", "domain", TEXT, AT(domain), "", 0, 0, "failure domain (rack, host); empty: its own"},
    {"peer", "slots_per_node", NUMBER, AT(peer_slots), "16", 1, 256, "fragments (1 MiB) a node may have on their way"},
    {"peer", "max_nodes", NUMBER, AT(max_nodes), "64", 1, 4096, "nodes served at once"},
    {"peer", "read_buffers", NUMBER, AT(read_buffers), "16", 1, 1024, "fragments read at once"},
    {"peer", "reserve_mib", NUMBER, AT(reserve_mib), "64", 0, 1ul << 30, "space left free on the device"},
    {"peer", "recycle_mib", NUMBER, AT(recycle_mib), "262144", 0, 1ul << 30,
     "most of deleted checkpoints kept to be written over; 0: none"},
    {"peer", "node_idle_ms", NUMBER, AT(node_idle_ms), "60000", 100, 3600000,
     "a node silent for so long loses its slots"},
    {"peer", "scrub_mib_s", NUMBER, AT(scrub_mib_s), "4", 0, 1ul << 20, "read to verify what is stored; 0: when asked"},
    {"node", "arena_max_mib", NUMBER, AT(arena_max_mib), "0", 0, 1ul << 30,
     "bound on all arenas; 0: half of the memory"},
    {"node", "arena_keep_s", NUMBER, AT(arena_keep_s), "3600", 0, 1ul << 30, "how long a dead rank's snapshot is kept"},
    {"node", "window_mib", NUMBER, AT(window_mib), "32", 1, 4096, "memory of one restore"},
    {"node", "windows_max_mib", NUMBER, AT(windows_max_mib), "128", 4, 1ul << 20, "memory of all restores"},
    {"node", "fanout_mib", NUMBER, AT(fanout_mib), "256", 0, 1ul << 20,
     "memory for what several restores read; 0: each reads for itself"},
    {"node", "slots", NUMBER, AT(slots), "16", 1, 256, "fragments on their way to one peer"},
    {"node", "fragment_buffers_mib", NUMBER, AT(fragment_buffers_mib), "64", 32, 1ul << 20, "memory for encoding"},
    {"node", "codecs", TEXT, AT(codecs), "auto", 0, 0, "that may be used: auto, or of raw lz4 float dense"},
    {"node", "delta_chain", NUMBER, AT(delta_chain), "0", 0, CAIRN_MAX_CHAIN,
     "checkpoints stored one against the other; 0: each whole"},
    {"node", "share_unchanged", NUMBER, AT(share_unchanged), "0", 0, 10000,
     "checkpoints that may refer to an older one for what did not change; 0: none"},
    {"node", "numerics", NUMBER, AT(numerics), "1", 0, 1, "1: NaN and Inf are counted and tensors digested"},
    {"node", "common_mismatch", TEXT, AT(common_mismatch), "warn", 0, 0,
     "ranks differ where they should not: warn, or fail the checkpoint"},
    {"node", "margin", NUMBER, AT(margin), "0", 0, CAIRN_MAX_M, "lost peers a commit survives; 0: parity less one"},
    {"node", "domain", TEXT, AT(node_domain), "", 0, 0, "failure domain of this machine; empty: [peer] domain"},
    {"node", "fragment_late_ms", NUMBER, AT(fragment_late_ms), "1000", 50, 600000, "then its peer is avoided"},
    {"node", "sync_late_ms", NUMBER, AT(sync_late_ms), "10000", 50, 600000, "the same for a sync"},
    {"node", "connect_ms", NUMBER, AT(connect_ms), "2000", 50, 600000, "the same for a greeting"},
    {"node", "backoff_ms", NUMBER, AT(backoff_ms), "500", 10, 600000, "how long at first; doubles to 30 s"},
    {"node", "checkpoint_s", NUMBER, AT(checkpoint_s), "600", 1, 1ul << 20,
     "a checkpoint not committed by then is aborted"},
    {"node", "repair_mib_s", NUMBER, AT(repair_mib_s), "64", 1, 1ul << 20, "read and written by a repair"},
    {"node", "repair_every_s", NUMBER, AT(repair_every_s), "600", 0, 1ul << 30,
     "how often jobs are looked through for what to repair; 0: when asked"},
    {"pace", "rate_mib_s", NUMBER, AT(rate_mib_s), "0", 0, 1ul << 20, "sent to all peers by this node; 0: no bound"},
    {"pace", "peer_rate_mib_s", NUMBER, AT(peer_rate_mib_s), "0", 0, 1ul << 20, "sent to one of them; 0: no bound"},
    {"pace", "spread", NUMBER, AT(spread), "0", 0, 1, "1: a flush takes most of the time until the next save"},
    {"retention", "rule", TEXT, AT(retention_rule), "all", 0, 0, "what jobs without a rule keep: all, last=3 for=24h"},
    {"retention", "interval_s", NUMBER, AT(retention_interval_s), "60", 1, 86400, "how often it is looked after"},
};
#define NOPTIONS (sizeof options / sizeof options[0])

struct parse {
    struct config *config;
    struct cairn_error *err;
    int code;
};

static int parse_number(const struct option *o, const char *value, unsigned *ret, struct cairn_error *err)
{
    char *end;

    errno = 0;
    unsigned long v = isdigit((unsigned char)value[0]) ? strtoul(value, &end, o->kind == OCTAL ? 8 : 10) : 0;
    if (!isdigit((unsigned char)value[0]) || *end || errno || v < o->min || v > o->max)
        return cairn_fail(err, CAIRN_E_INVAL, "[%s] %s = %s: a number from %lu to %lu is wanted", o->section, o->key,
                          value, o->min, o->max);
    *ret = (unsigned)v;
    return 0;
}

static int option_set(struct config *c, const struct option *o, const char *value, struct cairn_error *err)
{
    void *to = (char *)c + o->offset;

    if (o->kind != TEXT)
        return parse_number(o, value, to, err);
    if (strlen(value) >= CONFIG_TEXT)
        return cairn_fail(err, CAIRN_E_INVAL, "[%s] %s: longer than %d bytes", o->section, o->key, CONFIG_TEXT - 1);
    snprintf(to, CONFIG_TEXT, "%s", value);
    return 0;
}

static int on_value(void *arg, const char *section, const char *key, const char *value)
{
    struct parse *p = arg;

    for (size_t i = 0; i < NOPTIONS && p->code == 0; i++) {
        if (strcmp(options[i].section, section) != 0 || strcmp(options[i].key, key) != 0)
            continue;
        p->code = option_set(p->config, &options[i], value, p->err);
        return p->code == 0;
    }
    if (p->code == 0)
        p->code =
            cairn_fail(p->err, CAIRN_E_INVAL, "[%s] %s: no such option (cairnd --options lists them)", section, key);
    return 0;
}

/* inih takes what does not fit its buffer for a line of its own; that would be told as a strange option. */
static int config_check_lines(const char *path, struct cairn_error *err)
{
    char *line = NULL;
    size_t room = 0;
    int number = 0, r = 0;
    FILE *f = fopen(path, "re");

    if (!f)
        return cairn_fail_errno(err, errno, "open %s", path);
    while (r == 0 && getline(&line, &room, f) >= 0) {
        number++;
        if (strcspn(line, "\n") > CONFIG_LINE)
            r = cairn_fail(err, CAIRN_E_INVAL, "%s:%d: a line of more than %d bytes", path, number, CONFIG_LINE);
    }
    if (r == 0 && ferror(f))
        r = cairn_fail_errno(err, errno, "read %s", path);
    free(line);
    fclose(f);
    return r;
}

static int config_read(struct config *c, const char *path, struct cairn_error *err)
{
    struct parse p = {.config = c, .err = err};
    int checked = config_check_lines(path, err);

    if (checked < 0)
        return checked;

    errno = 0;
    int line = ini_parse(path, on_value, &p);
    if (line == -1)
        return cairn_fail_errno(err, errno ? errno : EIO, "open %s", path);
    if (p.code < 0)
        return cairn_wrap(err, p.code, "%s:%d", path, line);
    if (line != 0)
        return cairn_fail(err, CAIRN_E_INVAL, "%s:%d: neither [section] nor key = value", path, line);
    return 0;
}

static int config_read_all(struct config *c, const char *path, struct cairn_error *err)
{
    char pattern[CONFIG_TEXT * 2];
    glob_t found = {0};
    int r = config_read(c, path, err);

    snprintf(pattern, sizeof pattern, "%s.d/*.conf", path);
    if (r == 0 && glob(pattern, 0, NULL, &found) == 0) { /* sorted */
        for (size_t i = 0; i < found.gl_pathc && r == 0; i++)
            r = config_read(c, found.gl_pathv[i], err);
        globfree(&found);
    }
    return r;
}

static int config_read_roles(struct config *c, struct cairn_error *err)
{
    char copy[CONFIG_TEXT], *save = NULL;

    snprintf(copy, sizeof copy, "%s", c->roles);
    for (char *role = strtok_r(copy, ", ", &save); role; role = strtok_r(NULL, ", ", &save)) {
        if (strcmp(role, "node") == 0)
            c->is_node = true;
        else if (strcmp(role, "peer") == 0)
            c->is_peer = true;
        else
            return cairn_fail(err, CAIRN_E_INVAL, "[daemon] roles: \"%s\" is neither node nor peer", role);
    }
    if (!c->is_node && !c->is_peer)
        return cairn_fail(err, CAIRN_E_INVAL, "[daemon] roles names no role: node, peer or both");
    return 0;
}

static int config_read_policy(struct config *c, struct cairn_error *err)
{
    c->common_fails = strcmp(c->common_mismatch, "fail") == 0;
    if (c->common_fails || strcmp(c->common_mismatch, "warn") == 0)
        return 0;
    return cairn_fail(err, CAIRN_E_INVAL, "[node] common_mismatch = %s: warn or fail is wanted", c->common_mismatch);
}

/* A path below the state directory, when none was given. */
static int config_default_path(char *path, const struct config *c, const char *name, struct cairn_error *err)
{
    if (path[0])
        return 0;
    if (snprintf(path, CONFIG_TEXT, "%s/%s", c->state, name) >= CONFIG_TEXT)
        return cairn_fail(err, CAIRN_E_INVAL, "[daemon] state: longer than %d bytes", CONFIG_TEXT - 10);
    return 0;
}

static int config_complete(struct config *c, struct cairn_error *err)
{
    cpu_set_t cpus;
    int r = config_read_roles(c, err);

    if (r == 0 && (r = cpus_parse(c->cpus, &cpus, err)) < 0)
        r = cairn_wrap(err, r, "[daemon] cpus");
    if (r == 0 && !c->node[0] && gethostname(c->node, CAIRN_MAX_NAME) < 0)
        r = cairn_fail_errno(err, errno, "read the host's name; set [daemon] node");
    if (r == 0)
        r = cairn_name_check("[daemon] node", c->node, err);
    if (r == 0 && !c->peer_id[0])
        snprintf(c->peer_id, sizeof c->peer_id, "%s", c->node);
    if (r == 0)
        r = cairn_name_check("[peer] id", c->peer_id, err);
    if (r == 0 && c->domain[0])
        r = cairn_name_check("[peer] domain", c->domain, err);
    if (r == 0 && !c->node_domain[0] && c->is_peer)
        snprintf(c->node_domain, sizeof c->node_domain, "%s", c->domain);
    if (r == 0 && c->node_domain[0])
        r = cairn_name_check("[node] domain", c->node_domain, err);
    if (r == 0)
        r = config_read_policy(c, err);
    if (r == 0 && (r = retention_parse(c->retention_rule, &c->retention, err)) < 0)
        r = cairn_wrap(err, r, "[retention] rule");
    if (r == 0)
        r = config_default_path(c->meta_path, c, "meta.db", err);
    if (r == 0)
        r = config_default_path(c->store_path, c, "peer", err);
    return r;
}

int config_load(struct config *c, const char *path, struct cairn_error *err)
{
    int r = 0;

    *c = (struct config){.is_node = false};
    for (size_t i = 0; i < NOPTIONS && r == 0; i++)
        r = option_set(c, &options[i], options[i].preset, err);
    if (r == 0 && path)
        r = config_read_all(c, path, err);
    if (r == 0)
        r = config_complete(c, err);
    return r;
}

void config_print_options(void)
{
    const char *section = "";

    for (size_t i = 0; i < NOPTIONS; i++) {
        if (strcmp(section, options[i].section) != 0)
            printf("%s[%s]\n", i ? "\n" : "", options[i].section);
        section = options[i].section;
        printf("# %s\n%s = %s\n", options[i].help, options[i].key, options[i].preset);
    }
}
