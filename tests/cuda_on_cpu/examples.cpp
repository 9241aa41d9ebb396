// Small kernels in which every barrier, wait, mask and bound is needed. test_harness.py takes them
// away one by one: each time the harness must notice.
#include "call.h"
#include "nnmf/cuda/warp_tile.cuh"

using namespace nnmf_cuda;

// Sums over the rows of x [n, f]; a block of 64 threads a row.
__global__ void sum_rows_kernel(const float* x, float* sums, int64_t f) {
  NNMF_CUDA_SHARED(float, values, [64]);
  const int thread = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int64_t i = thread; i < f; i += 64) sum += x[blockIdx.x * f + i];
  values[thread] = sum;
  __syncthreads();  // all values are there
  for (int width = 32; width > 0; width /= 2) {
    if (thread < width) values[thread] += values[thread + width];
    __syncthreads();  // all sums are there
  }
  if (thread == 0) sums[blockIdx.x] = values[0];
}

CUDA_ON_CPU_CALL(sum_rows) {
  const int64_t n = call.size("x", 0), f = call.size("x", 1);
  NNMF_CUDA_LAUNCH(sum_rows_kernel, grid_of(n), 64, 0, nullptr, call.tensor<float>("x"),
                   call.result<float>("sums", {n}), f);
}

constexpr int kSide = 32, kPitch = kSide + 1, kTile = kSide * kPitch;

__device__ void fetch_tile(const float* x, float* tile, int64_t row, int64_t column, int64_t n,
                           int64_t f) {
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < kSide; ++i) {
    const bool inside = row + i < n && column + lane < f;
    copy_async<4>(tile + i * kPitch + lane, inside ? x + (row + i) * f + column + lane : x,
                  inside ? 4 : 0);
  }
  commit_copies();
}

// x [n, f] as [f, n]: a warp takes 32 rows, tile after tile, and fetches one while it writes the
// other.
__global__ void transpose_kernel(const float* x, float* y, int64_t n, int64_t f) {
  NNMF_CUDA_DYNAMIC_SHARED(float, tiles);
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kSide;
  fetch_tile(x, tiles, row, 0, n, f);
  for (int64_t column = 0; column < f; column += kSide) {
    const int64_t t = column / kSide;
    if (column + kSide < f)
      fetch_tile(x, tiles + (t + 1) % 2 * kTile, row, column + kSide, n, f);
    else
      commit_copies();  // an empty group: the wait is for the one before the last each time
    wait_for_copies<1>();
    __syncwarp();  // what the other lanes have copied is there
    const float* tile = tiles + t % 2 * kTile;
    for (int i = 0; i < kSide && column + i < f; ++i)
      if (row + lane < n) y[(column + i) * n + row + lane] = tile[lane * kPitch + i];
    __syncwarp();  // the tile is no longer needed
  }
}

CUDA_ON_CPU_CALL(transpose) {
  const int64_t n = call.size("x", 0), f = call.size("x", 1);
  const size_t shared = (2 * kTile - 1) * sizeof(float);  // nobody touches the last pad
  NNMF_CUDA_LAUNCH(transpose_kernel, grid_of((n + kSide - 1) / kSide), kSide, shared, nullptr,
                   call.tensor<float>("x"), call.result<float>("y", {f, n}), n, f);
}

// Adds up the first steps[p] rows of x [p, :, 8] until the sum of one is negative; eight lanes a
// problem, four problems a warp, which need not take equally long.
__global__ void sum_steps_kernel(const float* x, const int* steps, float* sums, int problems,
                                 int most) {
  const int lane = static_cast<int>(threadIdx.x), problem = blockIdx.x * 4 + lane / 8;
  if (problem >= problems) return;
  const unsigned mask = 0xffu << (lane & ~7);
  float sum = 0;
  for (int step = 0; step < steps[problem]; ++step) {
    float value = x[(problem * most + step) * 8 + lane % 8];
    for (int distance = 4; distance > 0; distance /= 2)
      value += __shfl_xor_sync(mask, value, distance, 8);
    if (__any_sync(mask, value < 0)) break;
    sum += value;
  }
  if (lane % 8 == 0) sums[problem] = sum;
}

CUDA_ON_CPU_CALL(sum_steps) {
  const int64_t problems = call.size("x", 0), most = call.size("x", 1);
  NNMF_CUDA_LAUNCH(sum_steps_kernel, grid_of((problems + 3) / 4), 32, 0, nullptr,
                   call.tensor<float>("x"), call.tensor<int>("steps"),
                   call.result<float>("sums", {problems}), static_cast<int>(problems),
                   static_cast<int>(most));
}

// Adds how often each value 0..15 occurs in x to `counts`.
__global__ void histogram_kernel(const uint8_t* x, int* counts, int64_t n) {
  NNMF_CUDA_SHARED(int, own, [16]);
  if (threadIdx.x < 16) own[threadIdx.x] = 0;
  __syncthreads();  // all counts are zero
  for (int64_t i = blockIdx.x * 64 + threadIdx.x; i < n; i += gridDim.x * 64)
    atomicAdd(&own[x[i]], 1);
  __syncthreads();  // everything is counted
  if (threadIdx.x < 16) atomicAdd(&counts[threadIdx.x], own[threadIdx.x]);
}

CUDA_ON_CPU_CALL(histogram) {
  NNMF_CUDA_LAUNCH(histogram_kernel, grid_of(3), 64, 0, nullptr, call.tensor<uint8_t>("x"),
                   call.tensor<int>("counts"), call.size("x", 0));
  call.give("counts");
}

// Kernels that overlap: of what they read before they wait, the one before has written nothing.
__global__ void add_kernel(const float* x, const float* c, float* y, int64_t n) {
  const int64_t i = blockIdx.x * 32 + threadIdx.x;
  const float own = i < n ? c[i] : 0;
  wait_for_kernel_before();  // y is no longer read
  if (i < n) y[i] = x[i] + own;
}

__global__ void reverse_kernel(const float* from, float* to, int64_t n) {
  const int64_t i = blockIdx.x * 32 + threadIdx.x;
  wait_for_kernel_before();  // from is there
  const float value = i < n ? from[n - 1 - i] : 0;
  if (i < n) to[i] = value;
}

CUDA_ON_CPU_CALL(overlap) {
  const int64_t n = call.size("x", 0);
  const float *x = call.tensor<float>("x"), *c = call.tensor<float>("c");
  float *y = call.scratch<float>(n), *z = call.result<float>("z", {n});
  for (int turn = 0; turn < 2; ++turn) {
    NNMF_CUDA_LAUNCH_NEXT(add_kernel, grid_of((n + 31) / 32), 32, 0, nullptr, turn == 0 ? x : z, c,
                          y, n);
    NNMF_CUDA_LAUNCH_NEXT(reverse_kernel, grid_of((n + 31) / 32), 32, 0, nullptr, y, z, n);
  }
}
