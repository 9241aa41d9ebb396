// ISA source (see isa.h): the products of X and H, and rows solved while theirs are in cache.
// clang-format off: each builds on those before it
#include "../../nnmf/cpu/tiles.h"
#include "../../nnmf/cpu/sums.h"
#include "free_factor.h"
#include "one_row.h"
#include "active_set.h"
// clang-format on

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// cross [end - begin, n_components] = scale * X H^T, for some rows of X.
template <class T, class Data>
void cross_products(const Problem<T, Data>& p, int64_t begin, int64_t end, double scale,
                    double* cross) {
  RowSums<Loss::kFrobenius, T, Data> sums(p, begin, end);
  sums.compute({});
  for (int64_t row = 0; row < end - begin; ++row) {
    const double* from = sums.numerator(row / kRows) + row % kRows;
    for (int64_t r = 0; r < p.n_components; ++r)
      cross[row * p.n_components + r] = scale * from[r * kRows];
  }
}

// cross [rows, k] = scale * X H^T in float64, for rows of X that are x_stride apart.
template <class Data>
void exact_cross_products(const Data* X, int64_t x_stride, int64_t rows, const double* H,
                          const Shape& s, double scale, double* cross) {
  const int64_t k = s.n_components, f = s.n_features;
  const Scratch<double> x(f);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < f; ++i) x.data()[i] = static_cast<double>(X[row * x_stride + i]);
    for (int64_t r = 0; r < k; ++r)
      cross[row * k + r] = scale * dot_product(x.data(), H + r * f, f);
  }
}

// gram [batch, n_components, n_components] = H H^T.
void gram_matrices(const double* H, const Shape& s, double* gram) {
  const int64_t k = s.n_components, f = s.n_features;
  const Shape rows{s.batch, k, f, k, k * f, f};
  for_each_problem<double>(rows, [&](int64_t b) {
    const Problem<double, double> p(H + b * k * f, f, nullptr, H + b * k * f, rows);
    parallel_for_each(blocks_of(k, kRows), [&](int64_t block) {
      const int64_t begin = block * kRows, end = std::min(begin + kRows, k);
      cross_products(p, begin, end, 1, gram + (b * k + begin) * k);
    });
  });
}

// out [batch, n_samples, n_components] = the minimisers for the rows of X, times scale, with the
// Gram matrices that were made ready in grams [batch, doubles_of_prepared]. `wide` is H in float64,
// where products need it.
template <class T, class Data>
void project_rows(const Data* X, const T* H, const double* wide, const Shape& s, double scale,
                  const double* grams, T* out, const ActiveSets& sets) {
  const int64_t n = s.n_samples, k = s.n_components;
  for_each_problem<Data>(s, [&](int64_t b) {
    const Problem<T, Data> p(X + b * s.x_stride, s.x_row_stride, nullptr, H + b * k * s.n_features,
                             s);
    const Gram gram = PreparedGram::view(grams + b * doubles_of_prepared(k), k);
    const int64_t together = rows_of_task(k, kProjectRows);
    parallel_for_each(blocks_of(n, together), [&](int64_t block) {
      const int64_t begin = block * together, end = std::min(begin + together, n);
      const Scratch<double> cross((end - begin) * k), h((end - begin) * k);
      if (needs_exact_products<T>(s))
        exact_cross_products(p.X + begin * p.x_stride, p.x_stride, end - begin,
                             wide + b * k * s.n_features, s, scale, cross.data());
      else
        cross_products(p, begin, end, scale, cross.data());
      RowSolver(k).solve(gram, cross.data(), end - begin, h.data(), sets.from(b * n + begin, k));
      std::copy_n(h.data(), (end - begin) * k, out + (b * n + begin) * k);
    });
  });
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
