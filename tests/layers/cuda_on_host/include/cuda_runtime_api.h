// SPDX-License-Identifier: Apache-2.0
// CUDA on the host, for tests: the types of the launch interface.
#pragma once
#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(threads)
#define __shared__ static  // one block runs at a time

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
using cudaStream_t = void*;
