// SPDX-License-Identifier: Apache-2.0
// Multi-scale deformable attention on the CPU; cpu_kernel.h says what the functions do.
//
// Letters as there, and: E channels of a row in scratch (D rounded up to whole vectors), N samples
// that are prepared together.
//
// Compiled several times, each time for another instruction set. Therefore no header of torch and
// no function of the standard library that could be emitted out of line: the linker keeps one copy
// of such a function, and it could be the one for the newest machines.
#include "cpu_kernel.h"

#include "cpu_vector.h"
#include "sampling.h"

namespace vastdet {
namespace {

// Queries whose samples are prepared together in the backward pass.
constexpr int kBackwardBlock = 16;
constexpr int64_t kCacheLine = 64;

// ---- Layout of scratch -------------------------------------------------------------------------

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

// ---- Reading and writing rows of channels ------------------------------------------------------

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

// ---- Forward -----------------------------------------------------------------------------------

// What the preparation knows of each sample's level, and what it finds for one (query, head).
template <typename A>
struct ForwardScratch {
  int64_t* copied;            // 1 + the number of the (image, head) in `cells`; 0 for none
  int32_t *width, *height;    // T each
  int32_t *first, *row_step;  // T each: the level's first cell, cells from row to row
  int32_t* index;             // 2 times 4 x T; of copied levels the first of four
  A* corner_weight;           // 2 times 4 x T: of a query and, with copied heads, of the next one
  A* sum;                     // 2 x E
  A* zeros;                   // E
  A* cells;                   // bordered copies of one head's levels, E a cell

  ForwardScratch(const ForwardCall& call, Carver& carver) {
    const Inputs& in = call.in;
    copied = carver.take<int64_t>(1);
    width = carver.take<int32_t>(in.samples);
    height = carver.take<int32_t>(in.samples);
    first = carver.take<int32_t>(in.samples);
    row_step = carver.take<int32_t>(in.samples);
    index = carver.take<int32_t>(int64_t(2 * kCorners) * in.samples);
    corner_weight = carver.take<A>(int64_t(2 * kCorners) * in.samples);
    sum = carver.take<A>(2 * row_length<A>(in));
    zeros = carver.take<A>(row_length<A>(in));
    int64_t count = 0;
    for (int l = call.first_copied; call.copy_heads && l < in.num_levels; ++l) {
      count += bordered_cells(in.levels[l]);
    }
    cells = carver.take<A>(count * row_length<A>(in));
  }

