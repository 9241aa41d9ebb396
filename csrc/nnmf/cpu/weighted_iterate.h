// ISA source (see isa.h): iterations where entries of X have weights.
// clang-format off: each builds on those before it
#include "iterate.h"
#include "weights.h"
#include "weighted_sums.h"
#include "weighted_descent.h"
// clang-format on

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// New values of all losses come from numerators and denominators that are sums over X.
constexpr Loss kAnyLoss = Loss::kGeneral;

// The denominators of Kullback-Leibler with a mask, for one factorisation.
template <class T, class Data>
class MaskedDenominators {
 public:
  MaskedDenominators(const Factorisation<T, Data>& f, const MaskWords& mask)
      : f_(f),
        mask_(mask),
        stride_(padded_components<T>(f.n_components)),
        right_(std::max(f.n_samples, f.n_features) * stride_),
        of_W_(blocks_of(f.n_samples, kRows) * kRows * f.n_components) {
    of_W_.fill(0);
  }

  // Sums for W, from H.
  void sum_rows() const {
    const int64_t k = f_.n_components;
    parallel_for_each(f_.n_tiles, [&](int64_t tile) {
      const T* h = f_.tiles + tile * f_.tile_size;
      for (int64_t c = 0; c < f_.columns_of(tile); ++c) {
        T* to = right_ + (tile * kColumns<T> + c) * stride_;
        for (int64_t r = 0; r < k; ++r) to[r] = h[r * kColumns<T> + c];
        std::fill_n(to + k, stride_ - k, T{0});
      }
    });
    const MaskedSums<T> sums{mask_.rows.data(), f_.n_samples, f_.n_features, right_.data(),
                             stride_};
    sums.compute([&](int64_t row, const double* found) {
      double* to = of_W_ + row / kRows * kRows * k + row % kRows;
      for (int64_t r = 0; r < k; ++r) to[r * kRows] = found[r];
    });
  }

  // Sums for H, from W, to the factorisation's denominators.
  void sum_columns() const {
    const int64_t k = f_.n_components;
    parallel_for_ranges(f_.n_samples, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        std::copy_n(f_.W + i * k, k, right_ + i * stride_);
        std::fill_n(right_ + i * stride_ + k, stride_ - k, T{0});
      }
    });
    const MaskedSums<T> sums{mask_.columns.data(), f_.n_features, f_.n_samples, right_.data(),
                             stride_};
    sums.compute([&](int64_t column, const double* found) {
      const int64_t tile = column / kColumns<T>;
      double* to = f_.denominator + tile * f_.tile_size + column % kColumns<T>;
      for (int64_t r = 0; r < k; ++r) to[r * kColumns<T>] = found[r];
    });
  }

  // Of the panel of W that starts at `row`.
  const double* of_panel(int64_t row) const { return of_W_ + row * f_.n_components; }

 private:
  const Factorisation<T, Data>& f_;
  const MaskWords& mask_;
  int64_t stride_;
  Scratch<T> right_;
  Scratch<double> of_W_;
};

// Multiplicative updates of one factorisation. `mask`: the bits for the denominators, where those
// are not sums of terms.
template <Loss loss, class T, class Data>
void iterate_weighted(const Factorisation<T, Data>& f, const Weights<T>& weights,
                      const MaskWords* mask, const Update& update_W, const Update& update_H,
                      int64_t n_iter, bool updates_H) {
  const bool sums_below = sums_denominator<loss>(weights);
  std::optional<MaskedDenominators<T, Data>> masked;
  if (!sums_below) masked.emplace(f, *mask);
  const TermRule<T> rule = update_W.terms.as<T>();
  const auto for_rows = [&](int64_t begin, int64_t end, int64_t repeats) {
    const int64_t rows = task_rows(end - begin);
    parallel_for_each(blocks_of(end - begin, rows), [&](int64_t task) {
      const int64_t first = begin + task * rows, last = std::min(first + rows, end);
      WeightedRowSums<loss, T, Data> sums(f, weights, rule, first, last);
      for (int64_t repeat = 0; repeat < repeats; ++repeat) {
        sums.compute();
        for (int64_t row = first, panel = 0; row < last; row += kRows, ++panel) {
          const double* below = masked ? masked->of_panel(row) : sums.denominator(panel);
          update_panel<kAnyLoss>(f, {sums.numerator(panel), below, nullptr}, update_W, row,
                                 std::min(kRows, last - row));
        }
      }
    });
  };
  const auto for_tiles = [&](const auto& run) {
    const int64_t tiles = task_tiles(f.n_tiles);
    parallel_for_each(blocks_of(f.n_tiles, tiles), [&](int64_t task) {
      run(task * tiles, std::min((task + 1) * tiles, f.n_tiles));
    });
  };

  if (masked) masked->sum_rows();
  if (!updates_H) return for_rows(0, f.n_samples, n_iter);
  f.numerator.fill(0);
  f.denominator.fill(0);
  const int64_t step = chunk_rows<Data>(f.n_features);
  for (int64_t iteration = 0; iteration < n_iter; ++iteration) {
    if (masked && iteration > 0) masked->sum_rows();
    for (int64_t begin = 0; begin < f.n_samples; begin += step) {
      const int64_t end = std::min(begin + step, f.n_samples);
      for_rows(begin, end, 1);
      for_tiles([&](int64_t first, int64_t last) {
        WeightedColumnSums<loss, T, Data>(f, weights, rule, first, last).add_rows(begin, end);
      });
    }
    if (masked) masked->sum_columns();
    for_tiles([&](int64_t first, int64_t last) {
      update_columns<kAnyLoss>(f, nullptr, update_H, first, last);
    });
  }
}

// W and H [batch, ...] become what is made of p.W and p.H.
template <Loss loss, class T, class Data>
void iterate_with_weights(const FactorParams<T, Data>& p, const Weights<T>& weights,
                          const Update& update_W, const Update& update_H, int64_t n_iter,
                          bool updates_H, T* W, T* H) {
  const Shape& s = p.shape;
  const int64_t size_W = s.n_samples * s.n_components, size_H = s.n_components * s.n_features;
  const bool descends = update_W.n_inner > 0;
  const bool own = weights.stride != 0;
  const auto words_of = [&](const Weights<T>& mine) {
    std::optional<MaskWords> words;
    if (!descends && !sums_denominator<loss>(weights))
      words.emplace(mine.bits, mine.row_stride, s.n_samples, s.n_features);
    return words;
  };
  const std::optional<MaskWords> shared = own ? std::nullopt : words_of(weights);
  std::copy_n(p.W, s.batch * size_W, W);
  for_each_problem<Data>(s, [&](int64_t b) {
    const bool active = p.active == nullptr || p.active[b];
    if (!active || !updates_H) std::copy_n(p.H + b * size_H, size_H, H + b * size_H);
    if (!active) return;
    const Weights<T> mine = weights.of_problem(b);
    const std::optional<MaskWords> words = own ? words_of(mine) : std::nullopt;
    const std::optional<MaskWords>& mask = own ? words : shared;
    Factorisation<T, Data> f(p.X + b * s.x_stride, s.x_row_stride, W + b * size_W, p.H + b * size_H,
                             s, /*sums_denominator=*/!descends);
    if constexpr (loss == Loss::kFrobenius) {
      if (descends) descend(f, mine, update_W, update_H, n_iter, updates_H);
    }
    if (!descends)
      iterate_weighted<loss>(f, mine, mask ? &*mask : nullptr, update_W, update_H, n_iter,
                             updates_H);
    if (!updates_H) return;
    f.release_sums();  // which nobody needs: the new H is as large
    f.unpack(H + b * size_H);
  });
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
