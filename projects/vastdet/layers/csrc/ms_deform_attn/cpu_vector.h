// SPDX-License-Identifier: Apache-2.0
// Vectors of the instruction set that the file is compiled for, and the types of values.
// Everything has internal linkage or is inlined: cpu_kernel.cpp says why.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#define VASTDET_INLINE static inline __attribute__((always_inline))

namespace vastdet {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// Element type -> vector type, with the compiler's own vector arithmetic.
template <typename A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
using Vector = typename VectorOf<A>::type;
template <typename A>
constexpr int kLanes = kVectorBytes / int(sizeof(A));

typedef uint16_t Words __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t DoubleWords __attribute__((vector_size(kVectorBytes)));

// Value type -> the type in which it is summed.
template <typename V>
struct AccumulationOf {
  typedef float type;
};
template <>
struct AccumulationOf<double> {
  typedef double type;
};
template <typename V>
using Accumulation = typename AccumulationOf<V>::type;

VASTDET_INLINE float bits_to_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

VASTDET_INLINE uint32_t float_to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

// ---- One element -------------------------------------------------------------------------------

VASTDET_INLINE float to_accumulation(float x) { return x; }
VASTDET_INLINE double to_accumulation(double x) { return x; }
VASTDET_INLINE float to_accumulation(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }

VASTDET_INLINE float to_accumulation(Half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t rest = uint32_t(x.bits & 0x7fff) << 13;
  // Scaled by 2^112, a half's exponent becomes a float's; subnormals come out right as well.
  const float scaled = bits_to_float(rest) * bits_to_float(0x77800000);
  const bool finite = (x.bits & 0x7c00) != 0x7c00;
  return bits_to_float(sign | (finite ? float_to_bits(scaled) : rest | 0x7f800000));
#endif
}

VASTDET_INLINE void from_accumulation(float x, float* to) { *to = x; }
VASTDET_INLINE void from_accumulation(double x, double* to) { *to = x; }

VASTDET_INLINE void from_accumulation(float x, BFloat16* to) {
  const uint32_t bits = float_to_bits(x);
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  // To the nearest, ties to even.
  to->bits = is_nan ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

VASTDET_INLINE void from_accumulation(float x, Half* to) {
#if defined(__F16C__)
  to->bits = uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
  const uint32_t bits = float_to_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;
  } else if (magnitude >= 0x477ff000) {  // 65520 and above round to infinity
    half = 0x7c00;
  } else if (magnitude < 0x38800000) {  // subnormal: the addition rounds to units of 2^-24
    half = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000;
  } else {
    half = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  }
  to->bits = uint16_t(sign | half);
#endif
}

// ---- One vector --------------------------------------------------------------------------------

VASTDET_INLINE void load(const float* from, Vector<float>& v) { memcpy(&v, from, sizeof v); }
VASTDET_INLINE void load(const double* from, Vector<double>& v) { memcpy(&v, from, sizeof v); }

VASTDET_INLINE void load(const BFloat16* from, Vector<float>& v) {
  Words words;
  memcpy(&words, from, sizeof words);
  v = Vector<float>(__builtin_convertvector(words, DoubleWords) << 16);
}

VASTDET_INLINE void load(const Half* from, Vector<float>& v) {
#if defined(__AVX512F__)
  v = Vector<float>(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from)));
#elif defined(__F16C__)
  v = Vector<float>(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)));
#else
  for (int i = 0; i < kLanes<float>; ++i) v[i] = to_accumulation(from[i]);
#endif
}

VASTDET_INLINE void store(const Vector<float>& v, float* to) { memcpy(to, &v, sizeof v); }
VASTDET_INLINE void store(const Vector<double>& v, double* to) { memcpy(to, &v, sizeof v); }

// The four sums of the lanes of a, b, c and d.
template <typename A>
VASTDET_INLINE void sum_lanes(
    const Vector<A>& a, const Vector<A>& b, const Vector<A>& c, const Vector<A>& d, A* sums) {
  A x = 0, y = 0, z = 0, w = 0;
  for (int i = 0; i < kLanes<A>; ++i) {
    x += a[i];
    y += b[i];
    z += c[i];
    w += d[i];
  }
  sums[0] = x;
  sums[1] = y;
  sums[2] = z;
  sums[3] = w;
}

#if defined(__AVX2__)
VASTDET_INLINE __m128 to_quarter(__m256 v) {
  return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}
#if defined(__AVX512F__)
VASTDET_INLINE __m128 to_quarter(__m512 v) {
  const __m512 swapped = _mm512_shuffle_f32x4(v, v, 0x4e);
  return to_quarter(_mm512_castps512_ps256(_mm512_add_ps(v, swapped)));
}
#endif

// Adds halves until four lanes are left, then transposes 4 x 4 while it adds.
template <>
inline __attribute__((always_inline)) void sum_lanes<float>(
    const Vector<float>& a, const Vector<float>& b, const Vector<float>& c, const Vector<float>& d,
    float* sums) {
  const __m128 ab = _mm_hadd_ps(to_quarter(a), to_quarter(b));
  const __m128 cd = _mm_hadd_ps(to_quarter(c), to_quarter(d));
  _mm_storeu_ps(sums, _mm_hadd_ps(ab, cd));
}
#endif

}  // namespace
}  // namespace vastdet
