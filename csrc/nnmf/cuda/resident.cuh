// All iterations on small problems in one launch, for Kullback-Leibler in float32: a block a
// problem, which keeps X and both factors in shared memory. By tiles (iterations.cuh) such a
// problem is a few warps' work, and each of the four kernels of an iteration takes longer to start
// than to run.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../common/cuda/settings.h"
#include "warp_tile.cuh"

namespace nnmf_cuda {

constexpr int kResidentThreads = 128, kResidentWarps = kResidentThreads / kWarp;
constexpr int kResidentRows = 2;  // rows (or columns) of X that a lane owns at one time

// How a problem lies in shared memory, in floats. Lanes read rows of the factors and entries of X
// side by side and below each other: the pitches are odd multiples of four banks.
struct ResidentLayout {
  int n, f;              // rows and columns of X
  int x_pitch;           // from one row of X to the next
  int factor_pitch;      // from one row of W, or column of H, to the next
  int W, H, size;        // where they begin, behind X, and where H ends
  int W_parts, H_parts;  // lanes that share a row of W, and a column of H
};

// Lanes that share a row when as many as possible have work; no more than can share what is to be
// updated afterwards.
inline int resident_parts(int rows, int components) {
  const auto lines = static_cast<int>(blocks_of(rows, kResidentRows));
  int parts = 1;
  while (parts * 2 <= std::min(components, kWarp) && lines * parts * 2 <= kResidentThreads)
    parts *= 2;
  return parts;
}

template <int components>
ResidentLayout resident_layout(const Shape& shape) {
  ResidentLayout at{};
  at.n = static_cast<int>(shape.n_samples);
  at.f = static_cast<int>(shape.n_features);
  at.x_pitch = (at.f + 3) / 4 * 4 | 4;
  at.factor_pitch = components + 4;
  at.W = at.n * at.x_pitch;
  at.H = at.W + at.n * at.factor_pitch;
  at.size = at.H + at.f * at.factor_pitch;
  at.W_parts = resident_parts(at.n, components);
  at.H_parts = resident_parts(at.f, components);
  return at;
}

// Whether problems are small enough. Counted in cycles of an H200: a block that has a
// multiprocessor to itself takes 0.6 for an entry and a half-step (43 instructions of 128 lanes,
// which wait for their own results half of the time), and 2000 for an iteration's barriers and
// updates. By tiles an iteration is four launches of 1.3 us at least, two of which run 1.5 us
// however little there is to do: 16,300. One problem is then as fast either way at 12,000 entries.
// More of them than multiprocessors share those, at 0.34 an entry, and still save the launches; but
// with up to eight components, of which tiles multiply eight and this sixteen, not for ever: the
// model of bench/ has 64 us an iteration for 4096 problems of 64 x 64, and 43 by tiles. At least
// two blocks must fit into a multiprocessor, so that one works where the other waits.
inline bool stays_resident(const Shape& shape, const DeviceSize& device) {
  static const bool wanted = setting("NNMF_CUDA_RESIDENT", 1, {0, 1}) == 1;
  constexpr int64_t kEntries = 12288, kFew = 8;  // of a multiprocessor
  const int64_t n = shape.n_samples, f = shape.n_features, k = shape.n_components;
  if (!wanted || k > 32 || std::max(n, f) > kEntries || n * f > kEntries) return false;
  if (k <= 8 && shape.batch > kFew * device.multiprocessors) return false;
  const ResidentLayout at = k <= 16 ? resident_layout<16>(shape) : resident_layout<32>(shape);
  return at.size * int64_t{sizeof(float)} + kReservedShared <= device.shared_bytes / 2;
}

template <class Data>
struct ResidentTask {
  FactorParams<float, Data> problem;
  ResidentLayout at;
  Update updates[2];  // of W and of H
  int64_t n_iter;
  bool updates_H;
  float* W;  // as the problem's
  float* H;
};

// One factor's half-step: which X looks transposed to the other.
struct ResidentSide {
  const float* x;
  float* own;          // [rows, pitch]
  const float* other;  // [depth, pitch]
  int rows, depth, pitch;
  int row_step, deep_step;  // of x
  int parts;
  int n_components;
};

// Sums of the other factor's components, in as many parts as there are warps.
template <int components>
__device__ __forceinline__ void sum_components(const ResidentSide& side,
                                               double (&sums)[kResidentWarps][components]) {
  const int thread = static_cast<int>(threadIdx.x), component = thread % components;
  double sum = 0;
#pragma unroll 4
  for (int d = thread / components; d < side.depth; d += kResidentThreads / components)
    sum += static_cast<double>(side.other[d * side.pitch + component]);
  for (int distance = components; distance < kWarp; distance *= 2)
    sum += __shfl_xor_sync(kAllLanes, sum, distance);
  if (thread % kWarp < components) sums[thread / kWarp][component] = sum;
}

// Adds up what `parts` neighbouring lanes have of `count` values, half of which each keeps, and so
// on: in the end lanes have different ones. Returns where a lane's begin.
template <int count, int components>
__device__ __forceinline__ int share_sums(float (&values)[kResidentRows][components], int parts) {
  if constexpr (count > 1) {
    if (parts == 1) return 0;
    constexpr int kHalf = count / 2;
    const int distance = parts / 2;
    const bool upper = (threadIdx.x & distance) != 0;
#pragma unroll
    for (int i = 0; i < kResidentRows; ++i)
#pragma unroll
      for (int j = 0; j < kHalf; ++j) {
        const float given = upper ? values[i][j] : values[i][j + kHalf];
        const float kept = upper ? values[i][j + kHalf] : values[i][j];
        values[i][j] = kept + __shfl_xor_sync(kAllLanes, given, distance);
      }
    return (upper ? kHalf : 0) + share_sums<kHalf>(values, distance);
  } else {
    return 0;
  }
}

template <int components>
__device__ __forceinline__ void load_row(const float* from, float (&to)[components]) {
#pragma unroll
  for (int j = 0; j < components; j += 4) {
    const auto four = *reinterpret_cast<const Pack<float, 4>*>(from + j);
#pragma unroll
    for (int e = 0; e < 4; ++e) to[j + e] = four.values[e];
  }
}

template <int components>
__device__ __forceinline__ void resident_half_step(const ResidentSide& side, const Update& update,
                                                   double (&sums)[kResidentWarps][components]) {
  sum_components<components>(side, sums);
  __syncthreads();
  const TermRule<float> terms = update.terms.as<float>();
  UpdateRule rule = update.rule;
  rule.gamma = 1;  // as it is for this loss: the compiler then leaves the power out
  const int thread = static_cast<int>(threadIdx.x);
  const int part = thread % side.parts, line = thread / side.parts;
  const int lines = kResidentThreads / side.parts, mine = components / side.parts;
  for (int first = 0; first < side.rows; first += kResidentRows * lines) {
    float own[kResidentRows][components], numerators[kResidentRows][components] = {};
    const float* x[kResidentRows];
#pragma unroll
    for (int i = 0; i < kResidentRows; ++i) {
      const int row = first + line + i * lines, there = row < side.rows ? row : 0;
      load_row(side.own + there * side.pitch, own[i]);
      x[i] = side.x + there * side.row_step;
    }
#pragma unroll 2
    for (int d = part; d < side.depth; d += side.parts) {
      float other[components];
      load_row(side.other + d * side.pitch, other);
#pragma unroll
      for (int i = 0; i < kResidentRows; ++i) {
        float wh = 0;
#pragma unroll
        for (int j = 0; j < components; ++j) wh += own[i][j] * other[j];
        const float term =
            numerator_term<Loss::kKullbackLeibler>(x[i][d * side.deep_step], wh, terms);
#pragma unroll
        for (int j = 0; j < components; ++j) numerators[i][j] += term * other[j];
      }
    }
    const int begin = share_sums<components>(numerators, side.parts);
#pragma unroll
    for (int j = 0; j < components; ++j) {
      const int component = begin + j;
      if (j >= mine || component < update.n_fixed || component >= side.n_components) continue;
      double sum = 0;
#pragma unroll
      for (int warp = 0; warp < kResidentWarps; ++warp) sum += sums[warp][component];
      if (sum == 0) sum = update.zero_sum;
#pragma unroll
      for (int i = 0; i < kResidentRows; ++i) {
        const int row = first + line + i * lines;
        if (row >= side.rows) continue;
        float* const value = side.own + row * side.pitch + component;
        *value = updated(*value, numerators[i][j] * static_cast<float>(update.scale),
                         static_cast<float>(sum), rule);
      }
    }
  }
  __syncthreads();
}

// Calls body(row, column) for all of a matrix: neighbouring threads have neighbouring columns.
template <class Body>
__device__ __forceinline__ void for_each_place(int rows, int columns, const Body& body) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp,
            lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int row = warp; row < rows; row += kResidentWarps)
    for (int column = lane; column < columns; column += kWarp) body(row, column);
}

