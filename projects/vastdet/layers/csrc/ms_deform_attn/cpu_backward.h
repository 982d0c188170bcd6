// SPDX-License-Identifier: Apache-2.0
// The backward pass of one task; letters and linkage as in cpu_scratch.h, and: N samples that are
// prepared together.
#pragma once

#include "cpu_scratch.h"
#include "sampling.h"

namespace vastdet {
namespace {

// Queries whose samples are prepared together.
constexpr int kBackwardBlock = 16;

// A cell's row holds its value and then its gradient, E elements each: one address for both.
template <typename A>
struct BackwardScratch {
  A *x, *y, *weight;   // N each: locations and attention weights of the samples of some queries
  A *fx, *fy;          // N each
  A* inside;           // N: 1 or 0
  int32_t* index;      // N: the bordered index of the top left corner
  A* corner_weight;    // 4 x N
  A* products;         // N x 4: scalar products of the output gradient with the corners
  A *grad_x, *grad_y, *grad_weight;  // N each
  A* grad_output;      // E
  A* cells;            // bordered copy of one level of one head, 2 E a cell

  BackwardScratch(const BackwardCall& call, Carver& carver) {
    int64_t most_points = 0, most_cells = 0;
    for (int l = 0; l < call.in.num_levels; ++l) {
      const Level& level = call.in.levels[l];
      if (level.num_points > most_points) most_points = level.num_points;
      if (bordered_cells(level) > most_cells) most_cells = bordered_cells(level);
    }
    const int64_t N = most_points * kBackwardBlock;
    A** pieces[] = {&x, &y, &weight, &fx, &fy, &inside, &grad_x, &grad_y, &grad_weight};
    for (A** piece : pieces) *piece = carver.take<A>(N);
    index = carver.take<int32_t>(N);
    corner_weight = carver.take<A>(N * kCorners);
    products = carver.take<A>(N * kCorners);
    grad_output = carver.take<A>(row_length<A>(call.in));
    cells = carver.take<A>(most_cells * 2 * row_length<A>(call.in));
  }
};

template <typename A>
VASTDET_INLINE void prepare_samples(const BackwardScratch<A>& s, int N, int width, int height) {
  const A* __restrict x = s.x;
  const A* __restrict y = s.y;
  const A* __restrict weight = s.weight;
  A* __restrict fx = s.fx;
  A* __restrict fy = s.fy;
  A* __restrict inside = s.inside;
  int32_t* __restrict index = s.index;
  A* __restrict corner = s.corner_weight;
#pragma GCC ivdep
  for (int n = 0; n < N; ++n) {
    const auto sample = bilinear_sample<A>(x[n], y[n], width, height);
    const int32_t x0 = sample.inside ? sample.x0 : -1;
    const int32_t y0 = sample.inside ? sample.y0 : height;
    fx[n] = sample.fx;
    fy[n] = sample.fy;
    inside[n] = sample.inside ? A(1) : A(0);
    index[n] = bordered_index(x0, y0, width);
    for (int c = 0; c < kCorners; ++c) corner[c * N + n] = weight[n] * corner_weight(sample, c);
  }
}

// The scalar products of one sample, and its share of the value gradients.
template <typename A>
VASTDET_INLINE void visit_corners(
    const A* grad_output, const A (&weight)[kCorners], A* cell, int64_t row_step, int length,
    A* products) {
  A* rows[kCorners] = {cell, cell + 2 * length, cell + row_step, cell + row_step + 2 * length};
  Vector<A> sums[kCorners] = {};
  for (int d = 0; d < length; d += kLanes<A>) {
    Vector<A> g, value, grad;
    load(grad_output + d, g);
    for (int c = 0; c < kCorners; ++c) {
      load(rows[c] + d, value);
      sums[c] += g * value;
      load(rows[c] + length + d, grad);
      grad += g * weight[c];
      store(grad, rows[c] + length + d);
    }
  }
  sum_lanes<A>(sums[0], sums[1], sums[2], sums[3], products);
}

template <typename A>
VASTDET_INLINE void finish_gradients(const BackwardScratch<A>& s, int N, int width, int height) {
  const A* __restrict weight = s.weight;
  const A* __restrict fx = s.fx;
  const A* __restrict fy = s.fy;
  const A* __restrict inside = s.inside;
  const A* __restrict products = s.products;
  A* __restrict grad_x = s.grad_x;
  A* __restrict grad_y = s.grad_y;
  A* __restrict grad_weight = s.grad_weight;
#pragma GCC ivdep
  for (int n = 0; n < N; ++n) {
    const A d[kCorners] = {
        products[4 * n], products[4 * n + 1], products[4 * n + 2], products[4 * n + 3]};
    const BilinearSample<A> sample = {0, 0, fx[n], fy[n], true};
    A dx, dy, sampled = 0;
    location_gradient(sample, d, width, height, &dx, &dy);
    for (int c = 0; c < kCorners; ++c) sampled += corner_weight(sample, c) * d[c];
    // Chosen, not multiplied: outside, the product with a weight that is not finite is 0 too.
    grad_x[n] = inside[n] != 0 ? weight[n] * dx : A(0);
    grad_y[n] = inside[n] != 0 ? weight[n] * dy : A(0);
    grad_weight[n] = sampled;
  }
}

template <int L, typename V, typename A = Accumulation<V>>
VASTDET_INLINE void backward_level(
    const BackwardCall& call, const Level& level, int64_t image, int64_t head,
    const BackwardScratch<A>& s) {
  const Inputs& in = call.in;
  const int length = L ? L : row_length<A>(in);
  const int P = level.num_points;
  const int64_t row_step = int64_t(level.width + 1) * 2 * length;
  const A* locations = static_cast<const A*>(in.locations);
  const A* weights = static_cast<const A*>(in.weights);
  A* grad_locations = static_cast<A*>(call.grad_locations);
  A* grad_weights = static_cast<A*>(call.grad_weights);
  for (int64_t begin = 0; begin < in.queries; begin += kBackwardBlock) {
    const int64_t left = in.queries - begin;
    const int count = int(left < kBackwardBlock ? left : kBackwardBlock);
    const int N = count * P;
    // Elements from one query to the next, of (B, Q, H, T).
    const int64_t step = int64_t(in.heads) * in.samples;
    const int64_t first =
        ((image * in.queries + begin) * in.heads + head) * in.samples + level.first_point;
    for (int i = 0; i < count; ++i) {
      for (int p = 0; p < P; ++p) {
        s.x[i * P + p] = locations[(first + i * step + p) * 2];
        s.y[i * P + p] = locations[(first + i * step + p) * 2 + 1];
        s.weight[i * P + p] = weights[first + i * step + p];
      }
    }
    prepare_samples(s, N, level.width, level.height);
    for (int i = 0; i < count; ++i) {
      const int64_t item = (image * in.queries + begin + i) * in.heads + head;
      copy_row(
          static_cast<const V*>(call.grad_output) + item * in.channels, in.channels,
          s.grad_output);
      for (int n = i * P; n < (i + 1) * P; ++n) {
        const A weight[kCorners] = {
            s.corner_weight[n], s.corner_weight[N + n], s.corner_weight[2 * N + n],
            s.corner_weight[3 * N + n]};
        visit_corners(
            s.grad_output, weight, s.cells + int64_t(s.index[n]) * 2 * length, row_step, length,
            s.products + kCorners * n);
      }
    }
    finish_gradients(s, N, level.width, level.height);
    for (int i = 0; i < count; ++i) {
      for (int p = 0; p < P; ++p) {
        grad_locations[(first + i * step + p) * 2] = s.grad_x[i * P + p];
        grad_locations[(first + i * step + p) * 2 + 1] = s.grad_y[i * P + p];
        grad_weights[first + i * step + p] = s.grad_weight[i * P + p];
      }
    }
  }
}

template <typename V, typename A = Accumulation<V>>
void backward_task(const BackwardCall& call, int64_t task, const BackwardScratch<A>& s) {
  const Inputs& in = call.in;
  const Level& level = in.levels[task % in.num_levels];
  const int64_t head = task / in.num_levels % in.heads;
  const int64_t image = task / in.num_levels / in.heads;
  const int length = row_length<A>(in);
  memset(s.cells, 0, size_t(bordered_cells(level)) * 2 * length * sizeof(A));
  copy_level<V>(in, level, image, head, s.cells, 2 * length);
  switch (length) {
    case 16: backward_level<16, V>(call, level, image, head, s); break;
    case 32: backward_level<32, V>(call, level, image, head, s); break;
    case 64: backward_level<64, V>(call, level, image, head, s); break;
    default: backward_level<0, V>(call, level, image, head, s);
  }
  V* grad_value = static_cast<V*>(call.grad_value) +
      ((image * in.cells + level.start) * in.heads + head) * in.channels;
  for (int y = 0; y < level.height; ++y) {
    const A* row = s.cells + int64_t(bordered_index(0, y, level.width)) * 2 * length + length;
    for (int x = 0; x < level.width; ++x) {
      write_row(row, in.channels, grad_value);
      row += 2 * length;
      grad_value += int64_t(in.heads) * in.channels;
    }
  }
}

}  // namespace
}  // namespace vastdet
