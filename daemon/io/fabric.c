/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/io/fabric_internal.h"

#include "core/base/error.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API FI_VERSION(1, 17)
#define STRINGIFY(x_) #x_
#define TO_STRING(x_) STRINGIFY(x_)

int fabric_code(int fi_errno)
{
    switch (fi_errno) {
    case FI_ECANCELED: /* the connection went down with the operation on it: its peer died or refused another one */
    case FI_ECONNREFUSED:
    case FI_ECONNRESET:
    case FI_ECONNABORTED:
    case FI_ENOTCONN:
    case FI_ESHUTDOWN:
    case FI_EHOSTUNREACH:
    case FI_EHOSTDOWN:
    case FI_ENETUNREACH:
    case FI_ETIMEDOUT:
    case EPIPE:
        return CAIRN_E_UNAVAILABLE;
    case FI_ENOMEM:
        return CAIRN_E_NOMEM;
    default:
        return CAIRN_E_IO;
    }
}

int fabric_fail(struct cairn_error *err, int64_t fi_code, const char *fmt, ...)
{
    char what[256];
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(what, sizeof(what), fmt, args);
    va_end(args);
    return cairn_fail(err, fabric_code((int)-fi_code), "%s: %s", what, fi_strerror((int)-fi_code));
}

/* ---- opening --------------------------------------------------------------------------------- */

/* libfabric takes these from the environment only, when it is first called; what the administrator set wins. */
static void set_defaults(void)
{
    /* Forgetting a destination closes the connection to it: without this a peer could not cut off one node alone. */
    (void)setenv("FI_AV_REMOVE_CLEANUP", "1", 0);
    /* Messages go out as they are. Larger ones than the limit are fetched by their receiver, and when a connection dies
     * in between their sender never hears of it. Both sides must have the same limit: it is checked at connect. */
    (void)setenv("FI_OFI_RXM_EAGER_LIMIT", TO_STRING(65536), 0);
    /* ofi_rxm's own buffers: 3 MiB an endpoint instead of 70, and a connection 3 instead of 17. Messages go past them.
     */
    (void)setenv("FI_OFI_RXM_BUFFER_SIZE", "2048", 0);
    (void)setenv("FI_OFI_RXM_MSG_RX_SIZE", "256", 0);
    static_assert(FABRIC_MAX_MESSAGE == 65536, "the limit above is this one");
}

/* What works for tcp;ofi_rxm, net and verbs;ofi_rxm, NULL when out of memory. FI_MR_ENDPOINT is not offered: fabric_mem
 * is not bound to endpoints, and a provider that needs it is refused by fi_getinfo. */
static struct fi_info *hints_new(const char *provider, bool ipv6)
{
    struct fi_info *h = fi_allocinfo();

    if (!h)
        return NULL;
    h->caps = FI_MSG | FI_RMA | FI_TAGGED;
    h->mode = FI_CONTEXT | FI_CONTEXT2;
    /* Messages in order, and behind the writes before them: they announce those. */
    h->tx_attr->msg_order = h->rx_attr->msg_order = FI_ORDER_SAS | FI_ORDER_SAW;
    h->addr_format = ipv6 ? FI_SOCKADDR_IN6 : FI_SOCKADDR_IN;
    h->ep_attr->type = FI_EP_RDM;
    h->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
    h->domain_attr->threading = FI_THREAD_DOMAIN;
    h->domain_attr->resource_mgmt = FI_RM_ENABLED;
    h->fabric_attr->prov_name = strdup(provider);
    if (!h->fabric_attr->prov_name) {
        fi_freeinfo(h);
        return NULL;
    }
    return h;
}

/* fi_getinfo says nothing but "no data available": find out whether another memory mode is what it wants. */
static int explain_refusal(const struct fabric *fabric, struct fi_info *hints, const char *service, int r,
                           struct cairn_error *err)
{
    struct fi_info *info = NULL;

    hints->domain_attr->mr_mode |= FI_MR_ENDPOINT | FI_MR_RMA_EVENT | FI_MR_RAW;
    if (r == -FI_ENODATA && fi_getinfo(API, fabric->bind_address, service, FI_SOURCE, hints, &info) == 0) {
        fi_freeinfo(info);
        return cairn_fail(err, CAIRN_E_UNSUPPORTED,
                          "fabric provider %s wants memory registered in a way that is not supported "
                          "(FI_MR_ENDPOINT, FI_MR_RMA_EVENT or FI_MR_RAW)",
                          fabric->provider);
    }
    return fabric_fail(err, r, "fabric provider %s on %s port %s", fabric->provider, fabric->bind_address, service);
}

