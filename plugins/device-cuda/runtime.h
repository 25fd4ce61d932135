/* SPDX-License-Identifier: Apache-2.0 */
/* What is used of the CUDA runtime, declared here so that no CUDA header is needed to build. The runtime is found when
 * a device is opened (runtime.c); tests/conformance/cuda_headers.c compares these declarations with the real ones. */
#ifndef CAIRN_PLUGINS_DEVICE_CUDA_RUNTIME_H
#define CAIRN_PLUGINS_DEVICE_CUDA_RUNTIME_H

#include <cairn/cairn.h>

/* The real types instead, for that comparison. */
#ifdef CAIRN_CUDA_REAL_TYPES
typedef cudaError_t cuda_error;
typedef cudaStream_t cuda_stream;
typedef cudaEvent_t cuda_event;
typedef cudaLibrary_t cuda_library;
typedef cudaKernel_t cuda_kernel;
typedef dim3 cuda_dim3;
typedef enum cudaMemcpyKind cuda_copy_kind;
typedef enum cudaDeviceAttr cuda_attribute;
typedef enum cudaStreamCaptureStatus cuda_capture_status;
typedef enum cudaStreamCaptureMode cuda_capture_mode;
typedef enum cudaJitOption cuda_jit_option;
typedef enum cudaLibraryOption cuda_library_option;
typedef struct cudaPointerAttributes cuda_pointer;
typedef struct cudaMemcpyAttributes cuda_copy_attributes;
typedef CUcontext cuda_context;
typedef CUresult cuda_driver_error;
typedef CUdevice cuda_driver_device;
#else
typedef int cuda_error;
typedef void *cuda_stream;
typedef void *cuda_event;
typedef void *cuda_library;
typedef void *cuda_kernel;
typedef struct {
    unsigned int x, y, z;
} cuda_dim3;
typedef unsigned int cuda_copy_kind; /* gcc's type of an enum without negative values */
typedef unsigned int cuda_attribute;
typedef unsigned int cuda_capture_status;
typedef unsigned int cuda_capture_mode;
typedef unsigned int cuda_jit_option;
typedef unsigned int cuda_library_option;
typedef struct {
    unsigned int type; /* CUDA_MEMORY_* */
    int device;
    void *device_pointer;
    void *host_pointer;
    long reserved[8]; /* of version 13; earlier ones fill less */
} cuda_pointer;
typedef struct {
    unsigned int source_order; /* CUDA_ORDER_STREAM */
    struct {
        unsigned int type;
        int id;
    } from, to; /* for managed memory */
    unsigned int flags;
} cuda_copy_attributes;
typedef void *cuda_context;
typedef int cuda_driver_error;
typedef int cuda_driver_device;
#endif

enum cuda_constants {
    CUDA_OK = 0,
    CUDA_E_INVALID_VALUE = 1,
    CUDA_E_MEMORY_ALLOCATION = 2,
    CUDA_E_INITIALIZATION = 3,
    CUDA_E_UNLOADING = 4,
    CUDA_E_INSUFFICIENT_DRIVER = 35,
    CUDA_E_NEWER_DRIVER = 36,
    CUDA_E_NO_DEVICE = 100,
    CUDA_E_INVALID_DEVICE = 101,
    CUDA_E_NO_KERNEL_IMAGE = 209,
    CUDA_E_ECC = 214,
    CUDA_E_NVLINK = 220,
    CUDA_E_CONTAINED = 226,
    CUDA_E_INVALID_HANDLE = 400,
    CUDA_E_SYMBOL_NOT_FOUND = 500,
    CUDA_E_NOT_READY = 600,
    CUDA_E_ILLEGAL_ADDRESS = 700,
    CUDA_E_LAUNCH_TIMEOUT = 702,
    CUDA_E_CONTEXT_DESTROYED = 709,
    CUDA_E_ASSERT = 710,
    CUDA_E_ALREADY_REGISTERED = 712,
    CUDA_E_NOT_REGISTERED = 713,
    CUDA_E_HARDWARE_STACK = 714,
    CUDA_E_LAUNCH_FAILURE = 719,
    CUDA_E_NOT_SUPPORTED = 801,
    CUDA_E_CAPTURE_UNSUPPORTED = 900,
    CUDA_E_CAPTURE_INVALIDATED = 901,
    CUDA_E_CAPTURE_IMPLICIT = 906,
    CUDA_E_UNKNOWN = 999,

