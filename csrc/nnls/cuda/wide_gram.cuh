// Gram matrices of more than 32 variables made ready, by as many blocks as there is work for: their
// symmetric, scaled values, and the factor of a whole matrix, with which rows of more than 256
// variables begin.
#pragma once

#include <cstdint>

#include "free_factor.cuh"

namespace nnmf_cuda {

// The scales, a block a problem; then the values, a thread an entry.
template <class T>
__global__ void __launch_bounds__(kThreads) wide_scales_kernel(const T* gram, DeviceGrams grams) {
  const int64_t k = grams.k;
  double* const scale = grams.of(blockIdx.x) + 2 * k * k;
  gram += blockIdx.x * k * k;
  for_own(0, k,
          [&](int64_t j) { scale[j] = scale_of_diagonal(static_cast<double>(gram[j * k + j])); });
  if (threadIdx.x == 0) scale[2 * k] = 1;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    wide_values_kernel(const T* gram, int64_t size, DeviceGrams grams) {
  const int64_t k = grams.k, at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= size) return;
  const int64_t in = at % (k * k), i = in / k, j = in % k;
  const T* const own = gram + (at - in);
  double *const values = grams.of(at / (k * k)), *const scale = values + 2 * k * k;
  const double sum = static_cast<double>(own[i * k + j]) + static_cast<double>(own[j * k + i]);
  values[in] = sum / 2 * scale[i] * scale[j];
  if (!(sum * 0 == 0)) scale[2 * k] = 0;  // whoever does it writes the same
}

// A panel is a corner's columns. One after the other they are finished, and what they take from the
// columns behind them is subtracted there at once: by tiles, a block each.

// Which tile of the lower triangle a block has, of `side` tiles along each side.
struct TriangleTile {
  int64_t problem, row, column;

  __device__ explicit TriangleTile(int64_t side)
      : problem(blockIdx.x / (side * (side + 1) / 2)), row(0), column(0) {
    column = blockIdx.x % (side * (side + 1) / 2);
    while (column > row) column -= ++row;
  }
};

// From `first` on: the panel that ends there is subtracted, and the first corner is finished. The
// first panel of all begins from the values.
static __global__ void __launch_bounds__(kThreads)
    wide_subtract_kernel(DeviceGrams grams, int64_t first, int64_t side) {
  NNMF_CUDA_SHARED(double, entries, [kCorner * (kCorner + 1) / 2]);
  NNMF_CUDA_SHARED(double, inverse, [kCorner]);
  const TriangleTile at(side);
  const DeviceGram gram = grams[at.problem];
  if (!gram.finite) return;
  const int64_t k = grams.k, row = first + at.row * kCorner, column = first + at.column * kCorner;
  const Triangle t = triangle_of(gram, k);
  const double* const panel = t.column(first > 0 ? first - kCorner : 0);
  const WideSum<double> sum =
      wide_tile_product<double, double>(panel + column, 1, k, k - column, panel + row, 1, k,
                                        k - row, first > 0 ? int64_t{kCorner} : 0);
  for (int c = 0; c < kWideEach; ++c) {
    const int64_t j = column + sum.row() + c;
    for (int r = 0; r < kWideEach; ++r) {
      const int64_t i = row + sum.column() + r;
      if (j < k && i < k && i >= j)
        t.column(j)[i] = (first > 0 ? t.column(j)[i] : gram.values[j * k + i]) - sum.values[c][r];
    }
  }
  if (at.row > 0) return;
  __syncthreads();
  finish_corner(t, first, size_of_corner(first, k), dependent_pivot(k), {entries, inverse});
}

// Finishes a panel below its corner, kCorner rows a block. Four neighbouring lanes share a row:
// each has every fourth of its entries.
static __global__ void __launch_bounds__(kThreads)
    wide_panel_kernel(DeviceGrams grams, int64_t first, int64_t tiles) {
  constexpr int kLanes = kThreads / kCorner, kEach = kCorner / kLanes;
  NNMF_CUDA_SHARED(double, entries, [kCorner * (kCorner + 1) / 2]);
  const DeviceGram gram = grams[blockIdx.x / tiles];
  if (!gram.finite) return;
  const int64_t k = grams.k;
  const Triangle t = triangle_of(gram, k);
  for_corner(kCorner,
             [&](int i, int j) { row_of_corner(entries, i)[j] = t.column(first + j)[first + i]; });
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t row =
      first + (1 + blockIdx.x % tiles) * kCorner + static_cast<int>(threadIdx.x) / kLanes;
  double own[kEach];
#pragma unroll
  for (int e = 0; e < kEach; ++e) own[e] = row < k ? t.column(first + e * kLanes + lane)[row] : 0;
#pragma unroll
  for (int c = 0; c < kCorner; ++c) {
    const double* const above = row_of_corner(entries, c);
    double taken = 0;
#pragma unroll
    for (int e = 0; e <= c / kLanes; ++e)
      if (e * kLanes + lane < c) taken += own[e] * above[e * kLanes + lane];
    taken = sum_over_lanes(taken, kLanes);
    const double value = (own[c / kLanes] - taken) * t.inverse[first + c];
    if (c % kLanes == lane) own[c / kLanes] = value;
  }
#pragma unroll
  for (int e = 0; e < kEach; ++e)
    if (row < k) t.column(first + e * kLanes + lane)[row] = own[e];
}

inline void launch_wide_factors(const DeviceGrams& grams, int64_t batch, cudaStream_t stream) {
  for (int64_t first = 0; first < grams.k; first += kCorner) {
    const int64_t side = blocks_of(grams.k - first, kCorner);
    NNMF_CUDA_LAUNCH(wide_subtract_kernel, grid_of(batch * side * (side + 1) / 2), kThreads, 0,
                     stream, grams, first, side);
    if (side > 1)
      NNMF_CUDA_LAUNCH(wide_panel_kernel, grid_of(batch * (side - 1)), kThreads, 0, stream, grams,
                       first, side - 1);
  }
}

// Those of gram [batch, k, k], in memory [batch, doubles_of_prepared(k)]; with factors where rows
// are to begin with all variables free.
template <class T>
DeviceGrams launch_wide_grams(const T* gram, int64_t batch, int64_t k, bool with_factors,
                              double* memory, cudaStream_t stream) {
  const DeviceGrams grams{memory, k};
  const int64_t size = batch * k * k;
  NNMF_CUDA_LAUNCH((wide_scales_kernel<T>), grid_of(batch), kThreads, 0, stream, gram, grams);
  NNMF_CUDA_LAUNCH((wide_values_kernel<T>), grid_of((size + kThreads - 1) / kThreads), kThreads, 0,
                   stream, gram, size, grams);
  if (with_factors) launch_wide_factors(grams, batch, stream);
  return grams;
}

}  // namespace nnmf_cuda