int fabric_info(const struct fabric *fabric, uint16_t port, struct fi_info **ret_info, struct cairn_error *err)
{
    struct fi_info *hints = hints_new(fabric->provider, strchr(fabric->bind_address, ':') != NULL);
    struct fi_info *info = NULL;
    char service[8];

    if (!hints)
        return cairn_fail(err, CAIRN_E_NOMEM, "fabric: out of memory");
    snprintf(service, sizeof(service), "%u", port);
    int r = fi_getinfo(API, fabric->bind_address, service, FI_SOURCE | FI_NUMERICHOST, hints, &info);
    if (r < 0)
        r = explain_refusal(fabric, hints, service, r, err);
    else if (!(info->domain_attr->mr_mode & FI_MR_PROV_KEY) && info->domain_attr->mr_key_size < sizeof(uint64_t))
        r = cairn_fail(err, CAIRN_E_UNSUPPORTED, "fabric provider %s has memory keys of %zu bytes only",
                       fabric->provider, info->domain_attr->mr_key_size);
    else if (info->domain_attr->cq_data_size < sizeof(uint32_t))
        r = cairn_fail(err, CAIRN_E_UNSUPPORTED, "fabric provider %s has no 32 bits of message data", fabric->provider);
    else
        *ret_info = info;
    fi_freeinfo(hints);
    if (r < 0)
        fi_freeinfo(info);
    return r;
}

static int open_domain(struct fabric *fabric, struct cairn_error *err)
{
    int r = fabric_info(fabric, 0, &fabric->info, err);

    if (r < 0)
        return r;
    r = fi_fabric(fabric->info->fabric_attr, &fabric->fabric, NULL);
    if (r < 0)
        return fabric_fail(err, r, "open fabric %s", fabric->provider);
    r = fi_domain(fabric->fabric, fabric->info, &fabric->domain, NULL);
    if (r < 0)
        return fabric_fail(err, r, "open a domain of fabric %s", fabric->provider);
    return 0;
}

int fabric_open(struct loop *loop, const struct fabric_config *config, struct fabric **ret_fabric,
                struct cairn_error *err)
{
    struct fabric *fabric = calloc(1, sizeof(*fabric));
    int r;

    if (!fabric)
        return cairn_fail(err, CAIRN_E_NOMEM, "fabric: out of memory");
    set_defaults();
    fabric->loop = loop;
    fabric->provider = strdup(config->provider);
    fabric->bind_address = strdup(config->bind_address);
    if (!fabric->provider || !fabric->bind_address)
        r = cairn_fail(err, CAIRN_E_NOMEM, "fabric: out of memory");
    else
        r = open_domain(fabric, err);
    if (r < 0) {
        fabric_close(fabric);
        return r;
    }
    *ret_fabric = fabric;
    return 0;
}

void fabric_close(struct fabric *fabric)
{
    if (!fabric)
        return;
    assert(fabric->users == 0);
    if (fabric->domain)
        (void)fi_close(&fabric->domain->fid); /* fails only while something is open on it, and that is asserted */
    if (fabric->fabric)
        (void)fi_close(&fabric->fabric->fid);
    fi_freeinfo(fabric->info);
    free(fabric->provider);
    free(fabric->bind_address);
    free(fabric);
}

/* ---- memory ---------------------------------------------------------------------------------- */

int fabric_mem_register(struct fabric *fabric, void *base, size_t len, int access, uint64_t key,
                        struct fabric_mem **ret_mem, struct cairn_error *err)
{
    struct fabric_mem *mem = calloc(1, sizeof(*mem));
    bool remote = (access & FABRIC_REMOTE_WRITE) != 0;
    uint64_t flags = FI_SEND | FI_RECV | FI_WRITE | (remote ? FI_REMOTE_WRITE : 0);

    loop_assert_here(fabric->loop);
    if (!mem)
        return cairn_fail(err, CAIRN_E_NOMEM, "fabric memory: out of memory");
    int r = fi_mr_reg(fabric->domain, base, len, flags, 0, remote ? key : ++fabric->local_key, 0, &mem->mr, NULL);
    if (r < 0) {
        free(mem);
        return fabric_fail(err, r, "register %zu bytes with fabric %s", len, fabric->provider);
    }
    mem->fabric = fabric;
    mem->base = base;
    fabric->users++;
    *ret_mem = mem;
    return 0;
}

void fabric_mem_free(struct fabric_mem *mem)
{
    if (!mem)
        return;
    loop_assert_here(mem->fabric->loop);
    if (fi_close(&mem->mr->fid) < 0)
        abort(); /* the caller believes that nobody can write there any more */
    mem->fabric->users--;
    free(mem);
}

uint64_t fabric_mem_key(const struct fabric_mem *mem)
{
    return fi_mr_key(mem->mr);
}

uint64_t fabric_mem_remote_base(const struct fabric_mem *mem)
{
    bool virt_addr = (mem->fabric->info->domain_attr->mr_mode & FI_MR_VIRT_ADDR) != 0;

    return virt_addr ? (uint64_t)(uintptr_t)mem->base : 0;
}

bool fabric_sends_anything(const struct fabric *fabric)
{
    return !fabric_needs_local(fabric) && fabric_gathers(fabric);
}