    CUDA_MEMORY_UNREGISTERED = 0,
    CUDA_MEMORY_HOST = 1,
    CUDA_MEMORY_DEVICE = 2,
    CUDA_MEMORY_MANAGED = 3,

    CUDA_HOST_TO_DEVICE = 1,
    CUDA_DEVICE_TO_HOST = 2,
    CUDA_DEVICE_TO_DEVICE = 3,

    CUDA_ORDER_STREAM = 1,
    CUDA_OVERLAP_WITH_COMPUTE = 1,

    CUDA_STREAM_NON_BLOCKING = 1,
    CUDA_EVENT_DISABLE_TIMING = 2,
    CUDA_EVENT_WAIT_EXTERNAL = 1,
    CUDA_HOST_PORTABLE = 1, /* of cudaHostRegister and cudaHostAlloc */
    CUDA_HOST_MAPPED = 2,
    CUDA_CAPTURE_NONE = 0,
    CUDA_CAPTURE_RELAXED = 2,

    CUDA_ATTRIBUTE_MAX_PITCH = 11,
    CUDA_ATTRIBUTE_MULTIPROCESSORS = 16,
    CUDA_ATTRIBUTE_MAJOR = 75,
    CUDA_ATTRIBUTE_MINOR = 76,
};

/* X(field, symbol, result, parameters): what every version since 11 has. */
#define CUDA_REQUIRED(X)                                                                              \
    X(error_string, cudaGetErrorString, const char *, (cuda_error))                                   \
    X(take_error, cudaGetLastError, cuda_error, (void))                                               \
    X(peek_error, cudaPeekAtLastError, cuda_error, (void))                                            \
    X(runtime_version, cudaRuntimeGetVersion, cuda_error, (int *))                                    \
    X(driver_version, cudaDriverGetVersion, cuda_error, (int *))                                      \
    X(device_count, cudaGetDeviceCount, cuda_error, (int *))                                          \
    X(get_device, cudaGetDevice, cuda_error, (int *))                                                 \
    X(set_device, cudaSetDevice, cuda_error, (int))                                                   \
    X(attribute, cudaDeviceGetAttribute, cuda_error, (int *, cuda_attribute, int))                    \
    X(bus_id, cudaDeviceGetPCIBusId, cuda_error, (char *, int, int))                                  \
    X(priorities, cudaDeviceGetStreamPriorityRange, cuda_error, (int *, int *))                       \
    X(malloc, cudaMalloc, cuda_error, (void **, size_t))                                              \
    X(free, cudaFree, cuda_error, (void *))                                                           \
    X(host_alloc, cudaHostAlloc, cuda_error, (void **, size_t, unsigned int))                         \
    X(host_free, cudaFreeHost, cuda_error, (void *))                                                  \
    X(host_register, cudaHostRegister, cuda_error, (void *, size_t, unsigned int))                    \
    X(host_unregister, cudaHostUnregister, cuda_error, (void *))                                      \
    X(host_pointer, cudaHostGetDevicePointer, cuda_error, (void **, void *, unsigned int))            \
    X(pointer, cudaPointerGetAttributes, cuda_error, (cuda_pointer *, const void *))                  \
    X(copy, cudaMemcpyAsync, cuda_error, (void *, const void *, size_t, cuda_copy_kind, cuda_stream)) \
    X(copy_2d, cudaMemcpy2DAsync, cuda_error,                                                         \
      (void *, size_t, const void *, size_t, size_t, size_t, cuda_copy_kind, cuda_stream))            \
    X(set, cudaMemsetAsync, cuda_error, (void *, int, size_t, cuda_stream))                           \
    X(stream_create, cudaStreamCreateWithPriority, cuda_error, (cuda_stream *, unsigned int, int))    \
    X(stream_destroy, cudaStreamDestroy, cuda_error, (cuda_stream))                                   \
    X(stream_sync, cudaStreamSynchronize, cuda_error, (cuda_stream))                                  \
    X(stream_query, cudaStreamQuery, cuda_error, (cuda_stream))                                       \
    X(stream_wait, cudaStreamWaitEvent, cuda_error, (cuda_stream, cuda_event, unsigned int))          \
    X(stream_capturing, cudaStreamIsCapturing, cuda_error, (cuda_stream, cuda_capture_status *))      \
    X(capture_mode, cudaThreadExchangeStreamCaptureMode, cuda_error, (cuda_capture_mode *))           \
    X(event_create, cudaEventCreateWithFlags, cuda_error, (cuda_event *, unsigned int))               \
    X(event_destroy, cudaEventDestroy, cuda_error, (cuda_event))                                      \
    X(event_record, cudaEventRecord, cuda_error, (cuda_event, cuda_stream))                           \
    X(event_query, cudaEventQuery, cuda_error, (cuda_event))
