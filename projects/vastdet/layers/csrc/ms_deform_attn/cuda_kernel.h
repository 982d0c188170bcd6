// SPDX-License-Identifier: Apache-2.0
// Launches of multi-scale deformable attention on CUDA. No torch header stands here or in the
// kernel file, so that they compile in seconds; ops_cuda.cpp is the torch side.
//
// Letters: B images, S cells of all levels, H heads, D channels of a head, Q queries, L levels,
// T samples of a query and head over all levels. All arrays are contiguous and lie on the device
// unless a comment says otherwise. Accumulation type: double for double values, else float.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

namespace vastdet::cuda {

// A launch carries the point counts of the levels as an argument, whose size is fixed.
constexpr int kMaxLevels = 256;

enum class ValueType { kFloat32, kFloat64, kBFloat16, kFloat16 };

struct Inputs {
  ValueType type;                    // of value, output, grad_output and the final grad_value
  const void* value;                 // [B, S, H, D]
  const int64_t* spatial_shapes;     // [L, 2], height and width
  const int64_t* level_start_index;  // [L]
  const void* locations;             // [B, Q, H, T, 2], accumulation type
  const void* weights;               // [B, Q, H, T], accumulation type
  const int64_t* num_points;         // [L], on the host; sum T
  int64_t batch, cells, heads, channels, queries;
  int num_levels;
};

// Scratch of the deterministic backward pass, zeroed by the caller.
struct FixedPointScratch {
  uint64_t* words;  // [fixed_point_words(type), B, S, H, D]
  void* bounds;     // [B, H], accumulation type
};

// 64-bit words that the deterministic sum of one element takes.
constexpr int fixed_point_words(ValueType type) { return type == ValueType::kFloat64 ? 2 : 1; }

// Each launch returns cudaErrorInvalidValue if a size is out of range: B, Q, S, H, D and T are at
// least 1; S, H * D and T fit in an int; L is 1 to kMaxLevels; the grid has less than 2^31 blocks.
// A device-side assertion fails if spatial_shapes and level_start_index name a cell beyond S.

// output [B, Q, H * D] = sum over T of weight * sampled value.
cudaError_t ms_deform_attn_forward(const Inputs& inputs, void* output, cudaStream_t stream);

// Gradients; the sum over the samples of a cell runs in an order that changes from run to run.
// grad_value [B, S, H, D] has the accumulation type and is zeroed by the caller; grad_locations and
// grad_weights have the shapes of their inputs and are written whole.
cudaError_t ms_deform_attn_backward(
    const Inputs& inputs, const void* grad_output, void* grad_value, void* grad_locations,
    void* grad_weights, cudaStream_t stream);

// The same gradients, bit for bit equal from run to run: grad_value [B, S, H, D], here of the value
// type and written whole, is summed in integers, for which the order does not matter.
//
// Error. Of an image and head let M be the largest over the queries of sum_t |weight| * max_d
// |grad_output|, and q the power of two from Q upwards. Each contribution to grad_value is rounded
// by at most M * q * 2^-62 (for Q = 20,000 that is M * 2^-47; 2^-127 if that is larger), and the
// sum once to the value type. Double takes a second word for the rest, which makes the first
// bound M * q * q * T' * 2^-124, T' the power of two from T upwards, below double's own rounding.
// If M is infinite or NaN, grad_value of this image and head is NaN.
cudaError_t ms_deform_attn_backward_deterministic(
    const Inputs& inputs, const void* grad_output, const FixedPointScratch& scratch,
    void* grad_value, void* grad_locations, void* grad_weights, cudaStream_t stream);

}  // namespace vastdet::cuda
