// SPDX-License-Identifier: Apache-2.0
// Multi-scale deformable attention on CUDA (Zhu et al. 2021, Eq. 2-3), forward and backward.
//
// Letters: B, S, H, D, Q, L, T as in cuda_kernel.h; V, A, N, G and the partition of the work as in
// cuda_samples.h. The samples of a row are placed G at a time, one by each lane, and handed to the
// group through shared memory: the arithmetic of a sample is done once a row (in the forward pass
// once for every 32 N channels), not once a channel.

#include <climits>
#include <type_traits>

#include "cuda_fixed_point.h"
#include "cuda_kernel.h"
#include "cuda_samples.h"

namespace vastdet::cuda {
namespace {

constexpr int kVectorBytes = 16;

// Lanes of a group where a lane adds one channel at a time to grad_value: 8 lanes cover a 32-byte
// sector of floats, the unit in which L2 carries out atomics.
constexpr int kAtomicGroup = 8;

// ---- forward

// A sample as the group needs it: the weight of a corner holds the attention weight.
template <typename A>
struct alignas(16) WeightedCorners {
  int cell[kCorners];
  A weight[kCorners];
};

template <typename A>
__device__ inline WeightedCorners<A> weigh_corners(const PlacedSample<A>& sample, A attention) {
  WeightedCorners<A> corners;
#pragma unroll
  for (int corner = 0; corner < kCorners; ++corner) {
    const bool inside = sample.cell[corner] >= 0;
    corners.cell[corner] = sample.cell[corner];
    // An infinite attention weight times a corner that is not there is nothing, not NaN.
    corners.weight[corner] = inside ? attention * corner_weight(sample.at, corner) : A(0);
  }
  return corners;
}

// Adds this lane's channels of one sample to `sum`.
template <typename V, int N>
__device__ inline void add_sample(
    const WeightedCorners<Accumulate<V>>& corners, const V* channels, int cell_stride,
    Accumulate<V> (&sum)[N]) {
  // All four loads are under way before the first is used.
  Pack<V, N> packs[kCorners] = {};
#pragma unroll
  for (int corner = 0; corner < kCorners; ++corner) {
    const int cell = corners.cell[corner];
    if (cell >= 0) packs[corner] = load_pack<N>(channels + int64_t(cell) * cell_stride);
  }
#pragma unroll
  for (int corner = 0; corner < kCorners; ++corner) {
#pragma unroll
    for (int j = 0; j < N; ++j) sum[j] += corners.weight[corner] * widen(packs[corner].at[j]);
  }
}

template <typename V, int N>
__global__ void __launch_bounds__(kThreads) forward_kernel(
    const __grid_constant__ Problem p, const V* __restrict__ value,
    const Accumulate<V>* __restrict__ locations, const Accumulate<V>* __restrict__ weights,
    V* __restrict__ output) {
  using A = Accumulate<V>;
  __shared__ WeightedCorners<A> samples[kThreads];
  const Row row = this_row(p);
  const WeightedCorners<A>* group_samples = samples + (threadIdx.x - row.lane);
  const V* head_value = value + head_of_image(p, row);
  for (int first = 0; first < p.channels; first += p.group * N) {
    const int channel = first + row.lane * N;
    const bool works = row.exists && channel < p.channels;
    A sum[N] = {};
    RawSample<A> raw = load_sample(p, row, row.lane, locations, weights);
    for (int t = 0; t < p.samples; t += p.group) {
      const PlacedSample<A> placed = place_sample(p, row, t + row.lane, raw);
      samples[threadIdx.x] = weigh_corners(placed, raw.weight);
      __syncwarp();
      // The next samples arrive while these are summed.
      raw = load_sample(p, row, t + p.group + row.lane, locations, weights);
      const int count = min(p.group, p.samples - t);
      for (int i = 0; works && i < count; ++i) {
        add_sample<V, N>(group_samples[i], head_value + channel, p.cell_stride, sum);
      }
      __syncwarp();
    }
    if (works) {
      Pack<V, N> result;
#pragma unroll
      for (int j = 0; j < N; ++j) narrow(sum[j], &result.at[j]);
      *reinterpret_cast<Pack<V, N>*>(output + row.index * p.channels + channel) = result;
    }
  }
}

// ---- backward

// Adds to four neighbouring floats: one instruction from sm_90 on.
__device__ inline void atomic_add_four(float* target, float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  atomicAdd(reinterpret_cast<float4*>(target), make_float4(a, b, c, d));
#else
  atomicAdd(target, a);
  atomicAdd(target + 1, b);
  atomicAdd(target + 2, c);
  atomicAdd(target + 3, d);
#endif
}

// Sums in floating point, by atomics in the accumulation type.
template <typename A>
struct AtomicSum {
  A* grad_value;  // of one image and head

