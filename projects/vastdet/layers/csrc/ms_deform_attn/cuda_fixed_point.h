// SPDX-License-Identifier: Apache-2.0
// The deterministic sum of the gradients of a value: fixed point in 64-bit integers.
//
// Letters as in cuda_samples.h. A contribution c to an element of grad_value is added as the
// integer nearest to c * 2^e. The exponent e belongs to an image and head: it is the largest for
// which no sum over their queries can leave the range of the integers. cuda_kernel.h states the
// error. First `bound_kernel` finds the bound that gives e, then the backward kernel adds, then
// `finish_kernel` converts.
#pragma once

#include <cmath>

#include "cuda_samples.h"

namespace vastdet::cuda {

using Word = unsigned long long;  // the type of CUDA's 64-bit atomics
static_assert(sizeof(Word) == sizeof(uint64_t), "a word has 64 bits");

// The bits of a word, less the sign, a bit for rounding, and the headroom of the sum.
struct FixedPointFormat {
  int coarse_bits;  // 62 - ceil(log2(Q)): the bound of a row times the rows
  int fine_bits;    // 62 - ceil(log2(Q * T)): rests of at most half, one of each sample
};

template <typename A>
__device__ inline int fixed_point_exponent(A bound, const FixedPointFormat& format) {
  int exponent = 0;
  frexp(bound, &exponent);
  // Beyond this 2^e itself is no number; what is lost is below the smallest normal number.
  const int largest = sizeof(A) == sizeof(float) ? 126 : 1022;
  return min(format.coarse_bits - exponent, largest);
}

// The sums of the cells of one image and head.
template <typename A>
struct FixedPointSum {
  Word* words;
  int64_t plane;  // elements between the first and the second word
  A scale, fine_scale;
  bool finite;

  __device__ void add_one(int64_t element, float contribution) const {
    atomicAdd(words + element, Word(__float2ll_rn(contribution * scale)));
  }
  __device__ void add_one(int64_t element, double contribution) const {
    const double scaled = contribution * scale;
    const long long coarse = __double2ll_rn(scaled);
    // Exact: below 2^53 the integer is a double beside `scaled`, above there is no rest.
    const double rest = scaled - double(coarse);
    atomicAdd(words + element, Word(coarse));
    atomicAdd(words + plane + element, Word(__double2ll_rn(rest * fine_scale)));
  }
  template <int N>
  __device__ void add(int64_t element, A weight, const A (&grad)[N]) const {
    if (!finite) return;  // the whole image and head becomes NaN
#pragma unroll
    for (int j = 0; j < N; ++j) add_one(element + j, weight * grad[j]);
  }
};

// The sums of all elements. For double, a second plane of words holds the rests.
template <typename A>
struct FixedPointSink {
  Word* words;
  int64_t plane;
  const A* bounds;  // [B, H]
  FixedPointFormat format;

  __device__ FixedPointSum<A> of_row(const Problem& p, const Row& row) const {
    const A bound = bounds[row.image * p.heads + row.head];
    const bool finite = isfinite(bound);
    const int exponent = finite ? fixed_point_exponent(bound, format) : 0;
    return {words + head_of_image(p, row), plane, A(ldexp(A(1), exponent)),
            A(ldexp(A(1), format.fine_bits)), finite};
  }

  // The finished sum of an element.
  __device__ float value(int64_t element, float bound) const {
    const float sum = __ll2float_rn((long long)(words[element]));
    return ldexp(sum, -fixed_point_exponent(bound, format));
  }
  __device__ double value(int64_t element, double bound) const {
    const double coarse = __ll2double_rn((long long)(words[element]));
    const double fine = __ll2double_rn((long long)(words[plane + element]));
    return ldexp(coarse + ldexp(fine, -format.fine_bits), -fixed_point_exponent(bound, format));
  }
};

// The larger of two magnitudes; NaN counts as the largest, and stays.
template <typename A>
__device__ inline A larger(A a, A b) {
  return (b > a || b != b) ? b : a;
}

// For magnitudes the order of the bits is the order of the numbers, NaN above infinity.
__device__ inline void atomic_larger(float* target, float magnitude) {
  atomicMax(reinterpret_cast<int*>(target), __float_as_int(magnitude));
}
__device__ inline void atomic_larger(double* target, double magnitude) {
  atomicMax(reinterpret_cast<long long*>(target), __double_as_longlong(magnitude));
}

// bounds [B, H] = max over the queries of sum_t |weight| * max_d |grad_output|.
template <typename V>
__global__ void __launch_bounds__(kThreads) bound_kernel(
    const __grid_constant__ Problem p, const V* __restrict__ grad_output,
    const Accumulate<V>* __restrict__ weights, Accumulate<V>* __restrict__ bounds) {
  using A = Accumulate<V>;
  const Row row = this_row(p);
  A weight_sum = A(0), grad_max = A(0);
  if (row.exists) {
    for (int t = row.lane; t < p.samples; t += p.group) {
      weight_sum += fabs(weights[row.index * p.samples + t]);
    }
    for (int channel = row.lane; channel < p.channels; channel += p.group) {
      const A grad = widen(grad_output[row.index * p.channels + channel]);
      grad_max = larger(grad_max, A(fabs(grad)));
    }
  }
  weight_sum = group_sum(weight_sum, p.group);
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    if (step < p.group) grad_max = larger(grad_max, __shfl_xor_sync(kAllLanes, grad_max, step));
  }
  // All rows of a block have the same image and head.
  A bound = fabs(weight_sum * grad_max);
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    bound = larger(bound, __shfl_xor_sync(kAllLanes, bound, step));
  }
  if (threadIdx.x % kWarp == 0) atomic_larger(bounds + row.image * p.heads + row.head, bound);
}

// grad_value [B, S, H, D] from the finished sums.
template <typename V>
__global__ void __launch_bounds__(kThreads) finish_kernel(
    const __grid_constant__ Problem p, const FixedPointSink<Accumulate<V>> sink,
    V* __restrict__ grad_value) {
  using A = Accumulate<V>;
  const int64_t element = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (element >= sink.plane) return;
  const int64_t head = element / p.channels % p.heads;
  const int64_t image = element / (int64_t(p.cells) * p.cell_stride);
  const A bound = sink.bounds[image * p.heads + head];
  narrow(isfinite(bound) ? sink.value(element, bound) : A(NAN), grad_value + element);
}

}  // namespace vastdet::cuda
