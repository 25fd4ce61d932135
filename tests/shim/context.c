/* SPDX-License-Identifier: Apache-2.0 */
/* Devices and contexts, and what each thread has of them. */
#include "tests/shim/internal.h"

#include <stdio.h>

static __thread struct {
    int device;
    int stack[8];
    int depth;
    int mode; /* of captures */
    int last;
} self;

int current_device(void)
{
    return self.depth ? self.stack[self.depth - 1] : self.device;
}

int thread_capture_mode(void)
{
    return self.mode;
}

void set_last_error(int code)
{
    self.last = code;
}

/* ---- the runtime's ------------------------------------------------------------------------------ */

SHIM_API const char *cudaGetErrorString(int code);
SHIM_API int cudaGetLastError(void);
SHIM_API int cudaPeekAtLastError(void);
SHIM_API int cudaRuntimeGetVersion(int *version);
SHIM_API int cudaDriverGetVersion(int *version);
SHIM_API int cudaGetDeviceCount(int *n);
SHIM_API int cudaGetDevice(int *device);
SHIM_API int cudaSetDevice(int device);
SHIM_API int cudaDeviceGetAttribute(int *value, unsigned attribute, int device);
SHIM_API int cudaDeviceGetPCIBusId(char *text, int room, int device);
SHIM_API int cudaDeviceGetStreamPriorityRange(int *least, int *greatest);
SHIM_API int cudaThreadExchangeStreamCaptureMode(unsigned *mode);
SHIM_API int cuDeviceGet(int *device, int ordinal);
SHIM_API int cuDeviceGetName(char *text, int room, int device);
SHIM_API int cuDevicePrimaryCtxRetain(void **context, int device);
SHIM_API int cuDevicePrimaryCtxRelease_v2(int device);
SHIM_API int cuCtxPushCurrent_v2(void *context);
SHIM_API int cuCtxPopCurrent_v2(void **context);

const char *cudaGetErrorString(int code)
{
    switch (code) {
    case 0:
        return "no error";
    case CUDA_E_INVALID_VALUE:
        return "invalid argument";
    case CUDA_E_MEMORY_ALLOCATION:
        return "out of memory";
    case CUDA_E_NO_DEVICE:
        return "no CUDA-capable device is detected";
    case CUDA_E_INVALID_DEVICE:
        return "invalid device ordinal";
    case CUDA_E_NOT_READY:
        return "device not ready";
    case CUDA_E_ILLEGAL_ADDRESS:
        return "an illegal memory access was encountered";
    case CUDA_E_CAPTURE_UNSUPPORTED:
        return "operation not permitted when stream is capturing";
    default:
        return "shim: some error";
    }
}

int cudaGetLastError(void)
{
    int code = self.last;

    self.last = 0;
    return code;
}

int cudaPeekAtLastError(void)
{
    return self.last;
}

int cudaRuntimeGetVersion(int *version)
{
    *version = 13000;
    return call_end(call_begin(FN_cudaRuntimeGetVersion, CALL_PLAIN));
}

int cudaDriverGetVersion(int *version)
{
    *version = 13000;
    return call_end(call_begin(FN_cudaDriverGetVersion, CALL_PLAIN));
}

int cudaGetDeviceCount(int *n)
{
    int code = call_begin(FN_cudaGetDeviceCount, CALL_PLAIN);

    *n = shim.ndevices;
    return call_end(code ? code : shim.ndevices ? 0 : CUDA_E_NO_DEVICE);
}

int cudaGetDevice(int *device)
{
    *device = current_device();
    return call_end(call_begin(FN_cudaGetDevice, CALL_PLAIN));
}

int cudaSetDevice(int device)
{
    int code = call_begin(FN_cudaSetDevice, CALL_PLAIN);

    if (!code && (device < 0 || device >= shim.ndevices))
        code = CUDA_E_INVALID_DEVICE;
    if (code)
        return call_end(code);
    if (self.depth)
        self.stack[self.depth - 1] = device;
    else
        self.device = device;
    shim.devices[device].active = true; /* as since version 12 */
    return call_end(shim.devices[device].lost);
}