/* How long a save took on the device is not known without it. */
#define CUDA_TIMES(X) X(elapsed, cudaEventElapsedTime, cuda_error, (float *, cuda_event, cuda_event))
/* For kernels: since 12.8. */
#define CUDA_OPTIONAL(X)                                                                                       \
    X(library_load, cudaLibraryLoadData, cuda_error,                                                           \
      (cuda_library *, const void *, cuda_jit_option *, void **, unsigned int, cuda_library_option *, void **, \
       unsigned int))                                                                                          \
    X(library_unload, cudaLibraryUnload, cuda_error, (cuda_library))                                           \
    X(library_kernel, cudaLibraryGetKernel, cuda_error, (cuda_kernel *, cuda_library, const char *))           \
    X(launch, cudaLaunchKernel, cuda_error, (const void *, cuda_dim3, cuda_dim3, void **, size_t, cuda_stream))
/* Many copies by one call, in any order: since 12.8, and with other parameters since 13. */
#define CUDA_BATCH(X)                                                                                        \
    X(copy_batch, cudaMemcpyBatchAsync, cuda_error,                                                          \
      (void *const *, const void *const *, const size_t *, size_t, cuda_copy_attributes *, size_t *, size_t, \
       cuda_stream))
#define CUDA_BATCH_12(X)                               \
    X(copy_batch_12, cudaMemcpyBatchAsync, cuda_error, \
      (void **, void **, size_t *, size_t, cuda_copy_attributes *, size_t *, size_t, size_t *, cuda_stream))
/* Of the driver: contexts are pushed and popped, so that a thread gets back what it had, also when that was nothing:
 * cudaSetDevice would make a context on a device that the thread never used. */
#define CUDA_DRIVER(X)                                                                                   \
    X(driver_device, cuDeviceGet, cuda_driver_error, (cuda_driver_device *, int))                        \
    X(driver_name, cuDeviceGetName, cuda_driver_error, (char *, int, cuda_driver_device))                \
    X(context_retain, cuDevicePrimaryCtxRetain, cuda_driver_error, (cuda_context *, cuda_driver_device)) \
    X(context_release, cuDevicePrimaryCtxRelease_v2, cuda_driver_error, (cuda_driver_device))            \
    X(context_push, cuCtxPushCurrent_v2, cuda_driver_error, (cuda_context))                              \
    X(context_pop, cuCtxPopCurrent_v2, cuda_driver_error, (cuda_context *))

#define CUDA_FIELD(field_, symbol_, result_, parameters_) result_(*field_) parameters_;
struct cuda {
    CUDA_REQUIRED(CUDA_FIELD)
    CUDA_TIMES(CUDA_FIELD)    /* or not */
    CUDA_OPTIONAL(CUDA_FIELD) /* all or none */
    CUDA_BATCH(CUDA_FIELD)    /* one of the two, or none */
    CUDA_BATCH_12(CUDA_FIELD)
    CUDA_DRIVER(CUDA_FIELD) /* all or none */
    void *runtime, *driver; /* dlopen's */
    const void *kernels;    /* of a runtime that brings its own, as tests' does; else NULL */
    char path[256];         /* of the runtime, for people */
};

/* $CAIRN_CUDART, or a runtime that this process has already, or one that the loader finds. UNSUPPORTED says what was
 * tried. */
int cuda_load(struct cuda *ret_cuda, struct cairn_error *err);
/* The driver, once the runtime has loaded it; without one the driver's functions stay NULL. */
void cuda_load_driver(struct cuda *cuda);
void cuda_unload(struct cuda *cuda);

#endif
