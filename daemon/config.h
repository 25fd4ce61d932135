/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon's configuration: an ini file and the .conf files of FILE.d beside it, later ones win. Every option has a
 * default that works on a laptop; an unknown section or key, or a value that does not parse, is an error with file and
 * line. The table in config.c is the one list of options; cairnd.conf(5) is checked against it. */
#ifndef CAIRN_DAEMON_CONFIG_H
#define CAIRN_DAEMON_CONFIG_H

#include "core/checkpoint/retention.h"
#include <stdbool.h>

#define CONFIG_TEXT 512

struct config {
    char node[CONFIG_TEXT]; /* [daemon] */
    char roles[CONFIG_TEXT];
    char socket[CONFIG_TEXT];
    unsigned socket_mode;
    char state[CONFIG_TEXT];
    char log[CONFIG_TEXT];
    unsigned workers;
    char cpus[CONFIG_TEXT];
    unsigned nice;
    char plugins[CONFIG_TEXT];
    char provider[CONFIG_TEXT]; /* [fabric] */
    char bind[CONFIG_TEXT];
    unsigned port;
    char key_file[CONFIG_TEXT];
    unsigned insecure;
    char meta_plugin[CONFIG_TEXT]; /* [meta] */
    char meta_path[CONFIG_TEXT];
    char meta_endpoints[CONFIG_TEXT];
    char meta_prefix[CONFIG_TEXT];
    char meta_ca[CONFIG_TEXT];
    char meta_cert[CONFIG_TEXT];
    char meta_key[CONFIG_TEXT];
    char meta_user[CONFIG_TEXT];
    char meta_password_file[CONFIG_TEXT];
    unsigned meta_timeout_ms;
    unsigned lease_ms;
    char peer_id[CONFIG_TEXT]; /* [peer] */
    char store[CONFIG_TEXT];
    char store_path[CONFIG_TEXT];
    char domain[CONFIG_TEXT];
    unsigned peer_slots;
    unsigned max_nodes;
    unsigned read_buffers;
    unsigned reserve_mib;
    unsigned recycle_mib;
    unsigned node_idle_ms;
    unsigned scrub_mib_s;
    unsigned arena_max_mib; /* [node] */
    unsigned arena_keep_s;
    unsigned window_mib;
    unsigned windows_max_mib;
    unsigned fanout_mib;
    unsigned slots;
    unsigned fragment_buffers_mib;
    unsigned margin;
    char codecs[CONFIG_TEXT];
    char node_domain[CONFIG_TEXT];
    unsigned fragment_late_ms;
    unsigned delta_chain;
    unsigned share_unchanged;
    unsigned numerics;
    char common_mismatch[CONFIG_TEXT];
    unsigned sync_late_ms;
    unsigned connect_ms;
    unsigned backoff_ms;
    unsigned checkpoint_s;
    unsigned repair_mib_s;
    unsigned repair_every_s;
    char retention_rule[CONFIG_TEXT]; /* [retention] */
    unsigned retention_interval_s;
    unsigned rate_mib_s; /* [pace] */
    unsigned peer_rate_mib_s;
    unsigned spread;
    bool is_node, is_peer;      /* from roles */
    bool common_fails;          /* from common_mismatch */
    struct retention retention; /* from retention_rule */
};

/* path NULL: defaults only. */
int config_load(struct config *c, const char *path, struct cairn_error *err);
/* Prints every option with its default and meaning. */
void config_print_options(void);

#endif
