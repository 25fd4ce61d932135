/* SPDX-License-Identifier: Apache-2.0 */
#include "core/model/digest_variant.h"

DIGEST_VARIANT(digest_avx512);
