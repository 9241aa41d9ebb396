// Non-negative least squares and its gradient on the device: the launches. Free of torch, without
// host synchronisation. What a row gets does not depend on the other rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "block_team.cuh"
#include "lane_team.cuh"
#include "one_row.cuh"
#include "row_by_row.cuh"
#include "wide_gram.cuh"

namespace nnmf_cuda {

constexpr int64_t kNnlsBlocks = 4096;  // about: several for each multiprocessor, of similar length

// Blocks that share a problem, when each solves `teams` rows at a time.
inline int64_t parts_of_problem(const RowsShape& shape, int64_t teams) {
  return std::min((shape.n + teams - 1) / teams, std::max<int64_t>(1, kNnlsBlocks / shape.batch));
}

// A number of lanes as a type.
template <int kLanes>
struct LaneCount {
  static constexpr int value = kLanes;
};

// Calls f(LaneCount<>) with as many as k variables take.
template <class F>
void dispatch_lanes(int64_t k, const F& f) {
  if (k <= 8)
    f(LaneCount<8>{});
  else if (k <= 16)
    f(LaneCount<16>{});
  else
    f(LaneCount<32>{});
}

// Calls launch_lanes(LaneCount<>, blocks, parts) or launch_blocks(blocks, parts): as k asks for.
template <class LaunchLanes, class LaunchBlocks>
void dispatch_teams(const RowsShape& shape, const LaunchLanes& launch_lanes,
                    const LaunchBlocks& launch_blocks) {
  if (shape.k <= kWarp) {
    dispatch_lanes(shape.k, [&]<int kLanes>(LaneCount<kLanes> lanes) {
      const int64_t parts = parts_of_problem(shape, LaneTeam<kLanes>::kTeams);
      launch_lanes(lanes, shape.batch * parts, parts);
    });
  } else {
    const int64_t parts = parts_of_problem(shape, 1), blocks = shape.batch * parts;
    // As many as there are matrices for, where those are needed.
    launch_blocks(shape.k <= kMostShared ? blocks : std::min(blocks, row_blocks(shape)), parts);
  }
}

// rows.h of the rows that are marked.
template <class From, class To>
void launch_lawson_hanson(const NnlsRows<From, To>& rows, const DeviceGrams& grams,
                          double* matrices, cudaStream_t stream) {
  const RowsShape& s = rows.shape;
  NNMF_CUDA_LAUNCH((lawson_hanson_kernel<From, To>), grid_of(row_blocks(s)), threads_up_to(s.k - 1),
                   BlockLawsonHanson::bytes(s.k), stream, rows, grams, matrices);
}

// rows.u of the rows that are marked.
template <class T>
void launch_minimum_norm(const BackwardRows<T>& rows, const DeviceGrams& grams, double* matrices,
                         cudaStream_t stream) {
  const RowsShape& s = rows.shape;
  NNMF_CUDA_LAUNCH(minimum_norm_kernel<T>, grid_of(row_blocks(s)), threads_up_to(s.k - 1),
                   minimum_norm_bytes(s.k), stream, rows, grams, matrices);
}

constexpr int64_t kMostOfTeam = 256;  // variables of a block whose threads have one each

// Those of gram [batch, k, k], in memory [batch, doubles_of_prepared(k)]; `cold` rows begin with
// all variables free.
template <class G>
DeviceGrams launch_grams(const G* gram, int64_t batch, int64_t k, bool cold, double* memory,
                         cudaStream_t stream) {
  if (k > kWarp)
    return launch_wide_grams(gram, batch, k, /*with_factors=*/cold && k > kMostOfTeam, memory,
                             stream);
  const DeviceGrams grams{memory, k};
  NNMF_CUDA_LAUNCH(prepare_gram_kernel<G>, grid_of(batch), kPreparingThreads, 0, stream, gram,
                   grams);
  return grams;
}

// The same as launch_rows for more of them.
template <class From, class To, class Memory>
void launch_one_rows(const DeviceGrams& grams, const From* cross, To* h, const ActiveSets& sets,
                     const RowsShape& shape, Memory& memory, cudaStream_t stream) {
  const int64_t blocks = wide_row_blocks(shape, 1);
  double* of_rows =
      memory.template get<double>(blocks * (shape.k * shape.k + vectors_of_row(shape.k)));
  const NnlsRows<From, To> rows{cross, h, nullptr, sets, shape};
  NNMF_CUDA_LAUNCH((one_row_kernel<From, To>), grid_of(blocks), kThreads, 0, stream, rows, grams,
                   of_rows);
}

// The same as launch_nnls_backward, with matrices that are ready.
template <class T, class Memory>
void launch_one_rows_backward(const DeviceGrams& grams, const T* h, const T* grad, double* u,
                              const RowsShape& shape, Memory& memory, cudaStream_t stream) {
  const int64_t blocks = wide_row_blocks(shape, 2);
  double* of_rows =
      memory.template get<double>(blocks * (2 * shape.k * shape.k + vectors_of_row(shape.k)));
  const BackwardRows<T> rows{h, grad, u, memory.template get<uint8_t>(shape.batch * shape.n),
                             shape};
  NNMF_CUDA_LAUNCH(one_row_backward_kernel<T>, grid_of(blocks), kThreads, 0, stream, rows, grams,
                   of_rows);
}

// h [batch, n, k] = the minimisers for cross [batch, n, k] and Gram matrices that are ready, NaN
// where a row or its matrix is not finite. Nothing is empty. Memory has get<T>(size), as
// DeviceMemory.
template <class From, class To, class Memory>
void launch_rows(const DeviceGrams& grams, const From* cross, To* h, const ActiveSets& sets,
                 const RowsShape& shape, Memory& memory, cudaStream_t stream) {
  if (shape.k > kMostOfTeam) return launch_one_rows(grams, cross, h, sets, shape, memory, stream);
  double* matrices = memory.template get<double>(row_blocks(shape) * row_matrices(shape.k));
  const NnlsRows<From, To> rows{cross, h, memory.template get<uint8_t>(shape.batch * shape.n), sets,
                                shape};
  dispatch_teams(
      shape,
      [&]<int kLanes>(LaneCount<kLanes>, int64_t blocks, int64_t parts) {
        NNMF_CUDA_LAUNCH((nnls_lanes_kernel<kLanes, From, To>), grid_of(blocks), kLaneThreads, 0,
                         stream, rows, grams, parts);
      },
      [&](int64_t blocks, int64_t parts) {
        NNMF_CUDA_LAUNCH((nnls_block_kernel<From, To>), grid_of(blocks),
                         block_team_threads(shape.k), BlockMemory::bytes(shape.k), stream, rows,
                         grams, parts, matrices);
      });
  launch_lawson_hanson(rows, grams, matrices, stream);
}

// The same for gram [batch, k, k].
template <class G, class From, class To, class Memory>
void launch_nnls(const G* gram, const From* cross, To* h, const ActiveSets& sets,
                 const RowsShape& shape, Memory& memory, cudaStream_t stream) {
  double* const room = memory.template get<double>(shape.batch * doubles_of_prepared(shape.k));
  const bool cold = sets.start == nullptr;
  launch_rows(launch_grams(gram, shape.batch, shape.k, cold, room, stream), cross, h, sets, shape,
              memory, stream);
}

// u [batch, n, k] = the gradient to cross, from the minimisers h and the gradient to them.
template <class G, class T, class Memory>
void launch_nnls_backward(const G* gram, const T* h, const T* grad, double* u,
                          const RowsShape& shape, Memory& memory, cudaStream_t stream) {
  double* const room = memory.template get<double>(shape.batch * doubles_of_prepared(shape.k));
  const DeviceGrams grams = launch_grams(gram, shape.batch, shape.k, /*cold=*/false, room, stream);
  if (shape.k > kMostOfTeam)
    return launch_one_rows_backward(grams, h, grad, u, shape, memory, stream);
  double* matrices = memory.template get<double>(row_blocks(shape) * row_matrices(shape.k));
  const BackwardRows<T> rows{h, grad, u, memory.template get<uint8_t>(shape.batch * shape.n),
                             shape};
  dispatch_teams(
      shape,
      [&]<int kLanes>(LaneCount<kLanes>, int64_t blocks, int64_t parts) {
        NNMF_CUDA_LAUNCH((nnls_backward_lanes_kernel<kLanes, T>), grid_of(blocks), kLaneThreads, 0,
                         stream, rows, grams, parts);
      },
      [&](int64_t blocks, int64_t parts) {
        NNMF_CUDA_LAUNCH(nnls_backward_block_kernel<T>, grid_of(blocks),
                         block_team_threads(shape.k), BlockMemory::bytes(shape.k), stream, rows,
                         grams, parts, matrices);
      });
  launch_minimum_norm(rows, grams, matrices, stream);
}

}  // namespace nnmf_cuda
