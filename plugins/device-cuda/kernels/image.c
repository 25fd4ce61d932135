/* SPDX-License-Identifier: Apache-2.0 */
#include "image.h"

#ifdef CAIRN_KERNELS_FATBIN
/* The assembler takes the file as it is: as a C array it would be megabytes of text. */
__asm__(".pushsection .rodata, \"a\", %progbits\n"
        ".p2align 6\n"
        ".globl cairn_kernels_image\n"
        ".hidden cairn_kernels_image\n"
        ".type cairn_kernels_image, %object\n"
        "cairn_kernels_image:\n"
        ".incbin \"" CAIRN_KERNELS_FATBIN "\"\n"
        ".Lcairn_kernels_end:\n"
        ".size cairn_kernels_image, .-cairn_kernels_image\n"
        ".globl cairn_kernels_image_len\n"
        ".hidden cairn_kernels_image_len\n"
        ".type cairn_kernels_image_len, %object\n"
        ".p2align 3\n"
        "cairn_kernels_image_len:\n"
        ".quad .Lcairn_kernels_end - cairn_kernels_image\n"
        ".size cairn_kernels_image_len, .-cairn_kernels_image_len\n"
        ".popsection\n");
#else
const unsigned char cairn_kernels_image[1] = {0};
const size_t cairn_kernels_image_len = 0;
#endif
