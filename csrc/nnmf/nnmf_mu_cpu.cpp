#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../common/dispatch.h"
#include "nnmf_cpu.h"
#include "nnmf_divergence.h"

namespace nnmf_cuda {
namespace {

// Rows of a tile that are summed in T before the sum is added to a total in float64.
constexpr int64_t kSumRows = 64;

// The denominator of Kullback-Leibler and Frobenius needs no W H: these are, per problem, the sums
// of the other factor's components [k], or their inner products [k, k].
template <Loss loss>
constexpr bool kSumsDenominator = loss == Loss::kItakuraSaito || loss == Loss::kGeneral;

template <Loss loss>
int64_t statistics_size(int64_t n_components) {
  if constexpr (loss == Loss::kKullbackLeibler) return n_components;
  if constexpr (loss == Loss::kFrobenius) return n_components * n_components;
  return 0;
}

// Row r of the statistics of a factor whose component r is at factor[r * step + i * stride].
template <Loss loss, class T>
NNMF_CUDA_CLONED void component_statistics(const T* factor, int64_t size, int64_t n_components,
                                           int64_t step, int64_t stride, int64_t r,
                                           double* statistics) {
  const T* own = factor + r * step;
  if constexpr (loss == Loss::kKullbackLeibler) {
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(own[i * stride]);
    statistics[r] = sum;
  } else {
    for (int64_t other = 0; other < n_components; ++other) {
      const T* with = factor + other * step;
      double sum = 0;
      for (int64_t i = 0; i < size; ++i)
        sum += static_cast<double>(own[i * stride]) * static_cast<double>(with[i * stride]);
      statistics[r * n_components + other] = sum;
    }
  }
}

// x becomes what the numerator sums, wh what the denominator sums.
template <Loss loss, class T>
NNMF_CUDA_CLONED void to_terms(T* x, T* wh, T beta_loss) {
  for (int64_t c = 0; c < kRows * kTile<T>; ++c) {
    x[c] = numerator_term<loss>(x[c], wh[c], beta_loss);
    if constexpr (kSumsDenominator<loss>) wh[c] = denominator_term<loss>(wh[c], beta_loss);
  }
}

struct Step {
  double beta_loss;
  UpdateRule rule;
  const double* statistics;  // of the factor that is not updated
};

// The denominator of one value of a factor. `own` are the old values [k] that it stands among, its
// row of W or its column of H, `stride` apart.
template <Loss loss, class T>
NNMF_CUDA_INLINE double denominator_of(const Step& step, const T* own, int64_t stride,
                                       int64_t n_components, int64_t r, const double* summed) {
  if constexpr (kSumsDenominator<loss>) return *summed;
  if constexpr (loss == Loss::kKullbackLeibler) return step.statistics[r];
  double sum = 0;
  for (int64_t other = 0; other < n_components; ++other)
    sum += step.statistics[r * n_components + other] * static_cast<double>(own[other * stride]);
  return sum;
}

// Updates rows [begin, end) of W.
template <Loss loss, class T, class Data>
void update_W_rows(const Problem<T, Data>& p, const Step& step, int64_t begin, int64_t end) {
  const int64_t k = p.n_components, panel = k * kRows, panels = blocks_of(end - begin, kRows);
  const Scratch<T> tile(k * kTile<T>), weights(panels * panel), x(kRows * kTile<T>),
      wh(kRows * kTile<T>);
  std::vector<double> numerator(static_cast<std::size_t>(panels * panel)), denominator(numerator);
  for (int64_t at = 0; at < panels; ++at)
    load_weights(p, begin + at * kRows, weights.data() + at * panel);

  for (int64_t column = 0; column < p.n_features; column += kTile<T>) {
    load_tile(p, column, tile.data());
    for (int64_t at = 0; at < panels; ++at) {
      load_data(p, begin + at * kRows, column, x.data());
      if constexpr (loss != Loss::kFrobenius) {
        multiply(weights.data() + at * panel, tile.data(), k, wh.data());
        if constexpr (kSumsDenominator<loss>)
          fill_padding(p, begin + at * kRows, column, wh.data());
        to_terms<loss>(x.data(), wh.data(), static_cast<T>(step.beta_loss));
      }
      add_row_sums(x.data(), tile.data(), k, numerator.data() + at * panel);
      if constexpr (kSumsDenominator<loss>)
        add_row_sums(wh.data(), tile.data(), k, denominator.data() + at * panel);
    }
  }

  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = (row - begin) / kRows * panel + (row - begin) % kRows;
    for (int64_t r = 0; r < k; ++r) {
      const int64_t at = first + r * kRows;
      const double bottom =
          denominator_of<loss>(step, weights.data() + first, kRows, k, r, denominator.data() + at);
      T& value = p.W[row * k + r];
      value = updated(value, static_cast<T>(numerator[at]), static_cast<T>(bottom), step.rule);
    }
  }
}

// totals += part, then part = 0
template <class T>
NNMF_CUDA_CLONED void flush(T* part, int64_t size, double* totals) {
  for (int64_t i = 0; i < size; ++i) totals[i] += static_cast<double>(part[i]);
  std::fill_n(part, size, T{0});
}

// Updates columns [column, column + kTile) of H.
template <Loss loss, class T, class Data>
void update_H_tile(const Problem<T, Data>& p, const Step& step, int64_t column) {
  const int64_t k = p.n_components, size = k * kTile<T>;
  const Scratch<T> tile(size), weights(k * kRows), x(kRows * kTile<T>), wh(kRows * kTile<T>),
      numerator_part(size), denominator_part(size);
  std::vector<double> numerator(static_cast<std::size_t>(size)), denominator(numerator);
  std::fill_n(numerator_part.data(), size, T{0});
  std::fill_n(denominator_part.data(), size, T{0});
  load_tile(p, column, tile.data());

  for (int64_t begin = 0; begin < p.n_samples; begin += kSumRows) {
    const int64_t end = std::min(begin + kSumRows, p.n_samples);
    for (int64_t row = begin; row < end; row += kRows) {
      load_weights(p, row, weights.data());
      load_data(p, row, column, x.data());
      if constexpr (loss != Loss::kFrobenius) {
        multiply(weights.data(), tile.data(), k, wh.data());
        if constexpr (kSumsDenominator<loss>) fill_padding(p, row, column, wh.data());
        to_terms<loss>(x.data(), wh.data(), static_cast<T>(step.beta_loss));
      }
      add_column_sums(weights.data(), x.data(), k, numerator_part.data());
      if constexpr (kSumsDenominator<loss>)
        add_column_sums(weights.data(), wh.data(), k, denominator_part.data());
    }
    flush(numerator_part.data(), size, numerator.data());
    if constexpr (kSumsDenominator<loss>) flush(denominator_part.data(), size, denominator.data());
  }

  const int64_t columns = std::min(kTile<T>, p.n_features - column);
  for (int64_t r = 0; r < k; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t at = r * kTile<T> + c;
      double bottom =
          denominator_of<loss>(step, tile.data() + c, kTile<T>, k, r, denominator.data() + at);
      if (loss == Loss::kKullbackLeibler && bottom == 0) bottom = 1;
      T& value = p.H[r * p.n_features + column + c];
      value = updated(value, static_cast<T>(numerator[at]), static_cast<T>(bottom), step.rule);
    }
  }
}

