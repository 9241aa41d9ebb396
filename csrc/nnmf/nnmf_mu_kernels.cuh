// One multiplicative half-step on the device, in three launches: the sums that the denominator
// needs (Kullback-Leibler only), partial sums over tiles of X, and the update itself.
#pragma once

#include <algorithm>
#include <cstdint>

#include "nnmf_cuda.cuh"

namespace nnmf_cuda {

// Which factor a half-step updates.
enum class Factor { kW, kH };

// How one half-step is cut into blocks. `length` is the updated factor's side of X (n_samples for
// W), `depth` the other one, over which the sums run, in `splits` parts.
struct Cut {
  int64_t length;
  int64_t depth;
  int64_t tiles;           // along length
  int64_t splits;          // along depth
  int64_t tiles_of_split;  // depth tiles in each
};

template <Factor factor>
Cut cut_of(const Shape& s) {
  // Enough blocks to fill a device, whatever device it is; fewer where there are many components,
  // because every split has partial sums for each.
  const int64_t blocks = std::max<int64_t>(1024 / std::max<int64_t>(s.n_components / 64, 1), 1);
  constexpr int64_t kTilesOfSplit = 4;  // at least, so that a block has something to add up
  Cut cut{};
  cut.length = factor == Factor::kW ? s.n_samples : s.n_features;
  cut.depth = factor == Factor::kW ? s.n_features : s.n_samples;
  cut.tiles = blocks_of(cut.length, kTileSide);
  const int64_t depth_tiles = blocks_of(cut.depth, kTileSide);
  const int64_t splits = blocks_of(blocks, std::max<int64_t>(s.batch * cut.tiles, 1));
  cut.tiles_of_split = std::max(blocks_of(depth_tiles, splits), kTilesOfSplit);
  cut.splits = std::max<int64_t>(blocks_of(depth_tiles, cut.tiles_of_split), 1);
  return cut;
}

// float64 scratch memory on the device.
struct Sums {
  double* numerator;    // [splits, B, n_components, length]
  double* denominator;  // the same; unused for Kullback-Leibler
  double* components;   // [B, n_components], Kullback-Leibler only
};

inline int64_t sums_size(const Shape& s) {
  const Cut w = cut_of<Factor::kW>(s), h = cut_of<Factor::kH>(s);
  return s.batch * s.n_components * std::max(w.splits * w.length, h.splits * h.length);
}

// Sums over the values of each component of the factor that is not updated; a block per component.
template <Factor factor, class T, class Data>
__global__ void sum_components_kernel(DeviceBatch<T, Data> batch, Cut cut, double* components) {
  const Shape& s = batch.shape;
  const int64_t b = blockIdx.x / s.n_components, r = blockIdx.x % s.n_components;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < cut.depth; i += kThreads)
    sum += static_cast<double>(factor == Factor::kW
                                   ? batch.H[(b * s.n_components + r) * s.n_features + i]
                                   : batch.W[(b * s.n_samples + i) * s.n_components + r]);
  sum = sum_over_block(sum);
  if (threadIdx.x == 0) components[blockIdx.x] = sum;
}

