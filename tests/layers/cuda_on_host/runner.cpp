// SPDX-License-Identifier: Apache-2.0
// Runs the CUDA kernel on the host: one problem from standard input, its results to standard output.
//
// Input: 12 int64 (pass 0 forward, 1 backward, 2 deterministic backward; value type; B, S, H, D, Q,
// L, T; seed, 0 for the threads in their order; compute capability; misalignment of value in
// elements), num_points, spatial_shapes, level_start_index, value, locations, weights and, for the
// backward passes, grad_output. Each array has its own allocation of the exact size.
#include <cuda_runtime.h>

#include "cuda_kernel.h"

using namespace vastdet::cuda;

struct Array {
  std::unique_ptr<char[]> memory;
  size_t bytes, offset;
  Array(size_t bytes, size_t offset = 0)
      : memory(new char[bytes + offset]()), bytes(bytes), offset(offset) {}
  char* data() { return memory.get() + offset; }
  Array& read() {
    if (std::fread(data(), 1, bytes, stdin) != bytes) cuda_on_host::fail("the input is too short");
    return *this;
  }
  void write() { std::fwrite(data(), 1, bytes, stdout); }
};

int main() {
  int64_t h[12];
  if (std::fread(h, 8, 12, stdin) != 12) cuda_on_host::fail("the input has no header");
  const int64_t pass = h[0], B = h[2], S = h[3], H = h[4], D = h[5], Q = h[6], L = h[7], T = h[8];
  const ValueType type = ValueType(h[1]);
  const size_t v = type == ValueType::kFloat64 ? 8 : type == ValueType::kFloat32 ? 4 : 2;
  const size_t a = std::max<size_t>(v, 4);
  cuda_on_host::host.random.seed(uint64_t(h[9]));
  cuda_on_host::host.shuffle = h[9] != 0;
  cuda_on_host::host.capability = int(h[10]);
  const size_t values = size_t(B * S * H * D), samples = size_t(B * Q * H * T);
  const size_t outputs = size_t(B * Q * H * D);
  Array points(L * 8), shapes(L * 16), starts(L * 8);
  points.read(), shapes.read(), starts.read();
  Array value(values * v, size_t(h[11]) * v), locations(2 * samples * a), weights(samples * a);
  value.read(), locations.read(), weights.read();
  const auto ints = [](Array& array) { return reinterpret_cast<int64_t*>(array.data()); };
  const Inputs in = {type, value.data(), ints(shapes), ints(starts), locations.data(),
                     weights.data(), ints(points), B, S, H, D, Q, int(L)};
  Array output(outputs * v);
  cudaError_t error;
  if (pass == 0) {
    error = ms_deform_attn_forward(in, output.data(), nullptr);
    output.write();
  } else {
    output.read();
    Array grad_value(values * (pass == 1 ? a : v)), grad_locations(2 * samples * a);
    Array grad_weights(samples * a), bounds(size_t(B * H) * a);
    Array words(values * 8 * size_t(fixed_point_words(type)));
    if (pass == 1) {
      error = ms_deform_attn_backward(in, output.data(), grad_value.data(), grad_locations.data(),
                                      grad_weights.data(), nullptr);
    } else {
      const FixedPointScratch scratch = {
          reinterpret_cast<uint64_t*>(words.data()), bounds.data()};
      error = ms_deform_attn_backward_deterministic(
          in, output.data(), scratch, grad_value.data(), grad_locations.data(),
          grad_weights.data(), nullptr);
    }
    grad_value.write(), grad_locations.write(), grad_weights.write();
  }
  return error == cudaSuccess ? 0 : 4;
}
