/* SPDX-License-Identifier: Apache-2.0 */
/* What fabric.c and endpoint.c share; nobody else includes it. */
#ifndef CAIRN_DAEMON_IO_FABRIC_INTERNAL_H
#define CAIRN_DAEMON_IO_FABRIC_INTERNAL_H

#include "daemon/io/fabric.h"

#include <rdma/fabric.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>

struct fabric {
    struct loop *loop;
    char *provider;
    char *bind_address;
    struct fi_info *info; /* without a port */
    struct fid_fabric *fabric;
    struct fid_domain *domain;
    uint64_t local_key; /* of the last registration for local use */
    unsigned users;     /* endpoints and memory */
};

struct fabric_mem {
    struct fabric *fabric;
    struct fid_mr *mr;
    void *base;
};

/* The provider's settings for an endpoint bound to port; the caller frees it with fi_freeinfo. */
int fabric_info(const struct fabric *fabric, uint16_t port, struct fi_info **ret_info, struct cairn_error *err);
/* cairn_fail for a negative libfabric code: chooses the code and appends its text. */
int fabric_fail(struct cairn_error *err, int64_t fi_code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* The enum cairn_code with which an operation ends for a positive libfabric error. */
int fabric_code(int fi_errno);
static inline bool fabric_needs_local(const struct fabric *fabric)
{
    return (fabric->info->domain_attr->mr_mode & FI_MR_LOCAL) != 0;
}

#endif
