// ISA source (see isa.h): the beta-divergence of sparse X, in float64. What W H puts where X is
// zero is its sum over all places, which the sums of the factors tell, less that at the non-zeros.
// clang-format off: each builds on those before it
#include "../../nnmf/cpu/divergence.h"
#include "rows.h"
#include "problem.h"
// clang-format on

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

constexpr int64_t kSparseRows = 128;  // rows of one task

// What the non-zeros of some rows add up to.
struct EntrySums {
  double divergence;
  double of_product;  // W H for Kullback-Leibler, its square for Frobenius
};

template <Loss loss, int64_t held, class T, class Index>
EntrySums sums_of_entries(const SparseParams<T, Index>& p, const T* W,
                          const TransposedFactor<double>& H_, double floor, int64_t begin,
                          int64_t end) {
  using V = Vector<double>;
  const FactorRows<double> H = H_.rows();
  const int64_t k = p.shape.n_components;
  const Scratch<double> w(H.vectors * V::kLanes);
  w.fill(0);
  typename V::Lanes divergence{}, of_product{};
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t r = 0; r < k; ++r) w.data()[r] = static_cast<double>(W[row * k + r]);
    const int64_t last = p.crow[row + 1];
    for (int64_t at = p.crow[row]; at < last; at += kBlock) {
      const int64_t count = std::min(kBlock, last - at);
      double x[kBlock], wh[kBlock];
      for (int64_t i = 0; i < count; ++i) x[i] = static_cast<double>(p.values[at + i]);
      std::fill(x + count, x + blocks_of(count, V::kLanes) * V::kLanes, 0.0);
      products<held>(w.data(), H, p.col + at, count, wh);
      for (int64_t i = 0; i < count; i += V::kLanes) {
        const typename V::Lanes product = V::load(wh + i);
        divergence += divergence_terms<loss, double>(V::load(x + i), product, floor);
        of_product += loss == Loss::kFrobenius ? product * product : product;
      }
    }
  }
  return {V::sum(divergence), V::sum(of_product)};
}

// The sum of W H over all places, for Frobenius that of its squares.
template <Loss loss, class T>
double sum_of_product(const T* W, const T* H, const SparseShape& s) {
  const int64_t k = s.n_components;
  const Scratch<double> of_W(k * k), of_H(k * k);
  of_W.fill(0);
  for (int64_t row = 0; row < s.n_samples; ++row) {
    const T* w = W + row * k;
    for (int64_t r = 0; r < k; ++r)
      if constexpr (loss == Loss::kFrobenius)
        for (int64_t t = 0; t < k; ++t)
          of_W.data()[r * k + t] += static_cast<double>(w[r]) * static_cast<double>(w[t]);
      else
        of_W.data()[r] += static_cast<double>(w[r]);
  }
  parallel_for_each(k, [&](int64_t r) {
    const T* h = H + r * s.n_features;
    if constexpr (loss == Loss::kFrobenius) {
      for (int64_t t = 0; t < k; ++t) {
        const T* other = H + t * s.n_features;
        double sum = 0;
        for (int64_t c = 0; c < s.n_features; ++c)
          sum += static_cast<double>(h[c]) * static_cast<double>(other[c]);
        of_H.data()[r * k + t] = sum;
      }
    } else {
      double sum = 0;
      for (int64_t c = 0; c < s.n_features; ++c) sum += static_cast<double>(h[c]);
      of_H.data()[r] = sum;
    }
  });
  const int64_t size = loss == Loss::kFrobenius ? k * k : k;
  return std::inner_product(of_W.data(), of_W + size, of_H.data(), 0.0);
}

// Kullback-Leibler and Frobenius.
template <Loss loss, class T, class Index>
double divergence_of_entries(const SparseParams<T, Index>& p, const T* W, const T* H,
                             const TermRule<double>& rule) {
  const int64_t n_tasks = blocks_of(p.shape.n_samples, kSparseRows);
  const TransposedFactor<double> transposed(p.shape, H);
  const Scratch<EntrySums> parts(n_tasks);
  parallel_for_each(n_tasks, [&](int64_t task) {
    const int64_t begin = task * kSparseRows;
    with_held(transposed.rows().vectors, [&]<int64_t held>() {
      parts.data()[task] = sums_of_entries<loss, held>(
          p, W, transposed, rule.floor, begin, std::min(begin + kSparseRows, p.shape.n_samples));
    });
  });
  double divergence = 0, elsewhere = sum_of_product<loss>(W, H, p.shape);
  for (int64_t task = 0; task < n_tasks; ++task) {
    divergence += parts.data()[task].divergence;
    elsewhere -= parts.data()[task].of_product;
  }
  elsewhere = elsewhere < 0 ? 0 : elsewhere;  // rounding; NaN stays
  return divergence + (loss == Loss::kFrobenius ? 0.5 : 1.0) * elsewhere;
}

// Other losses need W H everywhere: a few rows of X at a time are made dense.
template <Loss loss, class T, class Index>
double divergence_of_dense_rows(const SparseParams<T, Index>& p, const T* W, const T* H,
                                const TermRule<double>& rule) {
  constexpr int64_t kDense = 4 * kDivergenceRows;
  const int64_t n = p.shape.n_samples, f = p.shape.n_features, k = p.shape.n_components;
  const DenseRows<T, Index> dense(p, kDense);
  Problem<T, T> part(dense.data(), f, const_cast<T*>(W), H, Shape{1, kDense, f, k, 0, f});
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kDense) {
    const int64_t rows = std::min(kDense, n - begin), n_panels = blocks_of(rows, kRows);
    part.W = const_cast<T*>(W) + begin * k;
    dense.fill(begin, begin + rows);
    const Scratch<double> parts(n_panels);
    parallel_for_each(n_panels, [&](int64_t panel) {
      parts.data()[panel] =
          rows_divergence<loss>(part, rule, panel * kRows, std::min((panel + 1) * kRows, rows));
    });
    total += std::accumulate(parts.data(), parts + n_panels, 0.0);
    dense.clear(begin, begin + rows);
  }
  return total;
}

// One number per problem.
template <Loss loss, class T, class Index>
void sparse_divergences(const SparseParams<T, Index>& p, const TermRule<double>& rule,
                        double* result) {
  const SparseShape& s = p.shape;
  check_csr(p);
  for_each_sparse_problem(s, [&](int64_t b) {
    const T* W = p.W + b * s.n_samples * s.n_components;
    const T* H = p.H + b * s.n_components * s.n_features;
    if constexpr (loss == Loss::kFrobenius || loss == Loss::kKullbackLeibler)
      result[b] = divergence_of_entries<loss>(p, W, H, rule);
    else
      result[b] = divergence_of_dense_rows<loss>(p, W, H, rule);
  });
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
