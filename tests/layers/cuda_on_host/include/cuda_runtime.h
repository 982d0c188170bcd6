// SPDX-License-Identifier: Apache-2.0
// CUDA on the host, for tests: each thread of a block is a fiber. Fibers change only at barriers
// and shuffles, and the next to run is drawn at random, so that a missing barrier shows as a wrong
// result. A barrier that some threads never reach ends the program with a message.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "cuda_runtime_api.h"

using std::fabs, std::frexp, std::isfinite, std::ldexp, std::min;

struct dim3 {
  unsigned x, y, z;
  dim3() : dim3(1) {}
  explicit dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline dim3 threadIdx, blockIdx;

namespace cuda_on_host {

constexpr size_t kStackBytes = 256 * 1024;
constexpr unsigned kWarp = 32;

struct Gate {
  const char* kind = nullptr;
  std::vector<unsigned> waiting;
};

struct Host {
  std::mt19937_64 random{0};
  bool shuffle = false;
  int capability = 9;  // major
  std::vector<ucontext_t> contexts;
  std::vector<std::unique_ptr<char[]>> stacks;
  std::vector<unsigned> ready;
  std::vector<Gate> warps;
  Gate block;
  std::vector<unsigned char> slots;        // of shuffles: [2, threads, 8]
  std::vector<unsigned> shuffles;          // done by each thread
  std::function<void()> body;
  ucontext_t main;
  unsigned current = 0, finished = 0, threads = 0;
};
inline Host host;

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "cuda_on_host: %s\n", message);
  std::_Exit(3);
}

// Leaves the current fiber for one that is ready.
inline void leave(ucontext_t* from) {
  if (host.ready.empty()) fail("threads wait at a barrier that others never reach");
  const size_t pick = host.shuffle ? host.random() % host.ready.size() : 0;
  host.current = host.ready[pick];
  host.ready.erase(host.ready.begin() + long(pick));
  threadIdx.x = host.current;
  swapcontext(from, &host.contexts[host.current]);
  // Whoever came back set the indices.
}

inline void wait(Gate& gate, size_t expected, const char* kind) {
  if (gate.waiting.empty()) gate.kind = kind;
  if (std::strcmp(gate.kind, kind) != 0) fail("threads wait at different barriers");
  const unsigned self = host.current;
  gate.waiting.push_back(self);
  if (gate.waiting.size() == expected) {
    host.ready.insert(host.ready.end(), gate.waiting.begin(), gate.waiting.end());
    gate.waiting.clear();
  }
  leave(&host.contexts[self]);
}

inline void wait_warp(const char* kind) {
  const unsigned warp = host.current / kWarp;
  wait(host.warps[warp], std::min(kWarp, host.threads - warp * kWarp), kind);
}

inline void fiber() {
  host.body();
  ++host.finished;
  if (host.finished == host.threads) {
    setcontext(&host.main);
  }
  leave(&host.contexts[host.current]);
}

inline void run_block(unsigned threads) {
  host.threads = threads;
  host.finished = 0;
  host.ready.clear();
  host.warps.assign((threads + kWarp - 1) / kWarp, Gate{});
  host.block = Gate{};
  host.slots.assign(2 * threads * 8, 0xff);
  host.shuffles.assign(threads, 0);
  host.contexts.resize(threads);
  while (host.stacks.size() < threads) host.stacks.emplace_back(new char[kStackBytes]);
  for (unsigned i = 0; i < threads; ++i) {
    getcontext(&host.contexts[i]);
    host.contexts[i].uc_stack.ss_sp = host.stacks[i].get();
    host.contexts[i].uc_stack.ss_size = kStackBytes;
    host.contexts[i].uc_link = nullptr;
    makecontext(&host.contexts[i], fiber, 0);
    host.ready.push_back(i);
  }
  leave(&host.main);
}

template <typename T>
T shuffle_xor(T value, unsigned lane_mask) {
  static_assert(sizeof(T) <= 8, "a slot has 8 bytes");
  const unsigned self = host.current, turn = host.shuffles[self]++ & 1;
  unsigned char* slots = host.slots.data() + size_t(turn) * host.threads * 8;
  std::memcpy(slots + self * 8, &value, sizeof(T));
  wait_warp("shuffle");
  T result;
  std::memcpy(&result, slots + (self ^ lane_mask) * 8, sizeof(T));
  return result;
}

}  // namespace cuda_on_host

inline void __syncwarp() { cuda_on_host::wait_warp("__syncwarp"); }
inline void __syncthreads() {
  cuda_on_host::wait(cuda_on_host::host.block, cuda_on_host::host.threads, "__syncthreads");
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  if (mask != 0xffffffffu) cuda_on_host::fail("only full warps shuffle");
  return cuda_on_host::shuffle_xor(value, unsigned(lane_mask));
}

template <typename T>
T atomicAdd(T* target, T value) {
  const T old = *target;
  *target += value;
  return old;
}
template <>
inline float4 atomicAdd(float4* target, float4 v) {
  const float4 old = *target;
  *target = {old.x + v.x, old.y + v.y, old.z + v.z, old.w + v.w};
  return old;
}
template <typename T>
T atomicMax(T* target, T value) {
  const T old = *target;
  *target = std::max(old, value);
  return old;
}
template <typename T>
T __ldcs(const T* source) {
  return *source;
}
inline long long __float2ll_rn(float v) { return std::llrint(v); }
inline long long __double2ll_rn(double v) { return std::llrint(v); }
inline float __ll2float_rn(long long v) { return float(v); }
inline double __ll2double_rn(long long v) { return double(v); }
template <typename To, typename From>
To cuda_on_host_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits are kept");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
inline int __float_as_int(float v) { return cuda_on_host_bits<int>(v); }
inline long long __double_as_longlong(double v) { return cuda_on_host_bits<long long>(v); }

enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor };
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = cuda_on_host::host.capability, cudaSuccess;
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  using cuda_on_host::host;
  std::vector<unsigned> blocks(config->gridDim.x);
  for (unsigned i = 0; i < blocks.size(); ++i) blocks[i] = i;
  if (host.shuffle) std::shuffle(blocks.begin(), blocks.end(), host.random);
  host.body = [&] { kernel(arguments...); };
  for (const unsigned block : blocks) {
    blockIdx.x = block;
    cuda_on_host::run_block(config->blockDim.x);
  }
  return cudaSuccess;
}
