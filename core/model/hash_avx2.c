/* SPDX-License-Identifier: Apache-2.0 */
#include "core/model/hash_variant.h"

HASH_VARIANT(hash_avx2);
