/* SPDX-License-Identifier: Apache-2.0 */
/* cairn.h: save and restore the state of a training job through the node's cairnd.
 *
 * The happy path of one rank:
 *
 *     cairn_session_open()                     once; faults the arena in
 *     every N steps:
 *         cairn_save_begin(step)               free, no I/O
 *         cairn_save_add(tensor) ...           notes name, place and pointer
 *         cairn_save_seal()                    the stall: one copy into the arena; the tensors may change after it
 *         cairn_save_free()                    the daemon goes on by itself
 *     (cairn_save_all() is begin, add and seal in one call)
 *     after a failure:
 *         cairn_restore_open(CAIRN_LATEST), cairn_restore_add() ..., cairn_restore_run()
 *
 * Conventions: functions return 0 or a negative enum cairn_code and, when the caller gave one, fill a struct
 * cairn_error with what was tried, on what, and what to do. Outputs are called ret_x and are untouched on failure.
 * Sizes are in bytes, times in milliseconds. Every wait has a deadline; a timeout of 0 means "do not wait".
 * Strings and arrays given to a call are copied before it returns unless the call says otherwise.
 * Threads: a session may be used from several threads at once; a save or a restore belongs to one thread at a time.
 * A session that saves from devices has one thread of its own, which takes no signals.
 * After fork() the child gets CAIRN_E_FORKED from every call; it must not touch the arena.
 */
#ifndef CAIRN_CAIRN_H
#define CAIRN_CAIRN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CAIRN_API __attribute__((visibility("default")))

/* Codes are part of the ABI: never renumbered. */
enum cairn_code {
    CAIRN_OK = 0,
    CAIRN_E_INVAL = -1,        /* the caller's input is wrong; the message names the culprit */
    CAIRN_E_NOMEM = -2,        /* an allocation in this process failed */
    CAIRN_E_IO = -3,           /* the system refused an operation; sys_errno says why */
    CAIRN_E_TIMEOUT = -4,      /* the deadline passed; the message names who was late */
    CAIRN_E_BUSY = -5,         /* no room now; trying again later can succeed */
    CAIRN_E_TOO_LARGE = -6,    /* does not fit the arena or a limit; trying again cannot succeed */
    CAIRN_E_NOT_FOUND = -7,    /* no such job, checkpoint or tensor */
    CAIRN_E_EXISTS = -8,       /* taken: a rank, a step, a name, a socket */
    CAIRN_E_FENCED = -9,       /* a newer incarnation of the job has taken over */
    CAIRN_E_STALE_PIN = -10,   /* the job's resume step moved: load again before saving */
    CAIRN_E_CORRUPT = -11,     /* a checksum or a structure does not verify; no byte of it was handed out */
    CAIRN_E_UNAVAILABLE = -12, /* the daemon, a peer or the metadata engine cannot be reached */
    CAIRN_E_NO_SPACE = -13,    /* storage is full */
    CAIRN_E_DENIED = -14,      /* credentials do not allow it */
    CAIRN_E_PROTOCOL = -15,    /* the other side broke the protocol or speaks another version */
    CAIRN_E_ABORTED = -16,     /* the save or checkpoint was dropped; the message says by what */
    CAIRN_E_FORKED = -17,      /* called in a forked child */
    CAIRN_E_UNSUPPORTED = -18, /* known, but not in this version */
    CAIRN_E_INTR = -19,        /* a signal interrupted a wait; call again to go on waiting */
};

/* Short stable name of a code ("timeout"), for logs and JSON. Never NULL. */
CAIRN_API const char *cairn_code_name(int code);

struct cairn_error {
    size_t size;       /* sizeof(struct cairn_error) */
    int code;          /* enum cairn_code */
    int sys_errno;     /* errno behind it, or 0 */
    char message[496]; /* always terminated */
};
#define CAIRN_ERROR_INIT                     \
    {                                        \
        sizeof(struct cairn_error), 0, 0, "" \
    }