  template <int N>
  __device__ void add(int64_t element, A weight, const A (&grad)[N]) const {
    A* target = grad_value + element;
    if constexpr (N % 4 == 0) {
#pragma unroll
      for (int j = 0; j < N; j += 4) {
        atomic_add_four(target + j, weight * grad[j], weight * grad[j + 1], weight * grad[j + 2],
                        weight * grad[j + 3]);
      }
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) atomicAdd(target + j, weight * grad[j]);
    }
  }
};

template <typename A>
struct AtomicSink {
  A* grad_value;
  __device__ AtomicSum<A> of_row(const Problem& p, const Row& row) const {
    return {grad_value + head_of_image(p, row)};
  }
};

template <typename A>
struct alignas(16) SharedSample {
  int cell[kCorners];
  A fx, fy, attention;
};

template <typename A>
struct SampleGradient {
  A x, y, weight;  // x and y in cells and before the attention weight; the owner knows these
};

// This lane's channels of one sample: adds to grad_value, and returns in `dot` their part of the
// scalar products of the output gradient with the values at the corners.
template <typename V, int N, typename Sum>
__device__ inline void backward_channels(
    const Problem& p, const SharedSample<Accumulate<V>>& sample,
    const Accumulate<V> (&corner_weights)[kCorners], const V* grad_row, const V* head_value,
    int lane, const Sum& sum, Accumulate<V> (&dot)[kCorners]) {
  using A = Accumulate<V>;
  for (int channel = lane * N; channel < p.channels; channel += p.group * N) {
    const Pack<V, N> grad_pack = load_pack<N>(grad_row + channel);
    A grad[N];
#pragma unroll
    for (int j = 0; j < N; ++j) grad[j] = widen(grad_pack.at[j]);
    Pack<V, N> packs[kCorners] = {};
#pragma unroll
    for (int corner = 0; corner < kCorners; ++corner) {
      const int64_t element = int64_t(sample.cell[corner]) * p.cell_stride + channel;
      if (sample.cell[corner] >= 0) packs[corner] = load_pack<N>(head_value + element);
    }
#pragma unroll
    for (int corner = 0; corner < kCorners; ++corner) {
      if (sample.cell[corner] < 0) continue;
      const int64_t element = int64_t(sample.cell[corner]) * p.cell_stride + channel;
#pragma unroll
      for (int j = 0; j < N; ++j) dot[corner] += grad[j] * widen(packs[corner].at[j]);
      sum.add(element, sample.attention * corner_weights[corner], grad);
    }
  }
}

// The gradients of one sample, in all lanes of its group.
template <typename V, int N, typename Sum>
__device__ inline SampleGradient<Accumulate<V>> backward_sample(
    const Problem& p, const Row& row, const SharedSample<Accumulate<V>>& sample,
    const V* grad_row, const V* head_value, const Sum& sum) {
  using A = Accumulate<V>;
  const BilinearSample<A> at = {0, 0, sample.fx, sample.fy, true};
  A corner_weights[kCorners], dot[kCorners] = {};
#pragma unroll
  for (int corner = 0; corner < kCorners; ++corner) {
    corner_weights[corner] = corner_weight(at, corner);
  }
  if (row.exists) {
    backward_channels<V, N>(p, sample, corner_weights, grad_row, head_value, row.lane, sum, dot);
  }
  SampleGradient<A> part = {};
  location_gradient(at, dot, 1, 1, &part.x, &part.y);
#pragma unroll
  for (int corner = 0; corner < kCorners; ++corner) {
    part.weight += corner_weights[corner] * dot[corner];
  }
  return {group_sum(part.x, p.group), group_sum(part.y, p.group),
          group_sum(part.weight, p.group)};
}

template <typename V, int N, typename Sink>
__global__ void __launch_bounds__(kThreads) backward_kernel(
    const __grid_constant__ Problem p, const V* __restrict__ grad_output,
    const V* __restrict__ value, const Accumulate<V>* __restrict__ locations,
    const Accumulate<V>* __restrict__ weights, const Sink sink,
    Accumulate<V>* __restrict__ grad_locations, Accumulate<V>* __restrict__ grad_weights) {
  using A = Accumulate<V>;
  __shared__ SharedSample<A> samples[kThreads];
  const Row row = this_row(p);
  const SharedSample<A>* group_samples = samples + (threadIdx.x - row.lane);
  const V* head_value = value + head_of_image(p, row);
  const V* grad_row = grad_output + row.index * p.channels;
  const auto sum = sink.of_row(p, row);
  for (int t = 0; t < p.samples; t += p.group) {
    const RawSample<A> raw = load_sample(p, row, t + row.lane, locations, weights);
    const PlacedSample<A> placed = place_sample(p, row, t + row.lane, raw);
    const int(&cell)[kCorners] = placed.cell;
    samples[threadIdx.x] = {
        {cell[0], cell[1], cell[2], cell[3]}, placed.at.fx, placed.at.fy, raw.weight};
    __syncwarp();
    SampleGradient<A> mine = {};
    const int count = min(p.group, p.samples - t);
    for (int i = 0; i < count; ++i) {
      const SampleGradient<A> grad =
          backward_sample<V, N>(p, row, group_samples[i], grad_row, head_value, sum);
      if (i == row.lane) mine = grad;
    }
    if (row.exists && t + row.lane < p.samples) {
      const int64_t index = row.index * p.samples + t + row.lane;
      const bool inside = placed.at.inside;  // else 0 * infinite attention would be NaN
      grad_locations[2 * index] = inside ? raw.weight * A(placed.width) * mine.x : A(0);
      grad_locations[2 * index + 1] = inside ? raw.weight * A(placed.height) * mine.y : A(0);
      grad_weights[index] = mine.weight;
    }
    __syncwarp();
  }
}

// ---- launches

int ceil_log2(int64_t number) {
  int bits = 0;
  while ((int64_t(1) << bits) < number) ++bits;
  return bits;
}

// The smallest power of two of lanes that move `channels`, `n` at a time; at most `limit`.
int group_size(int64_t channels, int n, int limit) {
  int group = 1;
  while (group < limit && int64_t(group) * n < channels) group *= 2;
  return group;
}

// `problem` gets the sizes, without those of the launch; false if one is out of range.
bool make_problem(const Inputs& in, Problem* problem) {
  // The steps that loops take beyond the end stay in the range of int.
  constexpr int64_t largest = INT_MAX - 1024;
  if (in.num_levels < 1 || in.num_levels > kMaxLevels) return false;
  *problem = {};
  int64_t samples = 0;
  for (int level = 0; level < in.num_levels; ++level) {
    if (in.num_points[level] < 0 || in.num_points[level] > largest - samples) return false;
    samples += in.num_points[level];
    problem->first_sample[level + 1] = int(samples);
  }
  if (samples < 1 || in.batch < 1 || in.queries < 1) return false;
  if (in.cells < 1 || in.cells > largest || in.heads < 1 || in.channels < 1) return false;
  if (in.heads > largest / in.channels) return false;
  problem->spatial_shapes = in.spatial_shapes;
  problem->level_start_index = in.level_start_index;
  problem->queries = in.queries;
  problem->cells = int(in.cells);
  problem->heads = int(in.heads);
  problem->channels = int(in.channels);
  problem->samples = int(samples);
  problem->cell_stride = int(in.heads * in.channels);
  return true;
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(
    cudaStream_t stream, int64_t blocks, void (*kernel)(Parameters...), Arguments... arguments) {
  if (blocks > INT_MAX) return cudaErrorInvalidValue;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// Launches a kernel whose groups of `group` lanes compute a row each.
template <typename Kernel, typename... Arguments>
cudaError_t launch_rows(
    const Inputs& in, Problem problem, int group, cudaStream_t stream, Kernel kernel,
    Arguments... arguments) {
  const int64_t rows_of_block = kThreads / group;
  const int64_t tiles = (in.queries + rows_of_block - 1) / rows_of_block;
  if (tiles > INT_MAX / in.heads / in.batch) return cudaErrorInvalidValue;
  problem.group = group;
  problem.tiles = unsigned(tiles);
  return launch(stream, tiles * in.heads * in.batch, kernel, problem, arguments...);
}

bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0;
}

cudaError_t device_adds_vectors(bool* adds) {
  int device = 0, major = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  }
  *adds = major >= 9;
  return error;
}

template <typename V>
cudaError_t forward(const Inputs& in, V* output, cudaStream_t stream) {
  using A = Accumulate<V>;
  constexpr int n = kVectorBytes / int(sizeof(V));
  Problem problem;
  if (!make_problem(in, &problem)) return cudaErrorInvalidValue;
  const bool vector = in.channels % n == 0 && is_aligned(in.value) && is_aligned(output);
  return launch_rows(
      in, problem, group_size(in.channels, vector ? n : 1, kWarp), stream,
      vector ? forward_kernel<V, n> : forward_kernel<V, 1>, static_cast<const V*>(in.value),
      static_cast<const A*>(in.locations), static_cast<const A*>(in.weights), output);
}

template <typename V, int N, typename Sink>
cudaError_t backward_with(
    const Inputs& in, const Problem& problem, const V* grad_output, const Sink& sink,
    void* grad_locations, void* grad_weights, cudaStream_t stream) {
  using A = Accumulate<V>;
  return launch_rows(
      in, problem, group_size(in.channels, N, N == 1 ? kAtomicGroup : kWarp), stream,
      backward_kernel<V, N, Sink>, grad_output, static_cast<const V*>(in.value),
      static_cast<const A*>(in.locations), static_cast<const A*>(in.weights), sink,
      static_cast<A*>(grad_locations), static_cast<A*>(grad_weights));
}

template <typename V>
cudaError_t backward(
    const Inputs& in, const V* grad_output, void* grad_value, void* grad_locations,
    void* grad_weights, cudaStream_t stream) {
  using A = Accumulate<V>;
  Problem problem;
  if (!make_problem(in, &problem)) return cudaErrorInvalidValue;
  const AtomicSink<A> sink = {static_cast<A*>(grad_value)};
  // Without vector atomics a lane that owns neighbouring channels would touch each sector of L2
  // once a channel; with single channels, the lanes of a group fill the sector together. There are
  // no vector atomics for double.
  if constexpr (sizeof(A) == sizeof(float)) {
    constexpr int n = kVectorBytes / int(sizeof(V));
    bool vector = false;
    const cudaError_t error = device_adds_vectors(&vector);
    if (error != cudaSuccess) return error;
    if (vector && in.channels % n == 0 && is_aligned(in.value) && is_aligned(grad_output) &&
        is_aligned(grad_value)) {
      return backward_with<V, n>(
          in, problem, grad_output, sink, grad_locations, grad_weights, stream);
    }
  }
  return backward_with<V, 1>(in, problem, grad_output, sink, grad_locations, grad_weights, stream);
}

template <typename V>
cudaError_t backward_deterministic(
    const Inputs& in, const V* grad_output, const FixedPointScratch& scratch, V* grad_value,
    void* grad_locations, void* grad_weights, cudaStream_t stream) {
  using A = Accumulate<V>;
  Problem problem;
  if (!make_problem(in, &problem)) return cudaErrorInvalidValue;
  const int64_t elements = in.batch * in.cells * in.heads * in.channels;
  const int query_bits = ceil_log2(in.queries);
  const FixedPointFormat format = {62 - query_bits, 62 - query_bits - ceil_log2(problem.samples)};
  A* bounds = static_cast<A*>(scratch.bounds);
  const FixedPointSink<A> sink = {
      reinterpret_cast<Word*>(scratch.words), elements, bounds, format};
  cudaError_t error = launch_rows(
      in, problem, group_size(in.channels, 1, kAtomicGroup), stream, bound_kernel<V>, grad_output,
      static_cast<const A*>(in.weights), bounds);
  if (error != cudaSuccess) return error;
  error =
      backward_with<V, 1>(in, problem, grad_output, sink, grad_locations, grad_weights, stream);
  if (error != cudaSuccess) return error;
  return launch(
      stream, (elements + kThreads - 1) / kThreads, finish_kernel<V>, problem, sink, grad_value);
}

// Calls `function` with a null pointer to the value type.
template <typename Function>
cudaError_t with_type(ValueType type, Function function) {
  switch (type) {
    case ValueType::kFloat32: return function(static_cast<float*>(nullptr));
    case ValueType::kFloat64: return function(static_cast<double*>(nullptr));
    case ValueType::kBFloat16: return function(static_cast<__nv_bfloat16*>(nullptr));
    case ValueType::kFloat16: return function(static_cast<__half*>(nullptr));
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t ms_deform_attn_forward(const Inputs& inputs, void* output, cudaStream_t stream) {
  return with_type(inputs.type, [&](auto* type) {
    using V = std::remove_pointer_t<decltype(type)>;
    return forward<V>(inputs, static_cast<V*>(output), stream);
  });
}

cudaError_t ms_deform_attn_backward(
    const Inputs& inputs, const void* grad_output, void* grad_value, void* grad_locations,
    void* grad_weights, cudaStream_t stream) {
  return with_type(inputs.type, [&](auto* type) {
    using V = std::remove_pointer_t<decltype(type)>;
    return backward<V>(inputs, static_cast<const V*>(grad_output), grad_value, grad_locations,
                       grad_weights, stream);
  });
}

cudaError_t ms_deform_attn_backward_deterministic(
    const Inputs& inputs, const void* grad_output, const FixedPointScratch& scratch,
    void* grad_value, void* grad_locations, void* grad_weights, cudaStream_t stream) {
  return with_type(inputs.type, [&](auto* type) {
    using V = std::remove_pointer_t<decltype(type)>;
    return backward_deterministic<V>(
        inputs, static_cast<const V*>(grad_output), scratch, static_cast<V*>(grad_value),
        grad_locations, grad_weights, stream);
  });
}

}  // namespace vastdet::cuda
