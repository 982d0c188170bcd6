// SPDX-License-Identifier: Apache-2.0
// CUDA on the host, for tests: bfloat16, the upper half of a float, rounded to the nearest even.
#pragma once
#include <cstdint>
#include <cstring>
struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 b) {
  const uint32_t bits = uint32_t(b.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  if (f != f) return {0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof f);
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
