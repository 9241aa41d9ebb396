// ISA source (see isa.h): the beta-divergence where entries of X have weights, on the tiles of
// divergence.h.
// clang-format off: each builds on those before it
#include "divergence.h"
#include "sums.h"
#include "weights.h"
// clang-format on

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// One panel in the columns of one tile.
template <Loss loss, class T, class Data>
[[gnu::noinline]] double weighted_tile_divergence(const Panel<T, Data>& p,
                                                  const TileWeights<T>& weights, const T* right,
                                                  int64_t n_components,
                                                  const TermRule<double>& rule) {
  using V = Vector<T>;
  using Lanes = typename V::Lanes;
  Lanes wh[kRows][kVectors];
  multiply(p.left.data, p.left.stride, right, n_components, wh);
  const T unit = sizeof(Data) == 1 ? T{1} / T{255} : T{1}, floor = static_cast<T>(rule.floor);
  double wide = 0;
  Lanes total{};
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t c = v * V::kLanes;
      const Lanes one = V::broadcast(T{1});
      const bool bits = weights.values == nullptr;
      const Lanes value =
          bits ? weighted<true>(one, weights, i, c) : weighted<false>(one, weights, i, c);
      const uint32_t seen = V::positive(value);
      if constexpr (loss == Loss::kGeneral) {
        T row[V::kLanes], times[V::kLanes];
        V::store(row, wh[i][v]);
        V::store(times, value);
        for (int64_t l = 0; l < V::kLanes; ++l)
          if (seen >> l & 1)
            wide += static_cast<double>(times[l]) *
                    general_divergence_term(
                        static_cast<double>(value_of<T>(p.x[i * p.x_stride + c + l])),
                        static_cast<double>(row[l]), rule);
      } else {
        const Lanes x = unit * V::load(p.x + i * p.x_stride + c);
        Lanes term = divergence_terms<loss, T>(x, wh[i][v], floor);
        if constexpr (loss == Loss::kItakuraSaito) term = x > floor ? term : V::broadcast(T{-1});
        total += V::keep(seen, value * term);
      }
    }
  }
  return wide + static_cast<double>(V::sum(total));
}

// One number per problem.
template <Loss loss, class T, class Data>
void weighted_divergences(const FactorParams<T, Data>& params, const Weights<T>& weights,
                          const TermRule<double>& rule, double* result) {
  const Shape& s = params.shape;
  const int64_t n_blocks = blocks_of(s.n_samples, kDivergenceRows);
  for_each_problem<Data>(s, [&](int64_t b) {
    const Problem<T, Data> p(params.X + b * s.x_stride, s.x_row_stride,
                             const_cast<T*>(params.W) + b * s.n_samples * s.n_components,
                             params.H + b * s.n_components * s.n_features, s);
    const Weights<T> mine = weights.of_problem(b);
    const Scratch<double> parts(n_blocks);
    parallel_for_each(n_blocks, [&](int64_t block) {
      const Scratch<T> padded(kRows * p.n_components), weights_edge(kRows * kColumns<T>);
      const Scratch<Data> edge(kRows * kColumns<T>);
      const int64_t end = std::min((block + 1) * kDivergenceRows, s.n_samples);
      double total = 0;
      for (int64_t row = block * kDivergenceRows; row < end; row += kRows) {
        const int64_t rows = std::min(kRows, end - row);
        const Left<T> left = left_of(p, row, rows, padded.data());
        for (int64_t tile = 0; tile < p.n_tiles; ++tile)
          total += weighted_tile_divergence<loss>(
              panel_of(p, left, row, rows, tile, 0, edge.data()),
              weights_of(mine, p, row, rows, tile, weights_edge.data()),
              p.tiles + tile * p.tile_size, p.n_components, rule);
      }
      parts.data()[block] = total;
    });
    result[b] = std::accumulate(parts.data(), parts + n_blocks, 0.0);
  });
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
