/* SPDX-License-Identifier: Apache-2.0 */
/* plugin.h: what a plugin of cairnd provides and what the daemon gives it.
 *
 * A plugin is a shared object cairn-NAME.so that exports one symbol, cairn_plugin_entry, written by
 * CAIRN_REGISTER_PLUGIN(). The daemon copies the returned struct into a zeroed one of its own size: fields that a
 * plugin built against an older header does not have read as NULL. Structs only ever grow at their end.
 *
 * Device plugins are loaded by libcairn in the trainer's process instead, in the same way.
 *
 * Errors: functions return 0 or a negative enum cairn_code and fill err (never NULL here).
 * All callbacks of one kind state their thread below. Plugins do not log, exit, fork or install signal handlers.
 */
#ifndef CAIRN_PLUGIN_H
#define CAIRN_PLUGIN_H

#include <cairn/cairn.h>

#define CAIRN_PLUGIN_ABI 1

enum cairn_plugin_kind {
    CAIRN_PLUGIN_CODEC = 1,
    CAIRN_PLUGIN_STORE = 2,
    CAIRN_PLUGIN_META = 3,
    CAIRN_PLUGIN_DEVICE = 4
};

struct cairn_plugin {
    uint32_t abi;        /* CAIRN_PLUGIN_ABI */
    uint32_t kind;       /* enum cairn_plugin_kind */
    size_t size;         /* sizeof the kind's struct */
    const char *name;    /* [a-z0-9-]+, as in cairn-NAME.so */
    const char *version; /* free text */
    const void *ops;     /* struct cairn_codec_ops, cairn_store_ops, cairn_meta_ops or cairn_device_ops by kind */
};

#define CAIRN_REGISTER_PLUGIN(plugin_)                             \
    CAIRN_API const struct cairn_plugin *cairn_plugin_entry(void); \
    const struct cairn_plugin *cairn_plugin_entry(void)            \
    {                                                              \
        return &(plugin_);                                         \
    }

/* One key and value of the plugin's section of the configuration; arrays of these end with key NULL. */
struct cairn_param {
    const char *key;
    const char *value;
};

/* ---- codec ------------------------------------------------------------------------------------------------------
 * Lossless and deterministic: the same input, dtype, params and room give the same bytes, so that a fragment can be
 * encoded again; the daemon's room follows from len alone. (float, dense and raw do not depend on it: more room gives
 * the same bytes, and less than these need gives 0. lz4 may give up a little before its room is used up.) Stateless:
 * called from any worker thread, several at once. */
enum cairn_codec_id { CAIRN_CODEC_RAW = 0, CAIRN_CODEC_LZ4 = 1, CAIRN_CODEC_FLOAT = 2, CAIRN_CODEC_DENSE = 3 };
struct cairn_codec_ops {
    size_t size;
    uint16_t id; /* written into manifests: unique and never reused; third parties from 0x8000 */
    /* Required. A cheap guess of the encoded size in bytes from a sample of src; anything >= len means "not worth it".
     */
    size_t (*estimate)(const void *src, size_t len, int dtype);
    /* Required. Encodes len bytes into at most room bytes. Returns the bytes written, 0 when it does not fit (the
     * daemon then stores raw), or a negative code. */
    int64_t (*encode)(const void *src, size_t len, int dtype, void *dst, size_t room);
    /* Required. Decodes exactly plain_len bytes; src is untrusted. 0, or CAIRN_E_CORRUPT. */
    int (*decode)(const void *src, size_t len, int dtype, void *dst, size_t plain_len);
};

/* ---- store ------------------------------------------------------------------------------------------------------
 * Keeps streams: append-only sequences of 4 KiB-aligned records of one (job, checkpoint, node). Runs on the reactor's
 * thread and must not block in append, sync and read: these hand requests to the host and complete later. create, open,
 * list, remove and space may make a few fast system calls. */