template <int components, class Data>
__global__ void __launch_bounds__(kResidentThreads) resident_kernel(ResidentTask<Data> task) {
  NNMF_CUDA_DYNAMIC_SHARED(float, memory);
  NNMF_CUDA_SHARED(double, sums, [kResidentWarps][components]);
  const ResidentLayout& at = task.at;
  const Shape& s = task.problem.shape;
  const int64_t b = blockIdx.x;
  const auto k = static_cast<int>(s.n_components);
  const Data* const X = task.problem.X + b * s.x_stride;
  const float* const W = task.problem.W + b * at.n * k;
  const float* const H = task.problem.H + b * at.f * k;
  float *const x = memory, *const w = memory + at.W, *const h = memory + at.H;
  for_each_place(at.n, at.f, [&](int i, int j) {
    x[i * at.x_pitch + j] = static_cast<float>(X[i * s.x_row_stride + j]);
  });
  for_each_place(at.n, components,
                 [&](int i, int j) { w[i * at.factor_pitch + j] = j < k ? W[i * k + j] : 0; });
  for_each_place(components, at.f,
                 [&](int j, int i) { h[i * at.factor_pitch + j] = j < k ? H[j * at.f + i] : 0; });
  __syncthreads();
  const bool active = task.problem.active == nullptr || task.problem.active[b];
  const int sides = task.updates_H ? 2 : 1;
  for (int64_t i = 0; i < (active ? task.n_iter * sides : 0); ++i) {
    const bool of_W = i % sides == 0;
    const ResidentSide side{x,
                            of_W ? w : h,
                            of_W ? h : w,
                            of_W ? at.n : at.f,
                            of_W ? at.f : at.n,
                            at.factor_pitch,
                            of_W ? at.x_pitch : 1,
                            of_W ? 1 : at.x_pitch,
                            of_W ? at.W_parts : at.H_parts,
                            k};
    resident_half_step<components>(side, task.updates[of_W ? 0 : 1], sums);
  }
  for_each_place(
      at.n, k, [&](int i, int j) { task.W[(b * at.n + i) * k + j] = w[i * at.factor_pitch + j]; });
  for_each_place(
      k, at.f, [&](int j, int i) { task.H[(b * k + j) * at.f + i] = h[i * at.factor_pitch + j]; });
}

// n_iter iterations, from the problem's factors to W and H, which are shaped as they are.
template <class Data>
void launch_resident(const FactorParams<float, Data>& problem, const Update& update_W,
                     const Update& update_H, int64_t n_iter, bool updates_H, float* W, float* H,
                     cudaStream_t stream) {
  const Shape& s = problem.shape;
  if (s.batch == 0) return;
  ResidentTask<Data> task{problem, {}, {update_W, update_H}, n_iter, updates_H, W, H};
  task.at = s.n_components <= 16 ? resident_layout<16>(s) : resident_layout<32>(s);
  const int bytes = task.at.size * static_cast<int>(sizeof(float));
  if (s.n_components <= 16)
    NNMF_CUDA_LAUNCH((resident_kernel<16, Data>), grid_of(s.batch), kResidentThreads, bytes, stream,
                     task);
  else
    NNMF_CUDA_LAUNCH((resident_kernel<32, Data>), grid_of(s.batch), kResidentThreads, bytes, stream,
                     task);
}

}  // namespace nnmf_cuda