  void set_levels(const ForwardCall& call) {
    int32_t bordered = 0;
    for (int l = 0; l < call.in.num_levels; ++l) {
      const Level& level = call.in.levels[l];
      const bool is_copied = call.copy_heads && l >= call.first_copied;
      for (int t = level.first_point; t < level.first_point + level.num_points; ++t) {
        width[t] = level.width;
        height[t] = level.height;
        first[t] = is_copied ? bordered : level.start;
        row_step[t] = level.width + 1;
      }
      if (is_copied) bordered += int32_t(bordered_cells(level));
    }
  }
};

// Where the corners of one (query, head) are kept.
template <typename A>
struct Corners {
  int32_t* index;  // 4 x T; of copied levels the first of four
  A* weight;       // 4 x T
};

// Cells of the four corners of the first `end` samples, -1 where there is none, and their weights.
template <typename A>
VASTDET_INLINE void find_corners(
    const A* __restrict location, const A* __restrict weight, int T, int end,
    const ForwardScratch<A>& s, const Corners<A>& found) {
  const int32_t* __restrict width = s.width;
  const int32_t* __restrict height = s.height;
  const int32_t* __restrict first = s.first;
  int32_t* __restrict index = found.index;
  A* __restrict corner = found.weight;
#pragma GCC ivdep
  for (int t = 0; t < end; ++t) {
    const auto sample = bilinear_sample<A>(location[2 * t], location[2 * t + 1], width[t], height[t]);
    for (int c = 0; c < kCorners; ++c) {
      const int32_t cell = first[t] + corner_cell<int32_t>(sample, c, width[t]);
      index[c * T + t] = corner_inside(sample, c, width[t], height[t]) ? cell : -1;
      corner[c * T + t] = weight[t] * corner_weight(sample, c);
    }
  }
}

// The same for the samples from `begin` on, of copied levels: the top left corner only; the others
// lie beside and below it.
template <typename A>
VASTDET_INLINE void find_bordered_corners(
    const A* __restrict location, const A* __restrict weight, int T, int begin,
    const ForwardScratch<A>& s, const Corners<A>& found) {
  const int32_t* __restrict width = s.width;
  const int32_t* __restrict height = s.height;
  const int32_t* __restrict first = s.first;
  int32_t* __restrict index = found.index;
  A* __restrict corner = found.weight;
#pragma GCC ivdep
  for (int t = begin; t < T; ++t) {
    const auto sample = bilinear_sample<A>(location[2 * t], location[2 * t + 1], width[t], height[t]);
    const int32_t x = sample.inside ? sample.x0 : -1;
    const int32_t y = sample.inside ? sample.y0 : height[t];
    index[t] = first[t] + bordered_index(x, y, width[t]);
    for (int c = 0; c < kCorners; ++c) corner[c * T + t] = weight[t] * corner_weight(sample, c);
  }
}

// Some of the samples of one (query, head): T of all, and those from `begin` to `end`.
struct Samples {
  int T, begin, end;
};

// Sums the samples of one (query, head), K vectors of channels from `channel` on. `corners` gives the
// four rows of a sample. Two sets of sums where registers allow: a sum must wait for the one before
// it. Until the last sample both sets stay in `result`, one `length` after the other, so that the
// order of all sums does not depend on which levels are copied.
template <int K, typename V, typename A, typename Rows>
VASTDET_INLINE void add_samples(
    const Rows& corners, const A* weight, Samples samples, int channel, int length, A* result) {
  constexpr int kSets = K <= 4 ? 2 : 1;
  Vector<A> sums[kSets][K] = {};
  result += channel;
  for (int set = 0; samples.begin && set < kSets; ++set) {
    for (int k = 0; k < K; ++k) load(result + set * length + k * kLanes<A>, sums[set][k]);
  }
  for (int t = samples.begin; t < samples.end; ++t) {
    const V* rows[kCorners];
    corners(t, rows);
    for (int c = 0; c < kCorners; ++c) {
      const A w = weight[c * samples.T + t];
      for (int k = 0; k < K; ++k) {
        Vector<A> v;
        load(rows[c] + channel + k * kLanes<A>, v);
        sums[c % kSets][k] += v * w;
      }
    }
  }
  for (int k = 0; k < K; ++k) {
    if (samples.end < samples.T) {
      for (int set = 0; set < kSets; ++set) {
        store(sums[set][k], result + set * length + k * kLanes<A>);
      }
    } else {
      const Vector<A> v = kSets == 2 ? sums[0][k] + sums[kSets - 1][k] : sums[0][k];
      store(v, result + k * kLanes<A>);
    }
  }
}

template <typename V, typename A, typename Rows>
VASTDET_INLINE void add_all_channels(
    const Rows& corners, const A* weight, Samples samples, int length, A* result) {
  int k = 0;
  const int vectors = length / kLanes<A>;
  for (; vectors - k >= 8; k += 8) {
    add_samples<8, V>(corners, weight, samples, k * kLanes<A>, length, result);
  }
  if (vectors - k >= 4) {
    add_samples<4, V>(corners, weight, samples, k * kLanes<A>, length, result);
    k += 4;
  }
  if (vectors - k >= 2) {
    add_samples<2, V>(corners, weight, samples, k * kLanes<A>, length, result);
    k += 2;
  }
  if (vectors - k >= 1) add_samples<1, V>(corners, weight, samples, k * kLanes<A>, length, result);
}

template <typename V, typename A = Accumulation<V>>
void forward_in_place(const ForwardCall& call, int64_t task, const ForwardScratch<A>& scratch) {
  const Inputs& in = call.in;
  const int64_t blocks = (in.queries + call.block - 1) / call.block;
  const int64_t image = task / blocks;
  const int64_t begin = task % blocks * call.block;
  const int64_t end = begin + call.block < in.queries ? begin + call.block : in.queries;
  const int T = in.samples;
  const V* zeros = reinterpret_cast<const V*>(scratch.zeros);
  const Corners<A> found{scratch.index, scratch.corner_weight};
  // Head by head, because the cells that neighbouring queries sample are then still near.
  for (int64_t head = 0; head < in.heads; ++head) {
    const V* value =
        static_cast<const V*>(in.value) + image * in.stride_batch + head * in.stride_head;
    for (int64_t q = begin; q < end; ++q) {
      const int64_t item = (image * in.queries + q) * in.heads + head;
      find_corners(
          static_cast<const A*>(in.locations) + item * T * 2,
          static_cast<const A*>(in.weights) + item * T, T, T, scratch, found);
      const auto corners = [&](int t, const V** rows) {
        for (int c = 0; c < kCorners; ++c) {
          const int32_t cell = found.index[c * T + t];
          rows[c] = cell >= 0 ? value + cell * in.stride_cell : zeros;
        }
      };
      add_all_channels<V>(corners, found.weight, {T, 0, T}, row_length<A>(in), scratch.sum);
      write_row(scratch.sum, in.channels, static_cast<V*>(call.output) + item * in.channels);
    }
  }
}

template <typename V, typename A = Accumulation<V>>
void forward_copied(const ForwardCall& call, int64_t task, const ForwardScratch<A>& scratch) {
  const Inputs& in = call.in;
  const int64_t image_head = task / call.pieces;
  const int64_t piece = task % call.pieces;
  const int64_t image = image_head / in.heads;
  const int64_t head = image_head % in.heads;
  const int64_t length = row_length<A>(in);
  const int T = in.samples;
  // Samples before this one are read in place.
  const int first = in.levels[call.first_copied].first_point;
  if (*scratch.copied != image_head + 1) {
    A* cells = scratch.cells;
    for (int l = call.first_copied; l < in.num_levels; ++l) {
      copy_level<V>(in, in.levels[l], image, head, cells, length);
      cells += bordered_cells(in.levels[l]) * length;
    }
    *scratch.copied = image_head + 1;
  }
  const V* value =
      static_cast<const V*>(in.value) + image * in.stride_batch + head * in.stride_head;
  const V* zeros = reinterpret_cast<const V*>(scratch.zeros);
  Corners<A> found{scratch.index, scratch.corner_weight};
  Corners<A> next{found.index + kCorners * T, found.weight + kCorners * T};
  const auto find = [&](int64_t q, const Corners<A>& to) {
    const int64_t item = (image * in.queries + q) * in.heads + head;
    const A* locations = static_cast<const A*>(in.locations) + item * T * 2;
    const A* weights = static_cast<const A*>(in.weights) + item * T;
    find_corners(locations, weights, T, first, scratch, to);
    find_bordered_corners(locations, weights, T, first, scratch, to);
    // What is read in place may be far away: asked for one query ahead.
    for (int t = 0; t < first; ++t) {
      for (int c = 0; c < kCorners; ++c) {
        const int32_t cell = to.index[c * T + t];
        const V* cells = cell >= 0 ? value + cell * in.stride_cell : zeros;
        const char* row = reinterpret_cast<const char*>(cells);
        for (int64_t byte = 0; byte < int64_t(in.channels * sizeof(V)); byte += kCacheLine) {
          __builtin_prefetch(row + byte);
        }
      }
    }
  };
  const int64_t begin = piece * in.queries / call.pieces;
  const int64_t end = (piece + 1) * in.queries / call.pieces;
  if (begin < end) find(begin, found);
  for (int64_t q = begin; q < end; ++q) {
    const int64_t item = (image * in.queries + q) * in.heads + head;
    if (q + 1 < end) find(q + 1, next);
    const auto corners = [&](int t, const V** rows) {
      for (int c = 0; c < kCorners; ++c) {
        const int32_t cell = found.index[c * T + t];
        rows[c] = cell >= 0 ? value + cell * in.stride_cell : zeros;
      }
    };
    const auto bordered_corners = [&](int t, const A** rows) {
      rows[0] = scratch.cells + found.index[t] * length;
      rows[1] = rows[0] + length;
      rows[2] = rows[0] + scratch.row_step[t] * length;
      rows[3] = rows[2] + length;
    };
    if (first) add_all_channels<V>(corners, found.weight, {T, 0, first}, int(length), scratch.sum);
    add_all_channels<A>(bordered_corners, found.weight, {T, first, T}, int(length), scratch.sum);
    const Corners<A> done = found;
    found = next;
    next = done;
    write_row(scratch.sum, in.channels, static_cast<V*>(call.output) + item * in.channels);
  }
}

// ---- Backward ----------------------------------------------------------------------------------

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

// ---- The interface -----------------------------------------------------------------------------

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
