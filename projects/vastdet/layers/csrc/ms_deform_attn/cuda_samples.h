// SPDX-License-Identifier: Apache-2.0
// What the CUDA kernels share: types, the row of a thread, and the samples of a row.
//
// Letters: B, S, H, D, Q, L, T as in cuda_kernel.h; V type of the values, A accumulation type,
// N channels that a lane moves at once, G lanes of a group (`Problem::group`, a power of two up to
// 32). A row is one (image, query, head); one group computes one row.
//
// A block has kThreads / G neighbouring queries of one head: in an encoder they sample neighbouring
// cells, so that the rows of `value` which they share come from L1. Blocks that follow each other
// hold the heads of the same queries: their cells lie together in DRAM, and their locations follow
// each other.
//
// No lane leaves early: all lanes of a warp reach every __syncwarp and shuffle. Rows beyond the
// last query and samples beyond the last have cells of -1 and do no work.
#pragma once

#undef NDEBUG  // The assertion on cells is what stands between wrong shapes and foreign memory.
#include <cassert>
#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda_kernel.h"
#include "sampling.h"

namespace vastdet::cuda {

constexpr int kThreads = 128;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename V>
struct Accumulation {
  using type = float;
};
template <>
struct Accumulation<double> {
  using type = double;
};
template <typename V>
using Accumulate = typename Accumulation<V>::type;

__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(__half v) { return __half2float(v); }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

__device__ inline void narrow(float a, float* v) { *v = a; }
__device__ inline void narrow(double a, double* v) { *v = a; }
__device__ inline void narrow(float a, __half* v) { *v = __float2half_rn(a); }
__device__ inline void narrow(float a, __nv_bfloat16* v) { *v = __float2bfloat16_rn(a); }

// N channels that one instruction loads or stores.
template <typename V, int N>
struct alignas(N * sizeof(V)) Pack {
  V at[N];
};

template <int N, typename V>
__device__ inline Pack<V, N> load_pack(const V* source) {
  return *reinterpret_cast<const Pack<V, N>*>(source);
}

// The sum of `part` over the lanes of each group, in all of them.
template <typename A>
__device__ inline A group_sum(A part, int group) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    if (step < group) part += __shfl_xor_sync(kAllLanes, part, step);
  }
  return part;
}

// What every kernel must know of the sizes.
struct Problem {
  const int64_t* spatial_shapes;
  const int64_t* level_start_index;
  int64_t queries;
  int cells, heads, channels, samples;
  int cell_stride;                   // H * D
  int group;                         // G
  unsigned tiles;                    // blocks that the queries of one image and head take
  int first_sample[kMaxLevels + 1];  // of each level, and T
};

// The row of this thread's group.
struct Row {
  int64_t image, index;  // index: (image * Q + query) * H + head
  int head, lane;
  bool exists;
};

__device__ inline Row this_row(const Problem& p) {
  Row row;
  row.head = int(blockIdx.x % unsigned(p.heads));
  const unsigned block = blockIdx.x / unsigned(p.heads);
  row.image = block / p.tiles;
  const int64_t tile = block % p.tiles;
  const int thread = int(threadIdx.x);
  const int64_t query = tile * (kThreads / p.group) + thread / p.group;
  row.index = (row.image * p.queries + query) * p.heads + row.head;
  row.lane = thread % p.group;
  row.exists = query < p.queries;
  return row;
}

// Where the channels of a row's head in cell 0 begin, in a tensor [B, S, H, D]; those of cell c
// follow c * H * D elements later.
__device__ inline int64_t head_of_image(const Problem& p, const Row& row) {
  return (row.image * p.cells * p.heads + row.head) * p.channels;
}

template <typename A>
struct RawSample {
  A x, y, weight;
};

template <typename A>
struct PlacedSample {
  BilinearSample<A> at;
  int height, width;
  int cell[kCorners];  // of all levels, -1 for a corner outside its level
};

template <typename A>
__device__ inline RawSample<A> load_sample(
    const Problem& p, const Row& row, int t, const A* locations, const A* weights) {
  if (!row.exists || t >= p.samples) return {A(0), A(0), A(0)};
  const int64_t sample = row.index * p.samples + t;
  // Read once: these must not push the values out of the caches.
  return {__ldcs(locations + 2 * sample), __ldcs(locations + 2 * sample + 1),
          __ldcs(weights + sample)};
}

template <typename A>
__device__ inline PlacedSample<A> place_sample(
    const Problem& p, const Row& row, int t, const RawSample<A>& raw) {
  PlacedSample<A> sample = {};
#pragma unroll
  for (int corner = 0; corner < kCorners; ++corner) sample.cell[corner] = -1;
  if (!row.exists || t >= p.samples) return sample;
  int level = 0;
  while (t >= p.first_sample[level + 1]) ++level;
  sample.height = int(p.spatial_shapes[2 * level]);
  sample.width = int(p.spatial_shapes[2 * level + 1]);
  const int64_t start = p.level_start_index[level];
  sample.at = bilinear_sample(raw.x, raw.y, sample.width, sample.height);
#pragma unroll
  for (int corner = 0; corner < kCorners; ++corner) {
    if (!corner_inside(sample.at, corner, sample.width, sample.height)) continue;
    const int64_t cell = start + corner_cell(sample.at, corner, sample.width);
    assert(cell >= 0 && cell < p.cells && "spatial_shapes and level_start_index exceed value");
    sample.cell[corner] = int(cell);
  }
  return sample;
}

}  // namespace vastdet::cuda
