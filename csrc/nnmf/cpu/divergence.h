// ISA source (see isa.h): the beta-divergence, tile by tile. W H is formed in the precision of the
// factors; no term is a difference of larger numbers, and tiles are added up in float64.
// clang-format off: each builds on those before it
#include "tiles.h"
#include "../divergence_term.h"
// clang-format on

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

constexpr int64_t kDivergenceRows = 16;  // rows of one task

// One panel in the columns of one tile.
template <Loss loss, class T, class Data>
[[gnu::noinline]] double tile_divergence(const Panel<T, Data>& p, const T* right,
                                         int64_t n_components, const TermRule<double>& rule) {
  using V = Vector<T>;
  prefetch<T, true>(p.ahead, p.x_stride);
  prefetch<T, false>(p.x, p.x_stride);
  typename V::Lanes wh[kRows][kVectors];
  multiply(p.left.data, p.left.stride, right, n_components, wh);
  const T unit = sizeof(Data) == 1 ? T{1} / T{255} : T{1};
  if constexpr (loss == Loss::kGeneral) {
    double total = 0;
    for (int64_t i = 0; i < p.rows; ++i) {
      T row[kColumns<T>];
      for (int64_t v = 0; v < kVectors; ++v) V::store(row + v * V::kLanes, wh[i][v]);
      for (int64_t c = 0; c < p.columns; ++c)
        total += general_divergence_term(static_cast<double>(value_of<T>(p.x[i * p.x_stride + c])),
                                         static_cast<double>(row[c]), rule);
    }
    return total;
  }
  const T floor = static_cast<T>(rule.floor);
  typename V::Lanes total{}, n_zeros{};
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t v = 0; v < kVectors; ++v) {
      const typename V::Lanes x = unit * V::load(p.x + i * p.x_stride + v * V::kLanes);
      total += divergence_terms<loss, T>(x, wh[i][v], floor);
      if constexpr (loss == Loss::kItakuraSaito)
        n_zeros += x > floor ? typename V::Lanes{} : V::broadcast(T{1});
    }
  }
  const double sum = static_cast<double>(V::sum(total));
  if constexpr (loss != Loss::kItakuraSaito) return sum;
  const int64_t padding = kRows * kColumns<T> - p.rows * p.columns;
  return sum - (static_cast<double>(V::sum(n_zeros)) - static_cast<double>(padding));
}

template <Loss loss, class T, class Data>
double rows_divergence(const Problem<T, Data>& p, const TermRule<double>& rule, int64_t begin,
                       int64_t end) {
  const Scratch<T> padded(kRows * p.n_components);
  const Scratch<Data> edge(kRows * kColumns<T>);
  double total = 0;
  for (int64_t row = begin; row < end; row += kRows) {
    const int64_t rows = std::min(kRows, end - row);
    const Left<T> left = left_of(p, row, rows, padded.data());
    for (int64_t tile = 0; tile < p.n_tiles; ++tile) {
      const auto x = panel_of(p, left, row, rows, tile, 8 * kColumns<T>, edge.data());
      total += tile_divergence<loss>(x, p.tiles + tile * p.tile_size, p.n_components, rule);
    }
  }
  return total;
}

// One number per problem.
template <Loss loss, class T, class Data>
void divergences(const Data* X, const T* W, const T* H, const Shape& s,
                 const TermRule<double>& rule, double* result) {
  const int64_t n_blocks = blocks_of(s.n_samples, kDivergenceRows);
  for_each_problem<Data>(s, [&](int64_t b) {
    const Problem<T, Data> p(X + b * s.x_stride, s.x_row_stride,
                             const_cast<T*>(W) + b * s.n_samples * s.n_components,
                             H + b * s.n_components * s.n_features, s);
    const Scratch<double> parts(n_blocks);
    parallel_for_each(n_blocks, [&](int64_t block) {
      const int64_t begin = block * kDivergenceRows;
      parts.data()[block] =
          rows_divergence<loss>(p, rule, begin, std::min(begin + kDivergenceRows, s.n_samples));
    });
    result[b] = std::accumulate(parts.data(), parts + n_blocks, 0.0);
  });
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