int cudaDeviceGetAttribute(int *value, unsigned attribute, int device)
{
    int code = call_begin(FN_cudaDeviceGetAttribute, CALL_PLAIN);

    if (!code && (device < 0 || device >= shim.ndevices))
        code = CUDA_E_INVALID_DEVICE;
    *value = attribute == CUDA_ATTRIBUTE_MAX_PITCH         ? 1 << 20
             : attribute == CUDA_ATTRIBUTE_MULTIPROCESSORS ? 4
             : attribute == CUDA_ATTRIBUTE_MAJOR           ? 9
                                                           : 0;
    return call_end(code);
}

int cudaDeviceGetPCIBusId(char *text, int room, int device)
{
    snprintf(text, (size_t)room, "0000:%02x:00.0", (unsigned)device & 0xff);
    return call_end(call_begin(FN_cudaDeviceGetPCIBusId, CALL_PLAIN));
}

int cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return call_end(call_begin(FN_cudaDeviceGetStreamPriorityRange, CALL_CONTEXT));
}

int cudaThreadExchangeStreamCaptureMode(unsigned *mode)
{
    int code = call_begin(FN_cudaThreadExchangeStreamCaptureMode, CALL_PLAIN), before = self.mode;

    if (!code && *mode > CUDA_CAPTURE_RELAXED)
        code = CUDA_E_INVALID_VALUE;
    if (!code) {
        self.mode = (int)*mode;
        *mode = (unsigned)before;
    }
    return call_end(code);
}

/* ---- the driver's ------------------------------------------------------------------------------- */

/* Its errors are no business of the runtime's last error. */
static int driver_end(int code)
{
    pthread_mutex_unlock(&shim.lock);
    return code;
}

int cuDeviceGet(int *device, int ordinal)
{
    int code = call_begin(FN_cuDeviceGet, CALL_PLAIN);

    *device = ordinal;
    return driver_end(code ? code : ordinal >= 0 && ordinal < shim.ndevices ? 0 : CUDA_E_INVALID_DEVICE);
}

int cuDeviceGetName(char *text, int room, int device)
{
    snprintf(text, (size_t)room, "CUDA shim %d", device);
    return driver_end(call_begin(FN_cuDeviceGetName, CALL_PLAIN));
}

int cuDevicePrimaryCtxRetain(void **context, int device)
{
    int code = call_begin(FN_cuDevicePrimaryCtxRetain, CALL_PLAIN);

    if (code)
        return driver_end(code);
    shim.devices[device].retained++;
    shim.devices[device].active = true;
    *context = &shim.devices[device];
    return driver_end(0);
}

int cuDevicePrimaryCtxRelease_v2(int device)
{
    int code = call_begin(FN_cuDevicePrimaryCtxRelease_v2, CALL_PLAIN);

    if (!code && shim.devices[device].retained-- == 0)
        misuse("the context of device %d was released once too often", device);
    return driver_end(code);
}

int cuCtxPushCurrent_v2(void *context)
{
    int code = call_begin(FN_cuCtxPushCurrent_v2, CALL_PLAIN);

    if (code)
        return driver_end(code);
    if (self.depth == 8)
        misuse("contexts were pushed and not popped");
    self.stack[self.depth++] = (int)((struct shim_device *)context - shim.devices);
    return driver_end(0);
}

int cuCtxPopCurrent_v2(void **context)
{
    (void)call_begin(FN_cuCtxPopCurrent_v2, CALL_PLAIN); /* that it fails helps nobody */
    if (self.depth == 0)
        misuse("a context was popped that was not pushed");
    *context = &shim.devices[self.stack[--self.depth]];
    return driver_end(0);
}