// Partial sums of numerator and denominator, over one split; a block per tile along the length.
template <Loss loss, Factor factor, class T, class Data>
__global__ void sum_terms_kernel(DeviceBatch<T, Data> batch, Cut cut, Sums sums) {
  constexpr bool kDenominator = loss != Loss::kKullbackLeibler;
  // Terms of one tile as [along depth, along length], padded against bank conflicts.
  NNMF_CUDA_SHARED(T, top, [kTileSide][kTileSide + 1]);
  NNMF_CUDA_SHARED(T, bottom, [kDenominator ? kTileSide : 1][kTileSide + 1]);
  const Shape& s = batch.shape;
  const T beta_loss = static_cast<T>(batch.beta_loss);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t tile = blockIdx.x % cut.tiles;
  const int64_t b = blockIdx.x / cut.tiles % s.batch, split = blockIdx.x / cut.tiles / s.batch;
  const int64_t begin = split * cut.tiles_of_split * kTileSide;
  const int64_t own = tile * kTileSide + lane;  // the row or column whose sums this lane keeps
  const Data* X = batch.X + b * s.x_stride;

  for (int64_t t = 0; t < cut.tiles_of_split && (t == 0 || begin + t * kTileSide < cut.depth);
       ++t) {
    const int64_t deep = begin + t * kTileSide;
    const int64_t row = factor == Factor::kW ? tile * kTileSide : deep;
    const int64_t column = factor == Factor::kW ? deep : tile * kTileSide;
    T wh[kTileSide / kWarps];
    multiply(batch, b, row, column, wh);
    for (int i = 0; i < kTileSide / kWarps; ++i) {
      const int in_row = warp + i * kWarps;
      const bool inside = row + in_row < s.n_samples && column + lane < s.n_features;
      const T x = inside ? value_of<T>(X[(row + in_row) * s.n_features + column + lane]) : T{0};
      const int down = factor == Factor::kW ? lane : in_row;
      const int across = factor == Factor::kW ? in_row : lane;
      top[down][across] = inside ? numerator_term<loss>(x, wh[i], beta_loss) : T{0};
      if constexpr (kDenominator)
        bottom[down][across] = inside ? denominator_term<loss>(wh[i], beta_loss) : T{0};
    }
    __syncthreads();
    const int depth = static_cast<int>(deep + kTileSide < cut.depth ? kTileSide : cut.depth - deep);
    for (int64_t r = warp; own < cut.length && r < s.n_components; r += kWarps) {
      const T* other = factor == Factor::kW
                           ? batch.H + (b * s.n_components + r) * s.n_features + deep
                           : batch.W + (b * s.n_samples + deep) * s.n_components + r;
      const int64_t step = factor == Factor::kW ? 1 : s.n_components;
      T numerator = 0, denominator = 0;
      for (int d = 0; d < depth; ++d) {
        numerator += top[d][lane] * other[d * step];
        if constexpr (kDenominator) denominator += bottom[d][lane] * other[d * step];
      }
      const int64_t at = ((split * s.batch + b) * s.n_components + r) * cut.length + own;
      sums.numerator[at] = (t == 0 ? 0 : sums.numerator[at]) + static_cast<double>(numerator);
      if constexpr (kDenominator)
        sums.denominator[at] =
            (t == 0 ? 0 : sums.denominator[at]) + static_cast<double>(denominator);
    }
    __syncthreads();
  }
}

// The update of one value per thread.
template <Loss loss, Factor factor, class T, class Data>
__global__ void update_kernel(DeviceBatch<T, Data> batch, Cut cut, Sums sums, UpdateRule rule) {
  const Shape& s = batch.shape;
  const int64_t size = s.batch * s.n_components * cut.length;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= size) return;
  const int64_t component = at / cut.length, i = at % cut.length;  // component counts b and r
  double numerator = 0, denominator = 0;
  for (int64_t split = 0; split < cut.splits; ++split) {
    numerator += sums.numerator[split * size + at];
    if constexpr (loss != Loss::kKullbackLeibler)
      denominator += sums.denominator[split * size + at];
  }
  if constexpr (loss == Loss::kKullbackLeibler) {
    denominator = sums.components[component];
    if (factor == Factor::kH && denominator == 0) denominator = 1;
  }
  const int64_t b = component / s.n_components, r = component % s.n_components;
  T& value = factor == Factor::kW ? batch.W[(b * s.n_samples + i) * s.n_components + r]
                                  : batch.H[component * s.n_features + i];
  value = updated(value, static_cast<T>(numerator), static_cast<T>(denominator), rule);
}

template <Loss loss, Factor factor, class T, class Data>
void launch_half_step(const DeviceBatch<T, Data>& batch, const Sums& sums, const UpdateRule& rule,
                      cudaStream_t stream) {
  const Shape& s = batch.shape;
  const Cut cut = cut_of<factor>(s);
  const int64_t size = s.batch * s.n_components * cut.length;
  if (size == 0) return;
  if constexpr (loss == Loss::kKullbackLeibler)
    NNMF_CUDA_LAUNCH((sum_components_kernel<factor, T, Data>), grid_of(s.batch * s.n_components),
                     kThreads, 0, stream, batch, cut, sums.components);
  NNMF_CUDA_LAUNCH((sum_terms_kernel<loss, factor, T, Data>),
                   grid_of(cut.tiles * s.batch * cut.splits), kThreads, 0, stream, batch, cut,
                   sums);
  NNMF_CUDA_LAUNCH((update_kernel<loss, factor, T, Data>), grid_of(blocks_of(size, kThreads)),
                   kThreads, 0, stream, batch, cut, sums, rule);
}

template <Loss loss, class T, class Data>
void launch_nnmf_mu(const DeviceBatch<T, Data>& batch, const Sums& sums, const MuOptions& options,
                    cudaStream_t stream) {
  const UpdateRule rule_W = rule_for_W(options.beta_loss, options.l1_reg_W, options.l2_reg_W);
  const UpdateRule rule_H = rule_for_H(options.beta_loss, options.l1_reg_H, options.l2_reg_H);
  for (int64_t i = 0; i < options.n_iter; ++i) {
    launch_half_step<loss, Factor::kW>(batch, sums, rule_W, stream);
    if (options.update_H) launch_half_step<loss, Factor::kH>(batch, sums, rule_H, stream);
  }
}

}  // namespace nnmf_cuda