/* Element types: safetensors' whole-byte types, and raw bytes. Values are part of the ABI and of every format. */
enum cairn_dtype {
    CAIRN_BYTES = 1, /* opaque; one element is one byte */
    CAIRN_BOOL = 2,
    CAIRN_U8 = 3,
    CAIRN_I8 = 4,
    CAIRN_U16 = 5,
    CAIRN_I16 = 6,
    CAIRN_U32 = 7,
    CAIRN_I32 = 8,
    CAIRN_U64 = 9,
    CAIRN_I64 = 10,
    CAIRN_F8_E4M3 = 11,
    CAIRN_F8_E5M2 = 12,
    CAIRN_F8_E8M0 = 13,
    CAIRN_F8_E4M3FNUZ = 14,
    CAIRN_F8_E5M2FNUZ = 15,
    CAIRN_F16 = 16,
    CAIRN_BF16 = 17,
    CAIRN_F32 = 18,
    CAIRN_F64 = 19,
    CAIRN_C64 = 20, /* complex of two F32 */
};
/* Bytes of one element; 0 for a value that is no dtype. */
CAIRN_API size_t cairn_dtype_size(int dtype);
/* safetensors' name ("BF16"); CAIRN_BYTES is "BYTES". NULL for a value that is no dtype. */
CAIRN_API const char *cairn_dtype_name(int dtype);

#define CAIRN_MAX_NAME 128         /* bytes of a job's name or a start id: [A-Za-z0-9._-], not "." or ".." */
#define CAIRN_MAX_TENSOR_NAME 4096 /* bytes of a tensor's name: UTF-8 without control characters */
#define CAIRN_MAX_DIMS 16

/* ---- session --------------------------------------------------------------------------------- */

struct cairn_session;

enum cairn_session_flags {
    CAIRN_OBSERVER = 1,    /* no rank and no arena: may restore and query only. rank, world and arena are ignored */
    CAIRN_TAKE_OVER = 2,   /* start a new incarnation although sessions of the current one live; they are fenced */
    CAIRN_TRACK = 4,       /* seal copies only pages that were written since the arena got them. Worth it where little
                              changes from save to save (frozen or sparse state): the first write to a page after a save
                              costs a page fault, huge pages are split where they are written to, and mremap of a
                              tensor's memory may fail. Needs Linux 6.7 and
                              leave to use userfaultfd; without it everything is copied, see cairn_save_info. Tensors
                              on a device are hashed there, a MiB of the image at a time, by XXH3-128 with a random seed:
                              one that changed is taken for unchanged with a probability of about 2^-128. That takes the
                              plugin's kernels (docs/gpu.md), and nothing of the host or of another device in that MiB;
                              else it is copied */
    CAIRN_SOURCE_SUMS = 8, /* the device also gives a checksum of what it reads, and the daemon refuses the snapshot
                              when what has arrived in the arena is something else. Under the same conditions, and with
                              a daemon that knows of it; what has no checksum is not compared */
    CAIRN_PACK = 16,       /* tensors on devices are packed there, as the codec "float" does, and cross the bus smaller,
                              where that measures faster: every so many saves are copied the other way to see. The daemon
                              checks what arrives as with CAIRN_SOURCE_SUMS. Not together with CAIRN_TRACK, which keeps
                              what the arena holds. A daemon that dies before such a save is durable takes it along. What
                              fails because of packing ends it for the session, if the save was waited for: a handle that
                              is freed before hears of no failure */
};

struct cairn_session_options {
    size_t size;
    const char *job;
    uint32_t rank;           /* 0 <= rank < world_size */
    uint32_t world_size;     /* ranks of this incarnation, at least 1 */
    uint64_t arena_bytes;    /* room for snapshots; at least one shard plus a window (25%) to overlap saves */
    const char *start_id;    /* names this start of the job, equal on all ranks. NULL: taken from
                                TORCHELASTIC_RUN_ID and TORCHELASTIC_RESTART_COUNT, or SLURM_JOB_ID and
                                SLURM_RESTART_COUNT; without these a world of 1 gets a random one, a larger fails */
    const char *socket_path; /* NULL: $CAIRN_SOCKET, or /run/cairn/cairnd.sock */
    uint32_t timeout_ms;     /* for open and for each later exchange with the daemon; 0 means 30,000 */
    uint32_t copy_threads;   /* threads that seal may use for its copy; 0 means 1 */
    uint32_t flags;          /* enum cairn_session_flags */
    /* Behind the first version's fields: all zero means what they meant before they were there. */
    uint64_t device_staging_bytes; /* of each device's own memory that the session may take, for tensors that are
                                      volatile, small or strided, and for what is packed (CAIRN_PACK); 0 means 256 MiB.
                                      Taken at the first use. Volatile ones that do not fit are TOO_LARGE; the others do
                                      with what there is. Besides it there are tables (some 100 bytes a tensor and 50 a
                                      MiB), and 16 MiB for each thread of a restore */
    const char *plugin_path;       /* directory of device plugins; NULL: $CAIRN_PLUGIN_PATH, or where libcairn's are */
};

