// SPDX-License-Identifier: Apache-2.0
// Binds the CPU kernel to the operators vastdet::ms_deform_attn and its backward, whose schemas
// ms_deform_attn.py defines. Letters: see cpu_kernel.h.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "cpu_kernel.h"

namespace vastdet {
namespace {

// Queries of a forward task without copied heads: neighbours share cells, tasks share threads.
constexpr int kForwardBlock = 32;
// A level is copied when the queries of a thread sample each cell at least so often, corners counted
// (benchmarks/ms_deform_attn.md).
constexpr int64_t kCopyReads = 3;

// ---- The build that runs here ------------------------------------------------------------------

bool supported(const CpuKernel& kernel) {
#ifdef VASTDET_CPU_X86
  if (&kernel == &cpu_kernel_avx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  // Every processor with AVX2 and FMA has F16C.
  if (&kernel == &cpu_kernel_avx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
#endif
  return &kernel == &cpu_kernel_baseline;
}

// The builds that this machine can run, the best one first.
std::vector<const CpuKernel*> supported_kernels() {
  std::vector<const CpuKernel*> kernels;
#ifdef VASTDET_CPU_X86
  for (const CpuKernel* kernel : {&cpu_kernel_avx512, &cpu_kernel_avx2}) {
    if (supported(*kernel)) kernels.push_back(kernel);
  }
#endif
  kernels.push_back(&cpu_kernel_baseline);
  return kernels;
}

// The best build, or the one that the environment variable VASTDET_CPU_VARIANT names; it is read at
// every call, so that tests can go through all of them.
const CpuKernel& chosen_kernel() {
  static const std::vector<const CpuKernel*> kernels = supported_kernels();
  const char* name = std::getenv("VASTDET_CPU_VARIANT");
  if (name == nullptr || *name == '\0') return *kernels[0];
  std::string names;
  for (const CpuKernel* kernel : kernels) {
    if (std::strcmp(kernel->name, name) == 0) return *kernel;
    names += std::string(names.empty() ? "" : ", ") + kernel->name;
  }
  TORCH_CHECK_VALUE(
      false, "VASTDET_CPU_VARIANT is '", name, "'; this machine can run: ", names,
      ". Unset the variable to take the first");
}

std::string cpu_variant() { return chosen_kernel().name; }

std::vector<std::string> cpu_variants() {
  std::vector<std::string> names;
  for (const CpuKernel* kernel : supported_kernels()) names.push_back(kernel->name);
  return names;
}

// ---- Checks ------------------------------------------------------------------------------------

ValueType value_type(const at::Tensor& value) {
  switch (value.scalar_type()) {
    case at::kFloat: return ValueType::kFloat;
    case at::kDouble: return ValueType::kDouble;
    case at::kBFloat16: return ValueType::kBFloat16;
    case at::kHalf: return ValueType::kHalf;
    default:
      TORCH_CHECK_VALUE(
          false, "value must be float32, float64, bfloat16 or float16, got ", value.scalar_type());
  }
}

// The tensors of a call, brought into the form that the kernel reads.
struct Arguments {
  at::Tensor value, locations, weights;
  std::vector<Level> levels;
  Inputs in;
};

std::vector<Level> read_levels(
    const at::Tensor& spatial_shapes, const at::Tensor& level_start_index,
    at::IntArrayRef num_points, int64_t cells) {
  const int64_t count = int64_t(num_points.size());
  TORCH_CHECK_VALUE(
      spatial_shapes.scalar_type() == at::kLong && level_start_index.scalar_type() == at::kLong &&
          spatial_shapes.is_cpu() && level_start_index.is_cpu(),
      "spatial_shapes and level_start_index must be int64 on the CPU, as value is");
  TORCH_CHECK_VALUE(
      spatial_shapes.dim() == 2 && spatial_shapes.size(0) == count && spatial_shapes.size(1) == 2 &&
          level_start_index.dim() == 1 && level_start_index.size(0) == count,
      "spatial_shapes must be (", count, ", 2) and level_start_index (", count, "), one row for ",
      "each entry of num_points, got ", spatial_shapes.sizes(), " and ", level_start_index.sizes());
  const at::Tensor shapes = spatial_shapes.contiguous();
  const at::Tensor starts = level_start_index.contiguous();
  std::vector<Level> levels;
  int64_t start = 0, point = 0;
  for (int64_t l = 0; l < count; ++l) {
    const int64_t height = shapes.const_data_ptr<int64_t>()[2 * l];
    const int64_t width = shapes.const_data_ptr<int64_t>()[2 * l + 1];
    TORCH_CHECK_VALUE(
        height >= 1 && width >= 1 && height <= cells && width <= cells &&
            starts.const_data_ptr<int64_t>()[l] == start && start + height * width <= cells,
        "level ", l, " is ", height, " x ", width, " from cell ",
        starts.const_data_ptr<int64_t>()[l], ", expected from cell ", start, " and within the ",
        cells, " cells of value: levels follow one another and together are the value");
    levels.push_back(
        {int32_t(height), int32_t(width), int32_t(start), int32_t(num_points[l]), int32_t(point)});
    start += height * width;
    point += num_points[l];
  }
  TORCH_CHECK_VALUE(
      start == cells, "the levels of spatial_shapes have ", start, " cells, value has ", cells);
  return levels;
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
  const auto B = value.size(0), H = value.size(2);
  const auto Q = sampling_locations.dim() == 5 ? sampling_locations.size(1) : 0;
  TORCH_CHECK_VALUE(
      sampling_locations.sizes() == at::IntArrayRef({B, Q, H, samples, 2}) &&
          attention_weights.sizes() == at::IntArrayRef({B, Q, H, samples}),
      "sampling_locations must be (", B, ", Q, ", H, ", ", samples, ", 2) and attention_weights (",
      B, ", Q, ", H, ", ", samples, "), got ", sampling_locations.sizes(), " and ",
      attention_weights.sizes());
  const auto type = value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_VALUE(
      sampling_locations.scalar_type() == type && attention_weights.scalar_type() == type,
      "sampling_locations and attention_weights must be ", type, " for values of type ",
      value.scalar_type(), ", got ", sampling_locations.scalar_type(), " and ",
      attention_weights.scalar_type());
  TORCH_CHECK_VALUE(
      value.size(1) < (1 << 30) && Q < (1 << 30) && value.size(3) < (1 << 20),
      "value or sampling_locations is too large: ", value.sizes(), ", ",
      sampling_locations.sizes());

  Arguments a;
  a.levels = read_levels(spatial_shapes, level_start_index, num_points, value.size(1));
  a.value = value.stride(3) == 1 || value.size(3) == 1 ? value : value.contiguous();
  a.locations = sampling_locations.contiguous();
  a.weights = attention_weights.contiguous();
  a.in.type = value_type(value);
  a.in.batch = int32_t(B);
  a.in.cells = int32_t(value.size(1));
  a.in.heads = int32_t(H);
  a.in.channels = int32_t(value.size(3));
  a.in.queries = int32_t(Q);
  a.in.samples = int32_t(samples);
  a.in.num_levels = int32_t(a.levels.size());
  a.in.levels = a.levels.data();
  a.in.value = a.value.const_data_ptr();
  a.in.stride_batch = a.value.stride(0);
  a.in.stride_cell = a.value.stride(1);
  a.in.stride_head = a.value.stride(2);
  a.in.locations = a.locations.const_data_ptr();
  a.in.weights = a.weights.const_data_ptr();
  return a;
}

// ---- Running -----------------------------------------------------------------------------------

// Deals tasks to threads, each next task to the thread that is free: on a busy machine threads do
// not advance alike. What a task computes does not depend on the thread.
template <typename Run>
void run_tasks(int64_t tasks, int64_t scratch_bytes, const Run& run) {
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), tasks);
  if (threads == 0) return;
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    // A thread may be given several shares; it finds nothing left to do after the first.
    if (begin >= end || next.load() >= tasks) return;
    at::Tensor scratch = at::empty({scratch_bytes + 64}, at::TensorOptions(at::kByte));
    char* data = static_cast<char*>(scratch.mutable_data_ptr());
    data += (64 - reinterpret_cast<uintptr_t>(data) % 64) % 64;
    std::memset(data, 0, size_t(scratch_bytes));
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) run(task, data);
  });
}

