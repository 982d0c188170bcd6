// SPDX-License-Identifier: Apache-2.0
// CUDA on the host, for tests: half precision by the compiler's own type.
#pragma once
struct __half {
  _Float16 v;
};
inline float __half2float(__half h) { return float(h.v); }
inline __half __float2half_rn(float f) { return {_Float16(f)}; }
