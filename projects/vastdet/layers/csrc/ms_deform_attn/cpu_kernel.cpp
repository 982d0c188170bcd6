// SPDX-License-Identifier: Apache-2.0
// Multi-scale deformable attention on the CPU; cpu_kernel.h says what the functions do.
//
// Compiled several times, each time for another instruction set. Therefore no header of torch and
// no function of the standard library that could be emitted out of line: the linker keeps one copy
// of such a function, and it could be the one for the newest machines.
#include "cpu_kernel.h"

#include "cpu_backward.h"
#include "cpu_forward.h"

namespace vastdet {
namespace {

// Calls `visit` with a value of the C++ type that `type` names.
template <typename Visit>
VASTDET_INLINE void visit_type(ValueType type, const Visit& visit) {
  switch (type) {
    case ValueType::kFloat: visit(float()); break;
    case ValueType::kDouble: visit(double()); break;
    case ValueType::kBFloat16: visit(BFloat16()); break;
    case ValueType::kHalf: visit(Half()); break;
  }
}

int64_t forward_tasks(const ForwardCall& call) {
  const int64_t images = call.in.batch;
  if (call.copy_heads) return images * call.in.heads * call.pieces;
  return images * ((call.in.queries + call.block - 1) / call.block);
}

int64_t forward_scratch_bytes(const ForwardCall& call) {
  Carver carver(nullptr);
  visit_type(call.in.type, [&](auto v) {
    ForwardScratch<Accumulation<decltype(v)>>(call, carver);
  });
  return carver.bytes();
}

void forward(const ForwardCall& call, int64_t task, void* scratch) {
  Carver carver(scratch);
  visit_type(call.in.type, [&](auto v) {
    typedef decltype(v) V;
    ForwardScratch<Accumulation<V>> pieces(call, carver);
    pieces.set_levels(call);
    if (call.copy_heads) {
      forward_copied<V>(call, task, pieces);
    } else {
      forward_in_place<V>(call, task, pieces);
    }
  });
}

int64_t backward_tasks(const BackwardCall& call) {
  return int64_t(call.in.batch) * call.in.heads * call.in.num_levels;
}

int64_t backward_scratch_bytes(const BackwardCall& call) {
  Carver carver(nullptr);
  visit_type(call.in.type, [&](auto v) {
    BackwardScratch<Accumulation<decltype(v)>>(call, carver);
  });
  return carver.bytes();
}

void backward(const BackwardCall& call, int64_t task, void* scratch) {
  Carver carver(scratch);
  visit_type(call.in.type, [&](auto v) {
    typedef decltype(v) V;
    const BackwardScratch<Accumulation<V>> pieces(call, carver);
    backward_task<V>(call, task, pieces);
  });
}

}  // namespace

#define VASTDET_STRING(x) #x
#define VASTDET_NAME(x) VASTDET_STRING(x)
#define VASTDET_JOIN(a, b) a##b
#define VASTDET_SYMBOL(a, b) VASTDET_JOIN(a, b)

extern const CpuKernel VASTDET_SYMBOL(cpu_kernel_, VASTDET_CPU_VARIANT) = {
    VASTDET_NAME(VASTDET_CPU_VARIANT), kVectorBytes,          forward_tasks,
    forward_scratch_bytes,             forward,               backward_tasks,
    backward_scratch_bytes,            backward,
};

}  // namespace vastdet
