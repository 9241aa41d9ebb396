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
                          const FactorRows<double, T>& H, double floor, int64_t begin,
                          int64_t end) {
  using V = Vector<double>;
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

constexpr int64_t kFactorRows = 2048;  // of a factor, which one task sums

// The sums of a factor's components, for Frobenius their inner products [k][k], both padded to
// whole vectors. `rows` are `stride` apart.
template <Loss loss, class T>
Scratch<double> sums_of_factor(const T* rows, int64_t n_rows, int64_t stride, int64_t k) {
  using V = Vector<double>;
  const int64_t vectors = blocks_of(k, V::kLanes), padded = vectors * V::kLanes;
  const int64_t size = (loss == Loss::kFrobenius ? k : 1) * padded;
  const int64_t n_parts = blocks_of(n_rows, kFactorRows);
  const Scratch<double> parts(n_parts * size);
  parts.fill(0);
  parallel_for_each(n_parts, [&](int64_t part) {
    const Scratch<double> wide(padded);
    wide.fill(0);
    const int64_t end = std::min((part + 1) * kFactorRows, n_rows);
    for (int64_t row = part * kFactorRows; row < end; ++row) {
      for (int64_t r = 0; r < k; ++r) wide.data()[r] = static_cast<double>(rows[row * stride + r]);
      double* to = parts + part * size;
      const auto add = [&](double factor) {
        for (int64_t v = 0; v < vectors; ++v, to += V::kLanes)
          V::store(to, V::load(to) + factor * V::load(wide + v * V::kLanes));
      };
      if constexpr (loss == Loss::kFrobenius)
        for (int64_t r = 0; r < k; ++r) add(wide.data()[r]);
      else
        add(1);
    }
  });
  Scratch<double> result(size);
  result.fill(0);
  for (int64_t part = 0; part < n_parts; ++part)
    for (int64_t i = 0; i < size; ++i) result.data()[i] += parts.data()[part * size + i];
  return result;
}

// The sum of W H over all places, for Frobenius that of its squares; H by rows of features.
template <Loss loss, class T>
double sum_of_product(const T* W, const FactorRows<double, T>& H, const SparseShape& s) {
  const int64_t k = s.n_components, padded = H.vectors * Vector<double>::kLanes;
  const Scratch<double> of_W = sums_of_factor<loss>(W, s.n_samples, k, k);
  const Scratch<double> of_H = sums_of_factor<loss>(H.data, s.n_features, H.stride, k);
  const int64_t size = (loss == Loss::kFrobenius ? k : 1) * padded;
  return std::inner_product(of_W.data(), of_W + size, of_H.data(), 0.0);
}

// Kullback-Leibler and Frobenius.
template <Loss loss, class T, class Index>
double divergence_of_entries(const SparseParams<T, Index>& p, const T* W, const T* H,
                             const TermRule<double>& rule) {
  const int64_t n_tasks = blocks_of(p.shape.n_samples, kSparseRows);
  const TransposedFactor<T> transposed(p.shape, H);
  const FactorRows<double, T> rows = transposed.template rows<double>();
  const Scratch<EntrySums> parts(n_tasks);
  parallel_for_each(n_tasks, [&](int64_t task) {
    const int64_t begin = task * kSparseRows;
    with_held(rows.vectors, [&]<int64_t held>() {
      parts.data()[task] = sums_of_entries<loss, held>(
          p, W, rows, rule.floor, begin, std::min(begin + kSparseRows, p.shape.n_samples));
    });
  });
  double divergence = 0, elsewhere = sum_of_product<loss>(W, rows, p.shape);
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