struct cairn_io; /* one request in flight, owned by whoever starts it until done() is called */
typedef void (*cairn_io_done)(struct cairn_io *io, int64_t result); /* bytes, or -errno */
struct cairn_io {
    cairn_io_done done;
    void *arg;          /* for whoever owns the request */
    void *reserved[14]; /* the host's; zero before the first use */
};
/* What the daemon gives a store: asynchronous file I/O on its io_uring. Short transfers and EINTR/EAGAIN are the
 * host's to resubmit: result is the whole length, or less only at the end of the file. */
struct cairn_host {
    size_t size;
    void *ctx;
    void (*pread)(void *ctx, struct cairn_io *io, int fd, void *buf, size_t len, uint64_t offset);
    void (*pwrite)(void *ctx, struct cairn_io *io, int fd, const void *buf, size_t len, uint64_t offset);
    void (*fdatasync)(void *ctx, struct cairn_io *io, int fd);
};

struct cairn_stream_id {
    char job[CAIRN_MAX_NAME + 1];
    uint64_t step;
    uint64_t incarnation;
    char node[CAIRN_MAX_NAME + 1];
};

struct cairn_space {
    uint64_t total_bytes;
    uint64_t free_bytes; /* what new streams may still reserve: free on the device minus what is promised already */
};

struct cairn_store;        /* the plugin's: one storage directory or device */
struct cairn_store_stream; /* the plugin's: one stream open for append or for reading */

/* A store request: owned by the caller until done() is called on the reactor's thread. */
struct cairn_store_req {
    void (*done)(struct cairn_store_req *req, int code); /* code: 0 or negative; err holds the message */
    void *arg;
    uint64_t offset;        /* append: filled with where the record lies */
    struct cairn_error err; /* filled when code is not 0 */
    struct cairn_io io;     /* the plugin's, for its calls to the host */
    void *reserved[8];      /* the plugin's */
};

struct cairn_store_ops {
    size_t size;
    /* Opens or initialises a store; leaves no trace on failure. params include "path". */
    int (*open)(const struct cairn_host *host, const struct cairn_param *params, struct cairn_store **ret_store,
                struct cairn_error *err);
    void (*close)(struct cairn_store *store);
    int (*space)(struct cairn_store *store, struct cairn_space *ret_space, struct cairn_error *err);
    /* Makes a stream and reserves room for its records, or CAIRN_E_NO_SPACE. The generation is random, durable in the
     * file's header before the first sync completes, and must be repeated in every record. The same id may have several
     * streams (one per start of a writer): each create makes a new file. */
    int (*create)(struct cairn_store *store, const struct cairn_stream_id *id, uint64_t reserve_bytes,
                  struct cairn_store_stream **ret_stream, uint64_t *ret_generation, struct cairn_error *err);
    /* Appends a record of len bytes (a multiple of 4096, buf aligned to 4096). Several may be in flight; each gets its
     * own offset. After a failed append or sync the stream is given up: every later call on it fails. */
    void (*append)(struct cairn_store_stream *stream, const void *buf, size_t len, struct cairn_store_req *req);
    /* Completes when everything whose append completed before the call is durable. Never retried after a failure. */
    void (*sync)(struct cairn_store_stream *stream, struct cairn_store_req *req);
    /* Opens an existing stream file for reading. name is as list gave it. */
    int (*open_stream)(struct cairn_store *store, const char *name, struct cairn_store_stream **ret_stream,
                       struct cairn_stream_id *ret_id, uint64_t *ret_generation, uint64_t *ret_end,
                       struct cairn_error *err);
    /* The name under which list and open_stream know a stream made by create. Lives as long as the stream. */
    const char *(*name)(struct cairn_store_stream *stream);
    /* Reads len bytes at offset, both multiples of 4096, into buf aligned to 4096. Short data is CAIRN_E_CORRUPT. */
    void (*read)(struct cairn_store_stream *stream, uint64_t offset, void *buf, size_t len,
                 struct cairn_store_req *req);
    /* No request may be in flight. Frees the reservation that was not used. */
    void (*close_stream)(struct cairn_store_stream *stream);
    /* Calls each() with the name of every stream file, in no order, until each returns non-zero. */
    int (*list)(struct cairn_store *store, int (*each)(void *arg, const char *name), void *arg,
                struct cairn_error *err);
    int (*remove)(struct cairn_store *store, const char *name, struct cairn_error *err);
};
/* The first record of a stream lies at this offset, after the file's header. */
#define CAIRN_STORE_FIRST 4096
/* What was reserved and never written reads as zeros, or as what is left of a removed stream: records with its
 * generation, the last of them perhaps cut off, and then a block that begins with these bytes. */