/* Connects, joins or raises the job's incarnation and maps the arena, faulted in. Errors: INVAL, EXISTS (the rank is
 * taken), BUSY (another start of the job is alive), FENCED (this start id was replaced), TOO_LARGE (no such arena in
 * the daemon's memory budget), UNAVAILABLE, TIMEOUT. */
CAIRN_API int cairn_session_open(const struct cairn_session_options *options, struct cairn_session **ret_session,
                                 struct cairn_error *err);
/* Waits for copies from devices that are under way, for the session's timeout at most, and else for nothing: sealed
 * saves go on in the daemon. NULL is allowed. Saves and restores must be freed before. */
CAIRN_API void cairn_session_close(struct cairn_session *session);
/* A descriptor that becomes readable when a state of a save may have changed. Owned by the session. */
CAIRN_API int cairn_session_fd(const struct cairn_session *session);
/* The fencing number this session saves under; 0 for an observer. */
CAIRN_API uint64_t cairn_session_incarnation(const struct cairn_session *session);
/* Room for snapshots: at least what was asked for, and more where the rank's arena of before its restart was larger,
 * which still has its last snapshot. 0 for an observer. */
CAIRN_API uint64_t cairn_session_arena_bytes(struct cairn_session *session);

/* ---- devices --------------------------------------------------------------------------------- */

/* Where memory lies: cairn_tensor.device. */
#define CAIRN_HOST 0u
/* Of the CUDA runtime, as this process numbers them: 0 to 63. */
#define CAIRN_CUDA(ordinal) (0x10000u + (uint32_t)(ordinal))

/* A stream of a device (cudaStream_t); NULL is the legacy default stream. */
struct cairn_stream {
    uint32_t device;
    uint32_t pad; /* 0 */
    void *stream;
};

/* Loads the device's plugin and the vendor's runtime, and pins the arena for it, which takes about as long as faulting
 * it in: what the first save or restore with a tensor on the device would do. Errors: UNSUPPORTED says what is missing
 * (the plugin, the runtime, a driver, the device), NOMEM, IO. */
CAIRN_API int cairn_session_use_device(struct cairn_session *session, uint32_t device, struct cairn_error *err);
/* Makes the stream wait, and not the host, until the device's tensors of every save sealed or staged before have been
 * copied: what is put into it afterwards may write to them. Stands before the first writer: the optimizer's step; where
 * the optimizer runs within backward, before backward. In a stream that is being captured into a CUDA graph it becomes
 * an external wait: each launch of the graph waits for the saves of this session sealed or staged before the launch,
 * and for nothing once the session is closed. Costs nothing when nothing is under way; and before the session has used
 * the device (cairn_session_use_device, or a save with a tensor there) it does nothing, also while a stream is
 * captured. Errors: INVAL, IO (what the runtime says). */
CAIRN_API int cairn_save_fence(struct cairn_session *session, uint32_t device, void *stream, struct cairn_error *err);

/* ---- save ------------------------------------------------------------------------------------ */

struct cairn_save;

/* A slice of a tensor. For a whole tensor offset is all zeros (or NULL) and length equals shape (or NULL). */
struct cairn_tensor {
    size_t size;
    const char *name;
    int dtype;                   /* enum cairn_dtype */
    uint32_t ndim;               /* 0 for a scalar; at most CAIRN_MAX_DIMS */
    const uint64_t *shape;       /* global shape, elements per dimension; an empty tensor has a 0 here */
    const uint64_t *offset;      /* where this rank's slice begins, elements per dimension */
    const uint64_t *length;      /* extent of the slice, elements per dimension; may be 0 only where shape is 0 */
    const int64_t *stride_bytes; /* distance between neighbours of a dimension in memory; NULL: row-major, dense */
    void *data;                  /* first element of the slice; save only reads it, restore writes it. NULL: see
                                    cairn_save_stage */
    uint32_t flags;              /* enum cairn_tensor_flags */
    uint32_t device;             /* where data lies: CAIRN_HOST, or CAIRN_CUDA(i) */
};
enum cairn_tensor_flags {
    /* Something that the kernel does not see writes to this memory: a GPU or a network card to which it was registered
     * (pinned), or another process. With CAIRN_TRACK such a tensor is always copied. */
    CAIRN_TENSOR_DEVICE_WRITES = 1,
    /* On a device, and changed by forward or backward already (running statistics, fp8 amax, a generator's state): it
     * is copied aside on the device, within device_staging_bytes, in the order of the save's stream: work that is put
     * into that stream after seal may change it without a fence. */
    CAIRN_TENSOR_VOLATILE = 2,
    /* Ranks that save a slice of this name, shape and place hold the same bytes (a data-parallel replica): their
     * digests are compared before the commit. */
    CAIRN_TENSOR_COMMON = 4,
};

