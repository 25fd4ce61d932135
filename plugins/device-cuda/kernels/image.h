/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels' code as cudaLibraryLoadData takes it: a fat binary. */
#ifndef CAIRN_DEVICE_CUDA_IMAGE_H
#define CAIRN_DEVICE_CUDA_IMAGE_H

#include <stddef.h>

extern const unsigned char cairn_kernels_image[];
extern const size_t cairn_kernels_image_len; /* 0: this build had no nvcc */

#endif
