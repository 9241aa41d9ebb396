// Non-negative least squares and its gradient on the device: the launches. Free of torch, without
// host synchronisation; what each row gets does not depend on the other rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "block_team.cuh"
#include "lane_team.cuh"
#include "lawson_hanson.cuh"
#include "minimum_norm.cuh"

namespace nnmf_cuda {

constexpr int64_t kNnlsBlocks = 4096;  // about: several for each multiprocessor, of similar length

// Blocks that share a problem of n rows, when each solves `teams` rows at a time.
inline int64_t parts_of_problem(int64_t batch, int64_t n, int64_t teams) {
  return std::min((n + teams - 1) / teams, std::max<int64_t>(1, kNnlsBlocks / batch));
}

// A number of lanes as a type.
template <int kLanes>
struct Lanes {
  static constexpr int value = kLanes;
};

// Blocks of block_team.cuh: as many as there are matrices for, where those are needed.
inline int64_t team_blocks(int64_t batch, int64_t n, int64_t parts, int64_t k) {
  const int64_t blocks = batch * parts;
  return k <= kMostShared ? blocks : std::min(blocks, row_blocks(batch * n, k));
}

// Calls f(Lanes<>) with as many as k variables take.
template <class F>
void dispatch_lanes(int64_t k, const F& f) {
  if (k <= 8)
    f(Lanes<8>{});
  else if (k <= 16)
    f(Lanes<16>{});
  else
    f(Lanes<32>{});
}

// rows.h of the rows that are marked.
template <class From, class To>
void launch_lawson_hanson(const NnlsRows<From, To>& rows, const DeviceGrams& grams,
                          double* matrices, cudaStream_t stream) {
  NNMF_CUDA_LAUNCH((lawson_hanson_kernel<From, To>),
                   grid_of(row_blocks(rows.batch * rows.n, rows.k)), threads_up_to(rows.k - 1),
                   BlockLawsonHanson::bytes(rows.k), stream, rows, grams, matrices);
}

// rows.u of the rows that are marked.
template <class T>
void launch_minimum_norm(const BackwardRows<T>& rows, const DeviceGrams& grams, double* matrices,
                         cudaStream_t stream) {
  NNMF_CUDA_LAUNCH(minimum_norm_kernel<T>, grid_of(row_blocks(rows.batch * rows.n, rows.k)),
                   threads_up_to(rows.k - 1), minimum_norm_bytes(rows.k), stream, rows, grams,
                   matrices);
}

// rows.h = the minimisers, NaN where a row or its Gram matrix is not finite. Nothing is empty;
// `grams` is ready, and matrices [row_scratch_doubles(batch * n, k)] scratch memory.
template <class From, class To>
void launch_nnls(const NnlsRows<From, To>& rows, const DeviceGrams& grams, double* matrices,
                 cudaStream_t stream) {
  const int64_t k = rows.k;
  if (k <= kLanesOfWarp) {
    dispatch_lanes(k, [&]<int kLanes>(Lanes<kLanes>) {
      const int64_t parts = parts_of_problem(rows.batch, rows.n, LaneTeam<kLanes>::kTeams);
      NNMF_CUDA_LAUNCH((nnls_lanes_kernel<kLanes, From, To>), grid_of(rows.batch * parts),
                       kLaneThreads, 0, stream, rows, grams, parts);
    });
  } else {
    const int64_t parts = parts_of_problem(rows.batch, rows.n, 1);
    NNMF_CUDA_LAUNCH((nnls_block_kernel<From, To>),
                     grid_of(team_blocks(rows.batch, rows.n, parts, k)), block_team_threads(k),
                     BlockMemory::bytes(k), stream, rows, grams, parts, matrices);
  }
  launch_lawson_hanson(rows, grams, matrices, stream);
}

// rows.u = the gradient to cross.
template <class T>
void launch_nnls_backward(const BackwardRows<T>& rows, const DeviceGrams& grams, double* matrices,
                          cudaStream_t stream) {
  const int64_t k = rows.k;
  if (k <= kLanesOfWarp) {
    dispatch_lanes(k, [&]<int kLanes>(Lanes<kLanes>) {
      const int64_t parts = parts_of_problem(rows.batch, rows.n, LaneTeam<kLanes>::kTeams);
      NNMF_CUDA_LAUNCH((nnls_backward_lanes_kernel<kLanes, T>), grid_of(rows.batch * parts),
                       kLaneThreads, 0, stream, rows, grams, parts);
    });
  } else {
    const int64_t parts = parts_of_problem(rows.batch, rows.n, 1);
    NNMF_CUDA_LAUNCH(nnls_backward_block_kernel<T>,
                     grid_of(team_blocks(rows.batch, rows.n, parts, k)), block_team_threads(k),
                     BlockMemory::bytes(k), stream, rows, grams, parts, matrices);
  }
  launch_minimum_norm(rows, grams, matrices, stream);
}

}  // namespace nnmf_cuda