enum cairn_on_busy {
    CAIRN_BUSY_FAIL = 0, /* seal returns CAIRN_E_BUSY at once when the arena has no room */
    CAIRN_BUSY_WAIT = 1, /* seal waits for room up to timeout_ms */
};

struct cairn_save_options {
    size_t size;
    uint64_t step;       /* the training step; each step is saved at most once per incarnation */
    int on_busy;         /* enum cairn_on_busy */
    uint32_t timeout_ms; /* how long seal may wait for room; 0 means the session's timeout */
    /* Behind the first version's fields. */
    const struct cairn_stream *streams; /* what wrote the tensors, one stream a device: copies begin when what it holds
                                           at seal or stage has run. Of a device that is not named: its legacy default
                                           stream */
    uint32_t nstreams;
};

enum cairn_save_state {
    CAIRN_SNAPSHOT = 1,  /* the shard is complete and immutable in the arena */
    CAIRN_DURABLE = 2,   /* this rank's shard is on stable storage of the peers */
    CAIRN_COMMITTED = 3, /* the checkpoint of all ranks exists */
};

CAIRN_API int cairn_save_begin(struct cairn_session *session, const struct cairn_save_options *options,
                               struct cairn_save **ret_save, struct cairn_error *err);
/* Notes one slice. The data is not read before seal (or stage) and must not move until it returns. Errors: INVAL names
 * the tensor (overlap with an earlier slice of this save, out of range, overflow, bad name). */
CAIRN_API int cairn_save_add(struct cairn_save *save, const struct cairn_tensor *tensor, struct cairn_error *err);
/* The same for each of them, until one is refused. They lie tensors[0].size bytes apart, with one size. */
CAIRN_API int cairn_save_add_all(struct cairn_save *save, const struct cairn_tensor *tensors, uint64_t count,
                                 struct cairn_error *err);
/* Copies every slice into the arena and hands the snapshot to the daemon, whose answer it does not wait for. On return
 * the tensors may be changed; those on devices only by what cairn_save_fence holds back, or once cairn_save_wait says
 * CAIRN_SNAPSHOT, and until then their memory must stay theirs: their copies go on behind it, and what fails there is
 * told by cairn_save_wait. A daemon that dies after it has given room is no error: the next one finds the snapshot
 * in the arena. What it says against the snapshot later (another rank gave the step up, a newer incarnation) is told by
 * cairn_save_wait. Errors: BUSY, TOO_LARGE, EXISTS (this step was saved already), FENCED, ABORTED, UNAVAILABLE;
 * training may go on after any. INVAL names a tensor without data of a save that was not staged; nothing is lost then.
 */
CAIRN_API int cairn_save_seal(struct cairn_save *save, struct cairn_error *err);
/* begin, add_all and seal in one call. On failure there is no save, and the step is given up as cairn_save_free does
 * before seal. Errors: those of the three. */
CAIRN_API int cairn_save_all(struct cairn_session *session, const struct cairn_save_options *options,
                             const struct cairn_tensor *tensors, uint64_t count, struct cairn_save **ret_save,
                             struct cairn_error *err);
/* The first half of seal: takes room in the arena and copies every slice that has data; those on devices behind it, as
 * seal does: their memory must stay theirs until CAIRN_SNAPSHOT. Where stage fails or the save is given up, copies that
 * are under way end all the same: what cairn_save_fence holds back is behind them. Slices whose data is
 * NULL (their stride_bytes are ignored) are the caller's to write, all of each, at cairn_save_place, from any thread;
 * the snapshot is complete only with cairn_save_seal, which then copies nothing. By then every write must have ended:
 * other threads are joined, a GPU has been waited for. What was not written is what an earlier save left there. Between
 * the two the daemon keeps the room, for as long as this takes; but a checkpoint that is not complete when the daemon's
 * checkpoint_s (default 600 s) have passed since the last of its ranks began is aborted for all ranks, and seal or
 * cairn_save_wait says ABORTED. A process that dies between the two drops the save; a daemon that dies is no error, as
 * with seal. cairn_save_free instead of seal gives the step up and the room back. Errors: those of seal. */
