// ISA source (see foreach_isa.h): the new values of a block of one factor, [n_components][width]:
// a panel of W transposed, or a tile of H.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// What a block is updated from, besides its own values.
struct Sums {
  const double* numerator;    // [n_components][width]
  const double* denominator;  // the same, where the loss sums it
  const double* statistics;   // of the other factor: see statistics_size
};

// The other factor's components summed [k] for Kullback-Leibler, their inner products [k][k] for
// Frobenius; nothing where the denominator is a sum over W H.
template <Loss loss>
int64_t statistics_size(int64_t n_components) {
  if constexpr (loss == Loss::kKullbackLeibler) return n_components;
  if constexpr (loss == Loss::kFrobenius) return n_components * n_components;
  return 0;
}

// The rule of `updated` (beta_loss.h), which serves CUDA, written so that the compiler vectorises
// it.
template <int64_t width, class T>
NNMF_CUDA_INLINE void multiply_row(T* values, const double* numerator, const double* denominator,
                                   const Update& update) {
  const UpdateRule& rule = update.rule;
  const T l1 = static_cast<T>(rule.l1_reg), l2 = static_cast<T>(rule.l2_reg);
  T ratio[width];
  for (int64_t c = 0; c < width; ++c) {
    const T bottom = static_cast<T>(denominator[c]) + l1 + l2 * values[c];
    ratio[c] = static_cast<T>(numerator[c] * update.scale) /
               (bottom == 0 ? static_cast<T>(kEpsilon) : bottom);
  }
  if (rule.gamma != 1)
    for (int64_t c = 0; c < width; ++c) ratio[c] = std::pow(ratio[c], static_cast<T>(rule.gamma));
  const T smallest = rule.clamp ? static_cast<T>(kClampBelow) : -std::numeric_limits<T>::infinity();
  for (int64_t c = 0; c < width; ++c) {
    const T value = values[c] * ratio[c];
    values[c] = value < smallest ? T{0} : value;
  }
}

// sum[c] = row . block[:][c]
template <int64_t width>
NNMF_CUDA_INLINE void multiply_block(const double* row, const double* block, int64_t n_components,
                                     double* sum) {
  for (int64_t c = 0; c < width; ++c) sum[c] = 0;
  for (int64_t s = 0; s < n_components; ++s)
    for (int64_t c = 0; c < width; ++c) sum[c] += row[s] * block[s * width + c];
}

template <Loss loss, int64_t width, class T>
void update_multiplicatively(T* values, const Sums& sums, const Update& update,
                             int64_t n_components, double* old) {
  double denominator[width];
  if constexpr (loss == Loss::kFrobenius)
    for (int64_t i = 0; i < n_components * width; ++i) old[i] = static_cast<double>(values[i]);
  for (int64_t r = 0; r < n_components; ++r) {
    const double* bottom = denominator;
    if constexpr (kSumsDenominator<loss>) {
      bottom = sums.denominator + r * width;
    } else if constexpr (loss == Loss::kFrobenius) {
      multiply_block<width>(sums.statistics + r * n_components, old, n_components, denominator);
    } else {
      const double sum = sums.statistics[r];
      std::fill_n(denominator, width, sum == 0 ? update.zero_sum : sum);
    }
    multiply_row<width>(values + r * width, sums.numerator + r * width, bottom, update);
  }
}

// Coordinate descent on half the squared Frobenius norm, component by component, as scikit-learn's
// `cd` solver (sklearn/decomposition/_cdnmf_fast.pyx).
template <int64_t width, class T>
void update_by_coordinates(T* values, const Sums& sums, const Update& update, int64_t n_components,
                           double* current) {
  const double l1 = update.rule.l1_reg, l2 = update.rule.l2_reg;
  double gradient[width];
  for (int64_t i = 0; i < n_components * width; ++i) current[i] = static_cast<double>(values[i]);
  for (int64_t sweep = 0; sweep < update.n_inner; ++sweep) {
    for (int64_t r = 0; r < n_components; ++r) {
      const double* gram = sums.statistics + r * n_components;
      const double curvature = gram[r] + l2;
      if (curvature == 0) continue;
      const double step = 1 / curvature;
      multiply_block<width>(gram, current, n_components, gradient);
      double* own = current + r * width;
      for (int64_t c = 0; c < width; ++c) {
        const double slope =
            gradient[c] + l2 * own[c] + l1 - sums.numerator[r * width + c] * update.scale;
        const double moved = own[c] - slope * step;
        own[c] = moved < 0 ? 0 : moved;
      }
    }
  }
  for (int64_t i = 0; i < n_components * width; ++i) values[i] = static_cast<T>(current[i]);
}

// `work`: n_components * width values.
template <Loss loss, int64_t width, class T>
void update_block(T* values, const Sums& sums, const Update& update, int64_t n_components,
                  double* work) {
  if constexpr (loss == Loss::kFrobenius)
    if (update.n_inner > 0)
      return update_by_coordinates<width>(values, sums, update, n_components, work);
  update_multiplicatively<loss, width>(values, sums, update, n_components, work);
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