#define CAIRN_STORE_BLANK "CRNBLANK"

/* ---- meta -------------------------------------------------------------------------------------------------------
 * A small ordered key-value store with transactions, leases and watches. Keys are UTF-8 without NUL, at most 1 KiB;
 * values are at most 64 KiB. The plugin has threads of its own: each call below returns at once, and its completion is
 * called exactly once, from any thread (the daemon's door marshals it to the reactor). Results live during done(). */
struct cairn_meta;
struct cairn_kv {
    const char *key;
    const void *value;
    size_t value_len;
    uint64_t mod_revision; /* of the last change of this key; grows with every transaction of the store */
};
struct cairn_compare { /* holds when the key's mod_revision equals the given one; 0: the key is absent */
    const char *key;
    uint64_t mod_revision;
};
struct cairn_put {
    const char *key;
    const void *value;
    size_t value_len;
    int64_t lease; /* 0: none; else the key is deleted when the lease expires or is revoked */
};
struct cairn_txn {
    const struct cairn_compare *compares;
    size_t ncompares;
    const struct cairn_put *puts;
    size_t nputs;
    const char *const *deletes;
    size_t ndeletes;
};
struct cairn_meta_result {
    int code;                      /* 0 or negative. CAIRN_E_UNAVAILABLE after a txn: unknown, read before speaking */
    const struct cairn_error *err; /* when code is not 0 */
    const struct cairn_kv *kvs;    /* get: 0 or 1; list: in key order */
    size_t nkvs;
    int succeeded;     /* txn: the compares held and it was applied */
    uint64_t revision; /* of the store at the read, or of the transaction */
    int64_t lease;     /* lease_grant */
};
typedef void (*cairn_meta_done)(void *arg, const struct cairn_meta_result *result);
/* A change seen by a watch: value is NULL for a deletion. Called from the plugin's thread, in revision order. code is
 * not 0 when events were lost (compaction): list again. */
typedef void (*cairn_watch_event)(void *arg, int code, const struct cairn_kv *kv);

struct cairn_meta_ops {
    size_t size;
    int (*open)(const struct cairn_param *params, struct cairn_meta **ret_meta, struct cairn_error *err);
    /* Completes what is in flight with CAIRN_E_ABORTED, then joins the plugin's threads. */
    void (*close)(struct cairn_meta *meta);
    void (*get)(struct cairn_meta *meta, const char *key, uint32_t timeout_ms, cairn_meta_done done, void *arg);
    void (*list)(struct cairn_meta *meta, const char *prefix, uint32_t timeout_ms, cairn_meta_done done, void *arg);
    void (*txn)(struct cairn_meta *meta, const struct cairn_txn *txn, uint32_t timeout_ms, cairn_meta_done done,
                void *arg);
    void (*lease_grant)(struct cairn_meta *meta, uint32_t ttl_ms, uint32_t timeout_ms, cairn_meta_done done, void *arg);
    void (*lease_keep)(struct cairn_meta *meta, int64_t lease, uint32_t timeout_ms, cairn_meta_done done, void *arg);
    void (*lease_revoke)(struct cairn_meta *meta, int64_t lease, uint32_t timeout_ms, cairn_meta_done done, void *arg);
    /* Sends every change under prefix after revision since (0: from now on). Returns a watch id, or a negative code. */
    int64_t (*watch)(struct cairn_meta *meta, const char *prefix, uint64_t since, cairn_watch_event event, void *arg);
    /* No event is delivered after it returned. */
    void (*unwatch)(struct cairn_meta *meta, int64_t watch);
};