CAIRN_API int cairn_save_stage(struct cairn_save *save, struct cairn_error *err);
/* Where the i-th slice that was added lies, dense and row-major, at least 64 bytes aligned: memory shared with the
 * daemon, unknown in a forked child. Valid after stage until the save is freed; what a device copies is there
 * from CAIRN_SNAPSHOT on. One without data may be written until
 * seal; nothing else may ever be, and what is read there after the commit may be a later save's. Errors: INVAL (not
 * staged), NOT_FOUND (i), IO (no more mappings). */
CAIRN_API int cairn_save_place(struct cairn_save *save, uint64_t i, void **ret_data, struct cairn_error *err);
/* Waits until the save has reached the state. Errors: TIMEOUT, ABORTED (why is in the message), UNAVAILABLE, INTR. When
 * the daemon is away it is waited for until the deadline; UNAVAILABLE, which names the socket, is no end then: the
 * snapshot is in the arena, and a later wait finds the daemon that has come back. A timeout of 0 connects to nobody.
 * Where flushes are spread over time, a wait with a timeout makes this one go at full speed on all nodes; to look with
 * a timeout of 0 does not. */
CAIRN_API int cairn_save_wait(struct cairn_save *save, int state, uint32_t timeout_ms, struct cairn_error *err);
struct cairn_save_info {
    size_t size;
    uint64_t bytes;        /* of all slices */
    uint64_t copied_bytes; /* by seal or stage, from the host's memory; the rest was in the arena already (CAIRN_TRACK),
                              is the caller's, or a device's */
    uint64_t tracked_bytes; /* of tensors whose writes are watched now */
    char tracking[256];     /* "on", or why nothing is tracked */
    /* Behind the first version's fields; known once the save has reached CAIRN_SNAPSHOT. */
    uint64_t device_bytes;    /* of the tensors on devices */
    uint64_t unchanged_bytes; /* of them, not copied because the arena had them (CAIRN_TRACK) */
    uint64_t staged_bytes;    /* of them, copied aside on the device first */
    uint64_t packed_bytes;    /* of them, packed on the device: fewer crossed the bus (CAIRN_PACK) */
};
/* What seal did. Errors: INVAL, FORKED. */
CAIRN_API int cairn_save_info(const struct cairn_save *save, struct cairn_save_info *ret_info);

/* Before seal: gives the step up for this rank, the checkpoint is aborted at once, or when the copies from
 * devices that stage began have ended. After it: only forgets the handle;
 * copies from devices that are under way go on. */
CAIRN_API void cairn_save_free(struct cairn_save *save);

/* ---- restore --------------------------------------------------------------------------------- */

#define CAIRN_LATEST UINT64_MAX /* as a step: the highest committed (incarnation, step) */
/* As a step of what reads: the highest whose tensors have no NaN and no Inf. Those of which this is not known are
 * passed over. A rank that opens it is not pinned to it: what its job resumes from stays what cairn_latest says. */
#define CAIRN_LATEST_FINITE (UINT64_MAX - 1)

/* The step that all ranks of this incarnation resume from. The first rank that asks fixes it; an observer gets the
 * newest committed step. NOT_FOUND: the job has no checkpoint yet, start from scratch. */
CAIRN_API int cairn_latest(struct cairn_session *session, uint64_t *ret_step, struct cairn_error *err);

struct cairn_restore;

/* Opens a committed checkpoint for reading, by any world size. */
CAIRN_API int cairn_restore_open(struct cairn_session *session, uint64_t step, uint32_t timeout_ms,
                                 struct cairn_restore **ret_restore, struct cairn_error *err);

struct cairn_checkpoint_info {
    size_t size;
    uint64_t step;
    uint64_t incarnation; /* of the run that saved it */
    uint32_t world_size;  /* of the run that saved it */
    uint64_t slices;      /* see cairn_restore_slice */
    uint64_t bytes;       /* of all slices */
};
CAIRN_API int cairn_restore_info(const struct cairn_restore *restore, struct cairn_checkpoint_info *ret_info);

/* The i-th slice that was saved, 0 <= i < slices, ordered by rank and then as saved. data and stride_bytes are NULL.
 * What ret_tensor points to lives as long as the restore. */
CAIRN_API int cairn_restore_slice(const struct cairn_restore *restore, uint64_t i, uint32_t *ret_rank,
                                  struct cairn_tensor *ret_tensor);

