// What each warp collective gives, and what ends a run because no kernel may do it.
#include "call.h"
#include "nnmf/cuda/warp_tile.cuh"

using namespace nnmf_cuda;

__global__ void shuffles_kernel(int distance, int width, int* xor_, int* down, int* up, int* from) {
  const int i = static_cast<int>(threadIdx.x);
  xor_[i] = __shfl_xor_sync(~0u, i, distance, width);
  down[i] = __shfl_down_sync(~0u, i, distance, width);
  up[i] = __shfl_up_sync(~0u, i, distance, width);
  from[i] = __shfl_sync(~0u, i, distance, width);
}

CUDA_ON_CPU_CALL(shuffles) {
  NNMF_CUDA_LAUNCH(shuffles_kernel, 1, 64, 0, nullptr, static_cast<int>(call.integer("distance")),
                   static_cast<int>(call.integer("width")), call.result<int>("xor", {64}),
                   call.result<int>("down", {64}), call.result<int>("up", {64}),
                   call.result<int>("from", {64}));
}

// Odd lanes vote apart from even ones.
__global__ void votes_kernel(const int* votes, int* ballots, int* any, int* all) {
  const int lane = static_cast<int>(threadIdx.x), vote = votes[lane];
  const unsigned mask = lane % 2 == 0 ? 0x55555555u : 0xaaaaaaaau;
  ballots[lane] = static_cast<int>(__ballot_sync(mask, vote));
  any[lane] = __any_sync(mask, vote);
  all[lane] = __all_sync(mask, vote);
}

CUDA_ON_CPU_CALL(votes) {
  NNMF_CUDA_LAUNCH(votes_kernel, 1, 32, 0, nullptr, call.tensor<int>("votes"),
                   call.result<int>("ballots", {32}), call.result<int>("any", {32}),
                   call.result<int>("all", {32}));
}

// `misuse` chooses what is done wrong. `x` holds 64 floats, dynamic shared memory as many.
__global__ void misuse_kernel(int misuse, float* x) {
  NNMF_CUDA_DYNAMIC_SHARED(float, shared);
  NNMF_CUDA_SHARED(float, fixed, [64]);
  const int i = static_cast<int>(threadIdx.x), lane = i % 32;
  float own[4] = {};
  const volatile int beyond = 4;
  switch (misuse) {
    case 0:  // half of the block
      if (i < 32) __syncthreads();
      break;
    case 1:  // half of the warp
      if (lane < 16) __syncwarp();
      break;
    case 2:  // some return before
      if (i == 5) return;
      __syncthreads();
      break;
    case 3:  // a mask without the caller
      __syncwarp(lane < 16 ? 0xffff0000u : 0x0000ffffu);
      break;
    case 4:  // a lane outside the mask
      x[i] = __shfl_xor_sync(0xffu << (lane & ~7), x[i], 8);
      break;
    case 5:  // two collectives at once
      if (lane < 16)
        __syncwarp();
      else
        x[i] = __shfl_sync(~0u, x[i], 0);
      break;
    case 6:  // alignment of the source
      __pipeline_memcpy_async(shared + 4 * i % 64, x + 1, 16);
      break;
    case 7:  // alignment of the destination
      __pipeline_memcpy_async(shared + 1, x, 8);
      break;
    case 8:  // size
      __pipeline_memcpy_async(shared, x, 12);
      break;
    case 9:  // zeros
      __pipeline_memcpy_async(shared, x, 4, 8);
      break;
    case 10:  // destination
      __pipeline_memcpy_async(x, x + 4, 4);
      break;
    case 11:  // nobody waits
      __pipeline_memcpy_async(shared + i, x + i, 4);
      __pipeline_commit();
      break;
    case 12:  // behind the data
      x[i + 1] = 0;
      break;
    case 13:  // before them
      x[0] = x[i - 1];
      break;
    case 14:  // behind dynamic shared memory
      shared[i + 1] = 0;
      break;
    case 15:  // behind an array in shared memory
      fixed[i + 1] = 0;
      break;
    case 16:  // behind an array of the thread
      own[beyond] = x[i];
      __syncthreads();
      x[i] = own[beyond - 1];
      break;
    case 17:  // the source of a copy
      __pipeline_memcpy_async(shared + i, x + i + 1, 4);
      __pipeline_commit();
      __pipeline_wait_prior(0);
      break;
    case 18:  // a group that is not committed is not waited for
      __pipeline_memcpy_async(shared + i, x + i, 4);
      __pipeline_wait_prior(0);
      x[i] = shared[i];
      __pipeline_commit();
      __pipeline_wait_prior(0);
      break;
    case 19:  // lanes that the block does not have
      __syncwarp();
      break;
  }
}

CUDA_ON_CPU_CALL(misuse) {
  const int misuse = static_cast<int>(call.integer("misuse"));
  NNMF_CUDA_LAUNCH(misuse_kernel, 1, misuse == 19 ? 48 : 64, 64 * sizeof(float), nullptr, misuse,
                   call.tensor<float>("x"));
  call.give("x");
}

CUDA_ON_CPU_CALL(place) {
  const auto address = reinterpret_cast<uintptr_t>(call.tensor<int>("x"));
  *call.result<int64_t>("place", {}) = static_cast<int64_t>(address % 16);
  call.give("x");
}

CUDA_ON_CPU_CALL(nothing) {
  call.result<float>("floats", {3});
  call.result<double>("doubles", {3});
  call.result<int>("integers", {2});
}