/* ---- device -----------------------------------------------------------------------------------------------------
 * Copies between an accelerator's memory and the arena, in the trainer's process. The plugin has no link to the
 * vendor's runtime: it opens it when a device is opened. open, pin, unpin and close wait for the device. What takes or
 * gives back memory may wait as the vendor's allocator does: plan, plan_free, loader, loader_free; save while it makes
 * its first tables, and where its volatile slices need more memory than those of every save before, or where it packs
 * and takes or gives back memory for that; the first load of each kind. A load that fails waits until the caller's
 * memory is read no more. No other call waits for it. Threads: a device's functions may be called from several threads
 * at once; those of one plan, copy or loader by one at a time. Streams are the vendor's (cudaStream_t). Work of the
 * plugin runs on streams of its own. */
struct cairn_device;
struct cairn_device_plan;   /* where a save's slices lie in its image: made once for each layout */
struct cairn_device_copy;   /* one save's copies under way */
struct cairn_device_loader; /* copies to the device: one for each thread of a restore */

struct cairn_device_options {
    size_t size;
    uint32_t ordinal;       /* as the runtime numbers devices in this process */
    uint32_t pad;           /* 0 */
    uint64_t staging_bytes; /* most that may be taken of the device's memory */
};

struct cairn_device_slice {
    int dtype;
    uint32_t ndim;
    const uint64_t *length;       /* elements; of all dimensions at least 1 */
    const int64_t *stride_bytes;  /* NULL: row-major, dense */
    uint64_t image_offset, bytes; /* where the slice lies in the image, dense */
    uint32_t flags;               /* CAIRN_TENSOR_VOLATILE */
    uint32_t pad;
};
struct cairn_device_layout {
    size_t size;
    const struct cairn_device_slice *slices; /* of this device, by image_offset; none is empty, none overlap */
    uint32_t nslices;
    uint32_t nparts;          /* of the image, 1 MiB each */
    const uint32_t *part_len; /* bytes of each part that are in use */
    const uint8_t *alone;     /* of each part: 1 when it has bytes of this device's slices only; gaps are then this
                                 device's to zero */
    /* Behind the first version's fields. */
    const uint8_t *width; /* of each part: bytes of an element, as codec-float packs the part's dtype; 0: not packed.
                             NULL: no part is. For PACK */
};

struct cairn_device_sum { /* XXH3-128 of a part's bytes, part_len of them, with the save's seed */
    uint64_t low, high;
};
enum cairn_device_save_flags {
    CAIRN_DEVICE_SUMS = 1, /* give the sums of parts that are alone */
    CAIRN_DEVICE_SKIP = 2, /* do not copy parts whose sum is that of held; implies SUMS */
    CAIRN_DEVICE_PACK = 4, /* of parts that are alone and have a width, put into the page what codec-float makes of
                              them, where that saves a twentieth of their bytes. Not with SKIP. What cannot (no kernels,
                              no memory for it) copies them as they are */
};
struct cairn_device_save {
    size_t size;
    const void *const *data; /* of each slice: its first element */
    void *const *page;       /* of each part with bytes of this device: its page, in pinned memory */
    void *stream;            /* whose work so far the copies wait for */
    uint32_t flags;          /* enum cairn_device_save_flags */
    uint32_t pad;
    uint64_t seed;                       /* of sums */
    const struct cairn_device_sum *held; /* of each part: what its page holds; both 0: nobody knows. For SKIP */
};
struct cairn_device_progress {
    size_t size;
    int ended;      /* nothing is under way any more, and no memory of the save is read or written */
    uint32_t parts; /* the first so many parts have all this device's bytes; all of them once ended without error */
    /* Once ended; they live as long as the copy. */
    const struct cairn_device_sum *sums; /* of each part, both 0 where there is none; NULL: not asked for, or not had */
    const uint8_t *skipped;              /* of each part: 1 when its page was as it should be; NULL: none was skipped */
    uint64_t copied_bytes, skipped_bytes, staged_bytes;
    /* Behind the first version's fields. */
    const uint32_t *packed; /* of each part below parts: bytes in its page, packed; 0: it is there as it is. NULL: all
                               are. Lives as long as the copy */
    uint64_t device_ns;     /* once ended: from the first of its work in streams to the last, as the device's clock has
                               it; 0: not known */
};

