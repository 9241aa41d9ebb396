// Threads that solve one row together, a variable each: some lanes of a warp, or a block.
//
// All threads of a warp, or of the block, call a collective together, also where their team has
// nothing to do; so every mask is the full one. Sums have a fixed order and are the same bits in
// every thread.
#pragma once

#include <cstdint>

#include "../common/launch.h"
#include "../common/warp.h"

namespace nnmf_cuda {

// Who of a team has voted yes.
struct Tally {
  int count;
  int first, last;  // of those; meaningless where there are none
  int before;       // how many come before this thread
};

// The sum over `lanes` neighbours, a power of two.
__device__ inline double sum_over_lanes(double value, int lanes) {
  for (int apart = 1; apart < lanes; apart *= 2) value += __shfl_xor_sync(kAllLanes, value, apart);
  return value;
}

__device__ inline Tally tally_of(unsigned votes, int thread) {
  return {__popc(votes), __ffs(static_cast<int>(votes)) - 1, 31 - __clz(static_cast<int>(votes)),
          __popc(votes & ((1u << thread) - 1))};
}

// The whole block.
__device__ inline Tally tally_over_block(bool vote) {
  NNMF_CUDA_SHARED(unsigned, votes, [kWarp]);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned own = __ballot_sync(kAllLanes, vote);
  if (lane == 0) votes[warp] = own;
  __syncthreads();
  Tally all{0, -1, -1, 0};
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; ++w) {
    if (votes[w] == 0) continue;
    const Tally part = tally_of(votes[w], lane);
    if (all.count == 0) all.first = w * kWarp + part.first;
    all.last = w * kWarp + part.last;
    if (w <= warp) all.before += w < warp ? part.count : part.before;
    all.count += part.count;
  }
  __syncthreads();
  return all;
}

__device__ inline double sum_over_block(double value) {
  NNMF_CUDA_SHARED(double, sums, [kWarp]);
  value = sum_over_lanes(value, kWarp);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = value;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; ++w) sum += sums[w];
  __syncthreads();
  return sum;
}

// NaN is no largest value.
__device__ inline double largest_of_block(double value) {
  NNMF_CUDA_SHARED(double, values, [kWarp]);
  for (int apart = 1; apart < kWarp; apart *= 2)
    value = fmax(value, __shfl_xor_sync(kAllLanes, value, apart));
  if (threadIdx.x % kWarp == 0) values[threadIdx.x / kWarp] = value;
  __syncthreads();
  double largest = values[0];
  for (int w = 1; w < static_cast<int>(blockDim.x) / kWarp; ++w) largest = fmax(largest, values[w]);
  __syncthreads();
  return largest;
}

// Threads for teams of a block whose last thread is `last`: whole warps.
inline unsigned threads_up_to(int64_t last) {
  return static_cast<unsigned>((last / kWarp + 1) * kWarp);
}

}  // namespace nnmf_cuda
