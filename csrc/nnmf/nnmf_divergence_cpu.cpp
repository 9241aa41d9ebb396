#include <algorithm>
#include <numeric>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../common/dispatch.h"
#include "nnmf_cpu.h"
#include "nnmf_divergence.h"

namespace nnmf_cuda {
namespace {

// What rows [begin, end) add; all in float64, because near a good fit the terms almost cancel.
template <Loss loss, class T, class Data>
double rows_divergence(const Problem<T, Data>& p, double beta_loss, int64_t begin, int64_t end) {
  constexpr int64_t kColumns = kTile<double>;
  const Scratch<double> tile(p.n_components * kColumns), weights(p.n_components * kRows),
      x(kRows * kColumns), wh(kRows * kColumns);
  double total = 0;
  for (int64_t column = 0; column < p.n_features; column += kColumns) {
    load_tile(p, column, tile.data());
    const int64_t columns = std::min(kColumns, p.n_features - column);
    for (int64_t row = begin; row < end; row += kRows) {
      load_weights(p, row, weights.data());
      load_data(p, row, column, x.data());
      multiply(weights.data(), tile.data(), p.n_components, wh.data());
      const int64_t rows = std::min(kRows, end - row);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t c = i * kColumns; c < i * kColumns + columns; ++c)
          total += divergence_term<loss>(x.data()[c], wh.data()[c], beta_loss);
    }
  }
  return total;
}

template <Loss loss, class T, class Data>
void divergences(const Batch<T, Data>& batch, double beta_loss, double* result) {
  const Shape& s = batch.shape;
  const int64_t blocks = blocks_of(s.n_samples, kBlockRows);
  std::vector<double> parts(static_cast<std::size_t>(s.batch * blocks));
  torch::stable::parallel_for(0, s.batch * blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t at = first; at < last; ++at) {
      const int64_t begin = at % blocks * kBlockRows;
      parts[static_cast<std::size_t>(at)] = rows_divergence<loss>(
          batch[at / blocks], beta_loss, begin, std::min(begin + kBlockRows, s.n_samples));
    }
  });
  for (int64_t b = 0; b < s.batch; ++b)
    result[b] = std::accumulate(parts.begin() + b * blocks, parts.begin() + (b + 1) * blocks, 0.0);
}

}  // namespace

Tensor nnmf_divergence_cpu(const Tensor& X, const Tensor& W, const Tensor& H, double beta_loss) {
  const Shape s = check_factors(X, W, H);
  const Tensor x = torch::stable::contiguous(X), w = torch::stable::contiguous(W),
               h = torch::stable::contiguous(H);
  Tensor result = torch::stable::new_empty(W, {s.batch}, ScalarType::Double);
  dispatch_floating(W.scalar_type(), [&]<class T>(Type<T>) {
    dispatch_data<T>(X.scalar_type(), [&]<class Data>(Type<Data>) {
      dispatch_loss(beta_loss, [&]<Loss loss>(LossType<loss>) {
        const Batch<const T, Data> batch{x.const_data_ptr<Data>(), w.const_data_ptr<T>(),
                                         h.const_data_ptr<T>(), s};
        divergences<loss>(batch, beta_loss, result.mutable_data_ptr<double>());
      });
    });
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("nnmf_divergence", TORCH_BOX(&nnmf_divergence_cpu));
}

}  // namespace nnmf_cuda
