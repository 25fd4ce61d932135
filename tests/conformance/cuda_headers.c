/* SPDX-License-Identifier: Apache-2.0 */
/* What the plugin declares of CUDA, compared with CUDA's own headers by the compiler: it compiles, or they differ. */
#include <cuda.h>
#include <cuda_runtime_api.h>

#define CAIRN_CUDA_REAL_TYPES
#include "plugins/device-cuda/runtime.h"

#define SAME_FUNCTION(field_, symbol_, result_, parameters_)                                                   \
    _Static_assert(__builtin_types_compatible_p(__typeof__(((struct cuda *)0)->field_), __typeof__(&symbol_)), \
                   #symbol_ " has other parameters");
CUDA_REQUIRED(SAME_FUNCTION)
CUDA_TIMES(SAME_FUNCTION)
CUDA_OPTIONAL(SAME_FUNCTION)
CUDA_DRIVER(SAME_FUNCTION)
#if CUDART_VERSION >= 13000
CUDA_BATCH(SAME_FUNCTION)
#elif CUDART_VERSION >= 12080
CUDA_BATCH_12(SAME_FUNCTION)
#endif

#define SAME_VALUE(ours_, theirs_) _Static_assert((int)(ours_) == (int)(theirs_), #ours_ " is another number");
SAME_VALUE(CUDA_OK, cudaSuccess)
SAME_VALUE(CUDA_E_INVALID_VALUE, cudaErrorInvalidValue)
SAME_VALUE(CUDA_E_MEMORY_ALLOCATION, cudaErrorMemoryAllocation)
SAME_VALUE(CUDA_E_INITIALIZATION, cudaErrorInitializationError)
SAME_VALUE(CUDA_E_UNLOADING, cudaErrorCudartUnloading)
SAME_VALUE(CUDA_E_INSUFFICIENT_DRIVER, cudaErrorInsufficientDriver)
SAME_VALUE(CUDA_E_NEWER_DRIVER, cudaErrorCallRequiresNewerDriver)
SAME_VALUE(CUDA_E_NOT_SUPPORTED, cudaErrorNotSupported)
SAME_VALUE(CUDA_E_NO_DEVICE, cudaErrorNoDevice)
SAME_VALUE(CUDA_E_INVALID_DEVICE, cudaErrorInvalidDevice)
SAME_VALUE(CUDA_E_NO_KERNEL_IMAGE, cudaErrorNoKernelImageForDevice)
SAME_VALUE(CUDA_E_ECC, cudaErrorECCUncorrectable)
SAME_VALUE(CUDA_E_NVLINK, cudaErrorNvlinkUncorrectable)
SAME_VALUE(CUDA_E_CONTAINED, cudaErrorContained)
SAME_VALUE(CUDA_E_INVALID_HANDLE, cudaErrorInvalidResourceHandle)
SAME_VALUE(CUDA_E_SYMBOL_NOT_FOUND, cudaErrorSymbolNotFound)
SAME_VALUE(CUDA_E_NOT_READY, cudaErrorNotReady)
SAME_VALUE(CUDA_E_ILLEGAL_ADDRESS, cudaErrorIllegalAddress)
SAME_VALUE(CUDA_E_LAUNCH_TIMEOUT, cudaErrorLaunchTimeout)
SAME_VALUE(CUDA_E_CONTEXT_DESTROYED, cudaErrorContextIsDestroyed)
SAME_VALUE(CUDA_E_ASSERT, cudaErrorAssert)
SAME_VALUE(CUDA_E_ALREADY_REGISTERED, cudaErrorHostMemoryAlreadyRegistered)
SAME_VALUE(CUDA_E_NOT_REGISTERED, cudaErrorHostMemoryNotRegistered)
SAME_VALUE(CUDA_E_HARDWARE_STACK, cudaErrorHardwareStackError)
SAME_VALUE(CUDA_E_LAUNCH_FAILURE, cudaErrorLaunchFailure)
SAME_VALUE(CUDA_E_CAPTURE_UNSUPPORTED, cudaErrorStreamCaptureUnsupported)
SAME_VALUE(CUDA_E_CAPTURE_INVALIDATED, cudaErrorStreamCaptureInvalidated)
SAME_VALUE(CUDA_E_CAPTURE_IMPLICIT, cudaErrorStreamCaptureImplicit)
SAME_VALUE(CUDA_E_UNKNOWN, cudaErrorUnknown)
SAME_VALUE(CUDA_MEMORY_UNREGISTERED, cudaMemoryTypeUnregistered)
SAME_VALUE(CUDA_MEMORY_HOST, cudaMemoryTypeHost)
SAME_VALUE(CUDA_MEMORY_DEVICE, cudaMemoryTypeDevice)
SAME_VALUE(CUDA_MEMORY_MANAGED, cudaMemoryTypeManaged)
SAME_VALUE(CUDA_HOST_TO_DEVICE, cudaMemcpyHostToDevice)
SAME_VALUE(CUDA_DEVICE_TO_HOST, cudaMemcpyDeviceToHost)
SAME_VALUE(CUDA_DEVICE_TO_DEVICE, cudaMemcpyDeviceToDevice)
SAME_VALUE(CUDA_STREAM_NON_BLOCKING, cudaStreamNonBlocking)
SAME_VALUE(CUDA_EVENT_DISABLE_TIMING, cudaEventDisableTiming)
SAME_VALUE(CUDA_EVENT_WAIT_EXTERNAL, cudaEventWaitExternal)
SAME_VALUE(CUDA_HOST_PORTABLE, cudaHostRegisterPortable)
SAME_VALUE(CUDA_HOST_PORTABLE, cudaHostAllocPortable)
SAME_VALUE(CUDA_HOST_MAPPED, cudaHostRegisterMapped)
SAME_VALUE(CUDA_HOST_MAPPED, cudaHostAllocMapped)
SAME_VALUE(CUDA_CAPTURE_NONE, cudaStreamCaptureStatusNone)
SAME_VALUE(CUDA_CAPTURE_RELAXED, cudaStreamCaptureModeRelaxed)
SAME_VALUE(CUDA_ATTRIBUTE_MAX_PITCH, cudaDevAttrMaxPitch)
SAME_VALUE(CUDA_ATTRIBUTE_MULTIPROCESSORS, cudaDevAttrMultiProcessorCount)
SAME_VALUE(CUDA_ATTRIBUTE_MAJOR, cudaDevAttrComputeCapabilityMajor)
SAME_VALUE(CUDA_ATTRIBUTE_MINOR, cudaDevAttrComputeCapabilityMinor)

#if CUDART_VERSION >= 12080
SAME_VALUE(CUDA_ORDER_STREAM, cudaMemcpySrcAccessOrderStream)
SAME_VALUE(CUDA_OVERLAP_WITH_COMPUTE, cudaMemcpyFlagPreferOverlapWithCompute)
struct declared_how {
    unsigned int source_order;
    struct {
        unsigned int type;
        int id;
    } from, to;
    unsigned int flags;
};
_Static_assert(sizeof(struct declared_how) == sizeof(struct cudaMemcpyAttributes) &&
                   offsetof(struct declared_how, flags) == offsetof(struct cudaMemcpyAttributes, flags) &&
                   offsetof(struct declared_how, to) == offsetof(struct cudaMemcpyAttributes, dstLocHint),
               "cudaMemcpyAttributes is another");
#endif

/* What is asked of a pointer; a runtime of before version 13 fills its beginning. */
struct declared {
    unsigned int type;
    int device;
    void *device_pointer;
    void *host_pointer;
    long reserved[8];
};
_Static_assert(sizeof(struct declared) >= sizeof(struct cudaPointerAttributes), "cudaPointerAttributes has grown");
_Static_assert(offsetof(struct declared, type) == offsetof(struct cudaPointerAttributes, type) &&
                   offsetof(struct declared, device) == offsetof(struct cudaPointerAttributes, device) &&
                   offsetof(struct declared, device_pointer) == offsetof(struct cudaPointerAttributes, devicePointer) &&
                   offsetof(struct declared, host_pointer) == offsetof(struct cudaPointerAttributes, hostPointer),
               "cudaPointerAttributes is another");
_Static_assert(sizeof(cuda_dim3) == 3 * sizeof(unsigned int), "dim3 is another");
