// SPDX-License-Identifier: Apache-2.0
// The forward pass of one task; letters and linkage as in cpu_scratch.h.
#pragma once

#include "cpu_scratch.h"
#include "sampling.h"

namespace vastdet {
namespace {

constexpr int64_t kCacheLine = 64;

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

}  // namespace
}  // namespace vastdet
