// SPDX-License-Identifier: Apache-2.0
// Scratch of a thread, and copies of levels in it.
//
// E channels of a row in scratch (D rounded up to whole vectors); other letters as in cpu_kernel.h.
// Everything has internal linkage or is inlined: cpu_kernel.cpp says why.
#pragma once

#include "cpu_kernel.h"
#include "cpu_vector.h"

namespace vastdet {
namespace {

// Hands out pieces of a thread's scratch; with a null base it only adds up their sizes.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    T* piece = base_ ? reinterpret_cast<T*>(base_ + offset_) : nullptr;
    offset_ += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return piece;
  }

  int64_t bytes() const { return offset_; }

 private:
  char* base_;
  int64_t offset_ = 0;
};

template <typename A>
VASTDET_INLINE int row_length(const Inputs& in) {
  return (in.channels + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
}

// A copied level has a border of zeros, so that all corners of a sample that touches the level
// exist: rows of width + 1 cells (a row's right border is the next one's left), one row above, two
// below. The last two rows hold no cell: a sample that is outside is sent to them.
VASTDET_INLINE int64_t bordered_cells(const Level& level) {
  return int64_t(level.height + 3) * (level.width + 1) + 1;
}

VASTDET_INLINE int bordered_index(int x, int y, int width) {
  return (y + 1) * (width + 1) + x + 1;
}

template <typename V, typename A>
VASTDET_INLINE void copy_row(const V* from, int channels, A* to) {
  int d = 0;
  for (; d + kLanes<A> <= channels; d += kLanes<A>) {
    Vector<A> v;
    load(from + d, v);
    store(v, to + d);
  }
  for (; d < channels; ++d) to[d] = to_accumulation(from[d]);
}

template <typename V, typename A>
VASTDET_INLINE void write_row(const A* from, int channels, V* to) {
  for (int d = 0; d < channels; ++d) from_accumulation(from[d], to + d);
}

// Copies the cells of one level and head; `to` has rows of `stride` elements.
template <typename V, typename A>
void copy_level(
    const Inputs& in, const Level& level, int64_t image, int64_t head, A* to, int64_t stride) {
  const V* from = static_cast<const V*>(in.value) + image * in.stride_batch +
      head * in.stride_head + level.start * in.stride_cell;
  for (int y = 0; y < level.height; ++y) {
    A* row = to + bordered_index(0, y, level.width) * stride;
    for (int x = 0; x < level.width; ++x, row += stride, from += in.stride_cell) {
      copy_row(from, in.channels, row);
    }
  }
}

}  // namespace
}  // namespace vastdet
