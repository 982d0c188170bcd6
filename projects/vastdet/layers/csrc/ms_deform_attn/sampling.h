// SPDX-License-Identifier: Apache-2.0
// The sampling arithmetic of multi-scale deformable attention (Zhu et al. 2021, Eq. 2-3), written
// once for the CPU kernel, the CUDA kernel and the host build of the CUDA kernel that tests run.
//
// Letters: A accumulation type (float; double when the values are double), H and W size of a level
// in cells. A location (x, y) in [0, 1] spans the level; cell centres lie at (i + 0.5) / size, so
// the continuous cell coordinate is location * size - 0.5 (grid_sample, align_corners=False).
#pragma once

#include <cstdint>

#if defined(__CUDACC__) || defined(VASTDET_CUDA_ON_HOST)
#define VASTDET_HD __host__ __device__
#else
#define VASTDET_HD
#endif

// The functions have internal linkage (static): the CPU kernel is compiled several times with
// different instruction sets, and no build may end up calling another's copy.
namespace vastdet {

// Corners are numbered row by row: 0 top left, 1 top right, 2 bottom left, 3 bottom right.
constexpr int kCorners = 4;

// One bilinear sample of one level. `x0`, `y0` is the top left corner, which may lie one cell
// outside; `fx`, `fy` in [0, 1) is the way from it. A location that touches no cell, or is not a
// number, has `inside` false: it samples zero and passes no gradient.
template <typename A>
struct BilinearSample {
  int x0, y0;
  A fx, fy;
  bool inside;
};

template <typename A>
VASTDET_HD static inline BilinearSample<A> bilinear_sample(
    A location_x, A location_y, int width, int height) {
  const A x = location_x * A(width) - A(0.5);
  const A y = location_y * A(height) - A(0.5);
  BilinearSample<A> sample;
  // False for NaN, which compares false with everything.
  sample.inside = x > A(-1) && x < A(width) && y > A(-1) && y < A(height);
  const A safe_x = sample.inside ? x : A(0);
  const A safe_y = sample.inside ? y : A(0);
  // The coordinate is above -1, so that truncation after the shift is a floor.
  sample.x0 = int(safe_x + A(1)) - 1;
  sample.y0 = int(safe_y + A(1)) - 1;
  sample.fx = safe_x - A(sample.x0);
  sample.fy = safe_y - A(sample.y0);
  return sample;
}

// Whether a corner of the sample is a cell of the level.
template <typename A>
VASTDET_HD static inline bool corner_inside(
    const BilinearSample<A>& s, int corner, int width, int height) {
  const int x = s.x0 + (corner & 1);
  const int y = s.y0 + (corner >> 1);
  return s.inside && x >= 0 && x < width && y >= 0 && y < height;
}

// The cell's position in its level, row by row; meaningful where `corner_inside`.
template <typename Index = int64_t, typename A>
VASTDET_HD static inline Index corner_cell(const BilinearSample<A>& s, int corner, int width) {
  return Index(s.y0 + (corner >> 1)) * width + (s.x0 + (corner & 1));
}

// The bilinear weight of a corner; the four add up to one.
template <typename A>
VASTDET_HD static inline A corner_weight(const BilinearSample<A>& s, int corner) {
  const A wx = (corner & 1) ? s.fx : A(1) - s.fx;
  const A wy = (corner >> 1) ? s.fy : A(1) - s.fy;
  return wx * wy;
}

// The derivatives of sum(corner_weight * d) with respect to the location, where d[c] is the scalar
// product of the output gradient with the value at corner c (0 where the corner is outside).
template <typename A>
VASTDET_HD static inline void location_gradient(
    const BilinearSample<A>& s, const A (&d)[kCorners], int width, int height, A* grad_x, A* grad_y) {
  *grad_x = A(width) * ((A(1) - s.fy) * (d[1] - d[0]) + s.fy * (d[3] - d[2]));
  *grad_y = A(height) * ((A(1) - s.fx) * (d[2] - d[0]) + s.fx * (d[3] - d[1]));
}

}  // namespace vastdet