bool sampled_often(const ForwardCall& call, int32_t level) {
  const Level& l = call.in.levels[level];
  return int64_t(call.in.queries) * l.num_points * 4 / call.pieces >=
      kCopyReads * l.height * l.width;
}

at::Tensor forward(
    const at::Tensor& value, const at::Tensor& spatial_shapes, const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations, const at::Tensor& attention_weights,
    at::IntArrayRef num_points) {
  const Arguments a = read_arguments(
      value, spatial_shapes, level_start_index, sampling_locations, attention_weights, num_points);
  const Inputs& in = a.in;
  at::Tensor output = at::empty(
      {in.batch, in.queries, int64_t(in.heads) * in.channels}, value.options(),
      at::MemoryFormat::Contiguous);
  if (output.numel() == 0) return output;
  const CpuKernel& kernel = chosen_kernel();
  const int64_t lanes = kernel.vector_bytes / (in.type == ValueType::kDouble ? 8 : 4);
  const int64_t image_heads = int64_t(in.batch) * in.heads;
  ForwardCall call;
  call.in = in;
  call.output = output.mutable_data_ptr();
  call.block = kForwardBlock;
  call.pieces = int32_t((at::get_num_threads() + image_heads - 1) / image_heads);
  // Levels come from large to small, so that those that are sampled less often come first.
  call.first_copied = 0;
  if (in.channels % lanes == 0) {
    while (call.first_copied < in.num_levels && !sampled_often(call, call.first_copied)) {
      ++call.first_copied;
    }
  }
  call.copy_heads = call.first_copied < in.num_levels;
  run_tasks(
      kernel.forward_tasks(call), kernel.forward_scratch_bytes(call),
      [&](int64_t task, void* scratch) { kernel.forward(call, task, scratch); });
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_output, const at::Tensor& value, const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index, const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights, at::IntArrayRef num_points) {
  const Arguments a = read_arguments(
      value, spatial_shapes, level_start_index, sampling_locations, attention_weights, num_points);
  const Inputs& in = a.in;
  const int64_t channels = int64_t(in.heads) * in.channels;
  TORCH_CHECK_VALUE(
      grad_output.sizes() == at::IntArrayRef({in.batch, in.queries, channels}) &&
          grad_output.scalar_type() == value.scalar_type(),
      "grad_output must be (", in.batch, ", ", in.queries, ", ", channels, ") of type ",
      value.scalar_type(), ", got ", grad_output.sizes(), " of type ", grad_output.scalar_type());
  const at::Tensor grad = grad_output.contiguous();
  at::Tensor grad_value = at::empty_like(value, at::MemoryFormat::Contiguous);
  at::Tensor grad_locations = at::empty_like(a.locations, at::MemoryFormat::Contiguous);
  at::Tensor grad_weights = at::empty_like(a.weights, at::MemoryFormat::Contiguous);
  BackwardCall call;
  call.in = in;
  call.grad_output = grad.const_data_ptr();
  call.grad_value = grad_value.mutable_data_ptr();
  call.grad_locations = grad_locations.mutable_data_ptr();
  call.grad_weights = grad_weights.mutable_data_ptr();
  const CpuKernel& kernel = chosen_kernel();
  run_tasks(
      kernel.backward_tasks(call), kernel.backward_scratch_bytes(call),
      [&](int64_t task, void* scratch) { kernel.backward(call, task, scratch); });
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace

TORCH_LIBRARY_IMPL(vastdet, CPU, m) {
  m.impl("ms_deform_attn", forward);
  m.impl("ms_deform_attn_backward", backward);
}

TORCH_LIBRARY_FRAGMENT(vastdet, m) {
  m.def("cpu_variant() -> str", cpu_variant);
  m.def("cpu_variants() -> str[]", cpu_variants);
}

}  // namespace vastdet