/* Bytes of the host that go to the device: count elements of elem bytes each, side by side at from. */
struct cairn_device_run {
    const void *from;
    void *to;
    uint64_t count;
    int64_t stride_bytes; /* between elements at to */
    uint32_t elem;
    uint32_t pad;
};

struct cairn_device_ops {
    size_t size;
    /* UNSUPPORTED: the runtime, the driver or the device is missing; the message says what to do. */
    int (*open)(const struct cairn_device_options *options, struct cairn_device **ret_device, struct cairn_error *err);
    /* No copy and no loader is left. What is pinned is unpinned. */
    void (*close)(struct cairn_device *device);
    /* One line for people: the device, the runtime's version, what is not available and why. */
    void (*describe)(struct cairn_device *device, char *text, size_t room);
    /* INVAL when it is not plain memory of this device: the host's, managed, another device's, or of a graph's pool. */
    int (*check)(struct cairn_device *device, const void *data, uint64_t bytes, struct cairn_error *err);
    /* Host memory that copies may read and write. Memory that is pinned already, also for another device, is no error.
     * In pieces: other threads' calls of the runtime come in between. */
    int (*pin)(struct cairn_device *device, void *base, uint64_t bytes, struct cairn_error *err);
    void (*unpin)(struct cairn_device *device, void *base, uint64_t bytes);

    int (*plan)(struct cairn_device *device, const struct cairn_device_layout *layout,
                struct cairn_device_plan **ret_plan, struct cairn_error *err);
    void (*plan_free)(struct cairn_device_plan *plan);
    /* Puts all copies of a save into streams. Volatile slices are copied aside in the save's own stream. A failure
     * leaves nothing under way; what fails later, progress tells. The plan must outlive the copy. TOO_LARGE: volatile
     * slices do not fit into staging_bytes. */
    int (*save)(struct cairn_device_plan *plan, const struct cairn_device_save *save,
                struct cairn_device_copy **ret_copy, struct cairn_error *err);
    /* As cairn_save_fence: for all copies that were put into streams before. */
    int (*fence)(struct cairn_device *device, void *stream, struct cairn_error *err);
    /* How far it is. Negative: it has failed; ended is filled in then too, and until then memory is still in use. */
    int (*progress)(struct cairn_device_copy *copy, struct cairn_device_progress *ret_progress,
                    struct cairn_error *err);
    /* Ended. */
    void (*copy_free)(struct cairn_device_copy *copy);

    int (*loader)(struct cairn_device *device, struct cairn_device_loader **ret_loader, struct cairn_error *err);
    /* Nothing is under way. */
    void (*loader_free)(struct cairn_device_loader *loader);
    /* Begins to copy. What lies in pinned memory is read until loaded() says so; anything else has been read on return.
     * Tickets grow. BUSY: too much is under way: ask loaded() until something has ended. */
    int (*load)(struct cairn_device_loader *loader, const struct cairn_device_run *runs, uint32_t n,
                uint64_t *ret_ticket, struct cairn_error *err);
    /* 1: all up to the ticket are on the device; 0: not yet; negative: it failed. */
    int (*loaded)(struct cairn_device_loader *loader, uint64_t ticket, struct cairn_error *err);
};

#endif
