// SPDX-License-Identifier: Apache-2.0
// Binds the CUDA kernel to the operators vastdet::ms_deform_attn and its backward, whose schemas
// ms_deform_attn.py defines. Letters: see cuda_kernel.h. Nothing here waits for the device.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <climits>
#include <tuple>

#include "cuda_kernel.h"

namespace vastdet::cuda {
namespace {

ValueType value_type(const at::Tensor& value) {
  switch (value.scalar_type()) {
    case at::kFloat: return ValueType::kFloat32;
    case at::kDouble: return ValueType::kFloat64;
    case at::kBFloat16: return ValueType::kBFloat16;
    case at::kHalf: return ValueType::kFloat16;
    default:
      TORCH_CHECK_VALUE(
          false, "value must be float32, float64, bfloat16 or float16, got ", value.scalar_type());
  }
}

// The tensors of a call, contiguous, and what the kernel reads of them.
struct Arguments {
  at::Tensor value, shapes, starts, locations, weights;
  Inputs in;
  bool empty;  // nothing to launch: all results are zeros
};

void check_levels(
    const at::Tensor& value, const at::Tensor& spatial_shapes, const at::Tensor& level_start_index,
    at::IntArrayRef num_points) {
  const int64_t levels = int64_t(num_points.size());
  TORCH_CHECK_VALUE(
      levels <= kMaxLevels, "num_points has ", levels, " levels, the CUDA kernel takes up to ",
      kMaxLevels, "; call the operator for fewer levels at a time and add the outputs");
  TORCH_CHECK_VALUE(
      spatial_shapes.scalar_type() == at::kLong && level_start_index.scalar_type() == at::kLong &&
          spatial_shapes.device() == value.device() &&
          level_start_index.device() == value.device(),
      "spatial_shapes and level_start_index must be int64 on ", value.device(), ", as value is");
  TORCH_CHECK_VALUE(
      spatial_shapes.sizes() == at::IntArrayRef({levels, 2}) &&
          level_start_index.sizes() == at::IntArrayRef({levels}),
      "spatial_shapes must be (", levels, ", 2) and level_start_index (", levels,
      "), one row for each entry of num_points, got ", spatial_shapes.sizes(), " and ",
      level_start_index.sizes());
}

void check_samples(
    const at::Tensor& value, const at::Tensor& locations, const at::Tensor& weights,
    int64_t samples) {
  const auto B = value.size(0), H = value.size(2);
  const auto Q = locations.dim() == 5 ? locations.size(1) : 0;
  TORCH_CHECK_VALUE(
      locations.sizes() == at::IntArrayRef({B, Q, H, samples, 2}) &&
          weights.sizes() == at::IntArrayRef({B, Q, H, samples}),
      "sampling_locations must be (", B, ", Q, ", H, ", ", samples, ", 2) and attention_weights (",
      B, ", Q, ", H, ", ", samples, "), got ", locations.sizes(), " and ", weights.sizes());
  const auto type = value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_VALUE(
      locations.scalar_type() == type && weights.scalar_type() == type &&
          locations.device() == value.device() && weights.device() == value.device(),
      "sampling_locations and attention_weights must be ", type, " on ", value.device(),
      " for values of type ", value.scalar_type(), ", got ", locations.scalar_type(), " on ",
      locations.device(), " and ", weights.scalar_type(), " on ", weights.device());
  TORCH_CHECK_VALUE(
      value.size(1) < (1 << 30) && value.size(2) * value.size(3) < (1 << 30) &&
          samples < (1 << 30),
      "value or sampling_locations is too large: ", value.sizes(), ", ", locations.sizes(),
      "; cells, heads * channels and samples must each be below 2^30");
}

Arguments read_arguments(
    const at::Tensor& value, const at::Tensor& spatial_shapes, const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations, const at::Tensor& attention_weights,
    at::IntArrayRef num_points) {
  TORCH_CHECK_VALUE(value.dim() == 4, "value must be (B, S, H, D), got ", value.sizes());
  int64_t samples = 0;
  for (const int64_t points : num_points) {
    TORCH_CHECK_VALUE(points >= 0, "num_points must not be negative, got ", num_points);
    samples += points;
  }
  check_levels(value, spatial_shapes, level_start_index, num_points);
  check_samples(value, sampling_locations, attention_weights, samples);
  Arguments a = {
      value.contiguous(), spatial_shapes.contiguous(), level_start_index.contiguous(),
      sampling_locations.contiguous(), attention_weights.contiguous(), {}, false};
  a.empty = value.numel() == 0 || a.weights.numel() == 0;
  a.in.type = value_type(value);
  a.in.value = a.value.const_data_ptr();
  a.in.spatial_shapes = a.shapes.const_data_ptr<int64_t>();
  a.in.level_start_index = a.starts.const_data_ptr<int64_t>();
  a.in.locations = a.locations.const_data_ptr();
  a.in.weights = a.weights.const_data_ptr();
  a.in.num_points = num_points.data();
  a.in.batch = value.size(0);
  a.in.cells = value.size(1);
  a.in.heads = value.size(2);
  a.in.channels = value.size(3);
  a.in.queries = sampling_locations.size(1);
  a.in.num_levels = int(num_points.size());
  return a;
}

at::Tensor forward(
    const at::Tensor& value, const at::Tensor& spatial_shapes, const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations, const at::Tensor& attention_weights,
    at::IntArrayRef num_points) {
  const c10::cuda::CUDAGuard guard(value.device());
  const Arguments a = read_arguments(
      value, spatial_shapes, level_start_index, sampling_locations, attention_weights, num_points);
  const auto sizes = {a.in.batch, a.in.queries, a.in.heads * a.in.channels};
  if (a.empty) return at::zeros(sizes, value.options());
  at::Tensor output = at::empty(sizes, value.options());
  C10_CUDA_CHECK(ms_deform_attn_forward(
      a.in, output.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream()));
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_output, const at::Tensor& value, const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index, const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights, at::IntArrayRef num_points) {
  const c10::cuda::CUDAGuard guard(value.device());
  const Arguments a = read_arguments(
      value, spatial_shapes, level_start_index, sampling_locations, attention_weights, num_points);
  TORCH_CHECK_VALUE(
      grad_output.sizes() ==
              at::IntArrayRef({a.in.batch, a.in.queries, a.in.heads * a.in.channels}) &&
          grad_output.scalar_type() == value.scalar_type() &&
          grad_output.device() == value.device(),
      "grad_output must be (", a.in.batch, ", ", a.in.queries, ", ", a.in.heads * a.in.channels,
      ") of ", value.scalar_type(), " on ", value.device(), ", got ", grad_output.sizes(), " of ",
      grad_output.scalar_type(), " on ", grad_output.device());
  if (a.empty) {
    return {at::zeros_like(a.value), at::zeros_like(a.locations), at::zeros_like(a.weights)};
  }
  const at::Tensor grad = grad_output.contiguous();
  at::Tensor grad_locations = at::empty_like(a.locations);
  at::Tensor grad_weights = at::empty_like(a.weights);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  if (at::globalContext().deterministicAlgorithms()) {
    const int64_t words = fixed_point_words(a.in.type) * value.numel();
    at::Tensor sums = at::zeros({words}, value.options().dtype(at::kLong));
    at::Tensor bounds = at::zeros({a.in.batch * a.in.heads}, a.weights.options());
    at::Tensor grad_value = at::empty_like(a.value);
    C10_CUDA_CHECK(ms_deform_attn_backward_deterministic(
        a.in, grad.const_data_ptr(),
        {static_cast<uint64_t*>(sums.mutable_data_ptr()), bounds.mutable_data_ptr()},
        grad_value.mutable_data_ptr(), grad_locations.mutable_data_ptr(),
        grad_weights.mutable_data_ptr(), stream));
    return {grad_value, grad_locations, grad_weights};
  }
  at::Tensor grad_value = at::zeros(value.sizes(), a.weights.options());
  C10_CUDA_CHECK(ms_deform_attn_backward(
      a.in, grad.const_data_ptr(), grad_value.mutable_data_ptr(),
      grad_locations.mutable_data_ptr(), grad_weights.mutable_data_ptr(), stream));
  return {grad_value.to(value.scalar_type()), grad_locations, grad_weights};
}

}  // namespace
}  // namespace vastdet::cuda

TORCH_LIBRARY_IMPL(vastdet, CUDA, m) {
  m.impl("ms_deform_attn", &vastdet::cuda::forward);
  m.impl("ms_deform_attn_backward", &vastdet::cuda::backward);
}