/* dtype and global shape of a saved tensor, by name; the rest of ret_tensor is NULL. Where ranks saved different
 * tensors under one name: that of the session's own rank, else of the lowest. What ret_tensor points to lives as long
 * as the restore. Errors: NOT_FOUND when nobody saved it. */
CAIRN_API int cairn_restore_find(const struct cairn_restore *restore, const char *name, struct cairn_tensor *ret_tensor,
                                 struct cairn_error *err);

/* Asks for a slice of a tensor by name, in global coordinates, into tensor->data, which is memory of tensor->device.
 * dtype and shape must be those of the checkpoint. Elements that several ranks saved under this name are taken from the
 * session's own rank if it is among them (a rank's number, whatever the world size was then), else from the lowest; an
 * observer takes them from the lowest. Errors: NOT_FOUND names the tensor or the elements that no rank saved. */
CAIRN_API int cairn_restore_add(struct cairn_restore *restore, const struct cairn_tensor *tensor,
                                struct cairn_error *err);
/* The same for each of them, all or none. They lie tensors[0].size bytes apart, with one size. */
CAIRN_API int cairn_restore_add_all(struct cairn_restore *restore, const struct cairn_tensor *tensors, uint64_t count,
                                    struct cairn_error *err);
/* As above, but exactly the i-th saved slice: for tools that give back each rank's own view. */
CAIRN_API int cairn_restore_add_slice(struct cairn_restore *restore, uint64_t i, void *data, struct cairn_error *err);

/* Called by cairn_restore_run from the calling thread, about ten times a second and once at the end. Anything but 0
 * ends the run with INTR. */
typedef int (*cairn_progress_fn)(void *arg, uint64_t done_bytes, uint64_t total_bytes);

/* Reads everything that was added; on return it is where it was asked for, on devices too, whatever stream reads it
 * then; no stream may use that memory meanwhile.
 * Only bytes whose checksums verified are left there. Not atomic: after an error the contents of the targets are
 * undefined. May be called again after more adds. */
CAIRN_API int cairn_restore_run(struct cairn_restore *restore, uint32_t timeout_ms, cairn_progress_fn progress,
                                void *arg, struct cairn_error *err);
CAIRN_API void cairn_restore_free(struct cairn_restore *restore);

/* ---- queries --------------------------------------------------------------------------------- */

enum cairn_query_kind {
    CAIRN_QUERY_STATUS = 1, /* the daemon, its peers, sessions and saves under way */
    CAIRN_QUERY_LIST = 2,   /* jobs, or the checkpoints of one job */
    CAIRN_QUERY_SHOW = 3,   /* one checkpoint: shards, tensors, sizes, where fragments lie */
    CAIRN_QUERY_VERIFY = 4, /* reads and checks every fragment of one checkpoint on its peer */
};
/* Asks the daemon and returns its answer as JSON text (docs/json.md), owned by the caller: free() it. job may be NULL
 * for STATUS and LIST; step is used by SHOW and VERIFY. */
CAIRN_API int cairn_query(struct cairn_session *session, int kind, const char *job, uint64_t step, uint32_t timeout_ms,
                          char **ret_json, struct cairn_error *err);

/* ---- commands: what changes something -------------------------------------------------------- */

enum cairn_command_kind {
    CAIRN_COMMAND_PIN = 1,      /* hold a committed checkpoint against retention; argument: a label for the hold */
    CAIRN_COMMAND_UNPIN = 2,    /* give that hold up */
    CAIRN_COMMAND_DELETE = 3,   /* delete a committed checkpoint */
    CAIRN_COMMAND_RETAIN = 4,   /* set the job's retention; argument: the rule */
    CAIRN_COMMAND_REPAIR = 10,  /* rebuild what is missing or corrupt onto healthy peers */
    CAIRN_COMMAND_SCRUB = 11,   /* let peers verify what they store */
    CAIRN_COMMAND_REBUILD = 12, /* rebuild the job's records from what the peers store; job NULL: of all jobs */
};
#define CAIRN_COMMAND_TEXT 512 /* bytes of an argument with its end */
/* As cairn_query(), for what changes something: who may open the daemon's socket may do it. argument may be NULL.
 * Errors name what forbids it. */
CAIRN_API int cairn_command(struct cairn_session *session, int kind, const char *job, uint64_t step,
                            const char *argument, uint32_t timeout_ms, char **ret_json, struct cairn_error *err);

#ifdef __cplusplus
}
#endif
#endif