template <Loss loss, class T, class Data>
void iterate(const Batch<T, Data>& batch, const MuOptions& options) {
  const Shape& s = batch.shape;
  const int64_t k = s.n_components, per_problem = statistics_size<loss>(k);
  const int64_t row_blocks = blocks_of(s.n_samples, kBlockRows),
                tiles = blocks_of(s.n_features, kTile<T>);
  std::vector<double> statistics(static_cast<std::size_t>(s.batch * per_problem));

  // Statistics of a factor with `size` values a component: component r starts at r * step.
  const auto gather = [&](const T* factor, int64_t size, int64_t step, int64_t stride) {
    if (per_problem == 0) return;
    torch::stable::parallel_for(0, s.batch * k, 1, [&](int64_t first, int64_t last) {
      for (int64_t at = first; at < last; ++at)
        component_statistics<loss>(factor + at / k * size * k, size, k, step, stride, at % k,
                                   statistics.data() + at / k * per_problem);
    });
  };
  const auto step_of = [&](const UpdateRule& rule, int64_t b) {
    return Step{options.beta_loss, rule, statistics.data() + b * per_problem};
  };

  const UpdateRule rule_W = rule_for_W(options.beta_loss, options.l1_reg_W, options.l2_reg_W);
  const UpdateRule rule_H = rule_for_H(options.beta_loss, options.l1_reg_H, options.l2_reg_H);
  for (int64_t i = 0; i < options.n_iter; ++i) {
    if (i == 0 || options.update_H) gather(batch.H, s.n_features, s.n_features, 1);
    torch::stable::parallel_for(0, s.batch * row_blocks, 1, [&](int64_t first, int64_t last) {
      for (int64_t at = first; at < last; ++at) {
        const int64_t b = at / row_blocks, begin = at % row_blocks * kBlockRows;
        update_W_rows<loss>(batch[b], step_of(rule_W, b), begin,
                            std::min(begin + kBlockRows, s.n_samples));
      }
    });
    if (!options.update_H) continue;
    gather(batch.W, s.n_samples, 1, k);
    torch::stable::parallel_for(0, s.batch * tiles, 1, [&](int64_t first, int64_t last) {
      for (int64_t at = first; at < last; ++at)
        update_H_tile<loss>(batch[at / tiles], step_of(rule_H, at / tiles), at % tiles * kTile<T>);
    });
  }
}

std::tuple<Tensor, Tensor, Tensor> nnmf_mu_cpu(const Tensor& X, const Tensor& W, const Tensor& H,
                                               double beta_loss, int64_t n_iter, bool update_H,
                                               double l1_reg_W, double l1_reg_H, double l2_reg_W,
                                               double l2_reg_H, bool compute_divergence) {
  const Shape s = check_factors(X, W, H);
  const MuOptions options{beta_loss, n_iter, update_H, l1_reg_W, l1_reg_H, l2_reg_W, l2_reg_H};
  const Tensor x = torch::stable::contiguous(X), w = contiguous_copy(W), h = contiguous_copy(H);
  dispatch_floating(W.scalar_type(), [&]<class T>(Type<T>) {
    dispatch_data<T>(X.scalar_type(), [&]<class Data>(Type<Data>) {
      dispatch_loss(beta_loss, [&]<Loss loss>(LossType<loss>) {
        const Batch<T, Data> batch{x.const_data_ptr<Data>(), w.mutable_data_ptr<T>(),
                                   h.mutable_data_ptr<T>(), s};
        iterate<loss>(batch, options);
      });
    });
  });
  return {w, h, compute_divergence ? nnmf_divergence_cpu(x, w, h, beta_loss) : no_divergence(w)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("nnmf_mu", TORCH_BOX(&nnmf_mu_cpu));
}

}  // namespace nnmf_cuda
