// SPDX-License-Identifier: Apache-2.0
// The CPU kernel's interface: plain pointers and sizes, no torch header.
//
// Letters: B images, S cells of all levels, H heads, D channels a head, Q queries, L levels, T
// samples of a (query, head), level by level. Value V (float, double, bfloat16 or half), its
// accumulation type A (double for double, else float).
//
// cpu_kernel.cpp is compiled once for each instruction set, with VASTDET_CPU_VARIANT set to the
// variant's name; ops.cpp picks one at run time and deals tasks to threads.
#pragma once

#include <cstdint>

namespace vastdet {

enum class ValueType : int { kFloat, kDouble, kBFloat16, kHalf };

struct Level {
  int32_t height, width;
  int32_t start;       // first cell in the value
  int32_t num_points;  // samples of a (query, head) on this level; 0 is allowed
  int32_t first_point;
};

// What forward and backward read. Locations (B, Q, H, T, 2) and weights (B, Q, H, T) are of type A
// and contiguous; channels of the value lie together, its other strides (in elements) are free.
struct Inputs {
  ValueType type;
  int32_t batch, cells, heads, channels, queries, samples;
  int32_t num_levels;
  const Level* levels;
  const void* value;
  int64_t stride_batch, stride_cell, stride_head;
  const void* locations;
  const void* weights;
};

// A forward task is a stretch of queries of one image; with `copy_heads` of one image and head, whose
// levels from `first_copied` on are copied first (as A, one border of zeros about each level).
// Copying a level costs its cells * D and makes each sample cheaper, so it pays where queries sample
// each cell often.
struct ForwardCall {
  Inputs in;
  void* output;  // (B, Q, H * D) of type V, contiguous
  bool copy_heads;
  int32_t first_copied;  // with `copy_heads`; levels before it are read in place
  int32_t block;         // queries of a task without `copy_heads`
  int32_t pieces;        // tasks of an (image, head) with `copy_heads`
};

// A backward task is one (image, head, level): it alone writes the value gradients of these cells,
// so that there is no race and sums are always made in the same order.
struct BackwardCall {
  Inputs in;
  const void* grad_output;  // (B, Q, H * D) of type V, contiguous
  void* grad_value;         // (B, S, H, D) of type V, contiguous; every level is written whole
  void* grad_locations;     // like locations; every element of a level with points is written
  void* grad_weights;
};

// One build of cpu_kernel.cpp. A thread has scratch of its own, aligned to 64 bytes, which it gives
// to each of its tasks and sets to zero before the first.
struct CpuKernel {
  const char* name;
  int32_t vector_bytes;
  int64_t (*forward_tasks)(const ForwardCall& call);
  int64_t (*forward_scratch_bytes)(const ForwardCall& call);
  void (*forward)(const ForwardCall& call, int64_t task, void* scratch);
  int64_t (*backward_tasks)(const BackwardCall& call);
  int64_t (*backward_scratch_bytes)(const BackwardCall& call);
  void (*backward)(const BackwardCall& call, int64_t task, void* scratch);
};

extern const CpuKernel cpu_kernel_baseline;
#ifdef VASTDET_CPU_X86
extern const CpuKernel cpu_kernel_avx2;
extern const CpuKernel cpu_kernel_avx512;
#endif

}  // namespace vastdet
