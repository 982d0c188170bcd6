// SPDX-License-Identifier: Apache-2.0
// What this machine reaches: GB/s of a triad over arrays far larger than the caches, and GFLOP/s of
// fused multiply-adds in registers. One argument, the number of threads; prints the two numbers,
// each the best of several rounds.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

namespace {

constexpr long kElements = 16L << 20;  // of each array of a thread: 64 MB
constexpr int kRounds = 10;
constexpr long kSteps = 10'000'000;
constexpr int kChains = 12;  // independent sums: more than the latency of an instruction, times two

typedef float Vector __attribute__((vector_size(32)));

double seconds(int threads, const std::function<void(int)>& work) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> pool;
  for (int i = 1; i < threads; ++i) pool.emplace_back(work, i);
  work(0);
  for (std::thread& thread : pool) thread.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void triad(float* __restrict a, const float* __restrict b, const float* __restrict c) {
  for (long i = 0; i < kElements; ++i) a[i] = b[i] + 3.0f * c[i];
}

float multiply_add(float start) {
  Vector sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = Vector{} + start * float(i);
  const Vector factor = Vector{} + 0.999f, term = Vector{} + start;
  for (long step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factor + term;
  }
  for (int i = 1; i < kChains; ++i) sums[0] += sums[i];
  return sums[0][0];
}

}  // namespace

int main(int count, char** words) {
  const int threads = count > 1 ? std::atoi(words[1]) : 1;
  if (threads < 1) return 2;
  std::vector<std::vector<float>> arrays(size_t(3 * threads));
  seconds(threads, [&](int thread) {
    for (int i = 0; i < 3; ++i) arrays[size_t(3 * thread + i)].assign(kElements, float(i));
  });
  std::vector<float> results(static_cast<size_t>(threads));
  double bytes = 0, flops = 0;
  for (int round = 0; round < kRounds; ++round) {
    const double moving = seconds(threads, [&](int thread) {
      auto* own = &arrays[size_t(3 * thread)];
      triad(own[0].data(), own[1].data(), own[2].data());
    });
    bytes = std::max(bytes, 3.0 * sizeof(float) * kElements * threads / moving);
    const double adding = seconds(threads, [&](int thread) {
      results[size_t(thread)] = multiply_add(arrays[size_t(3 * thread)][0]);
    });
    flops = std::max(flops, 2.0 * 8 * kChains * kSteps * threads / adding);
  }
  std::printf("%.2f %.2f\n", bytes / 1e9, flops / 1e9);
  return results[0] == 42.0f;  // the sums are needed, or the compiler would leave them out
}
