// ISA source (see foreach_isa.h): the halves of an iteration, a few rows of W or tiles of H at a
// time.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

constexpr int64_t kTaskRows = 16;  // rows of W that one task updates
static_assert(kTaskRows % kRows == 0);

// Updates rows [begin, end) of W, `n_iter` times.
template <Loss loss, class T, class Data>
void update_rows(const Factors<T, Data>& f, const double* statistics, const Update& update,
                 int64_t n_iter, int64_t begin, int64_t end) {
  const int64_t k = f.n_components;
  RowSums<loss, T, Data> sums(f, begin, end);
  Scratch<T> block(k * kRows);
  Scratch<double> work(k * kRows);
  for (int64_t iteration = 0; iteration < n_iter; ++iteration) {
    sums.compute(static_cast<T>(update.beta_loss));
    for (int64_t row = begin, panel = 0; row < end; row += kRows, ++panel) {
      const int64_t rows = std::min(kRows, end - row);
      for (int64_t r = 0; r < k; ++r)
        for (int64_t i = 0; i < kRows; ++i)
          block.data()[r * kRows + i] = i < rows ? f.W[(row + i) * k + r] : T{0};
      const Sums panel_sums{sums.numerator(panel), sums.denominator(panel), statistics};
      update_block<loss, kRows>(block.data(), panel_sums, update, k, work.data());
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t r = 0; r < k; ++r) f.W[(row + i) * k + r] = block.data()[r * kRows + i];
    }
  }
}

// Updates tiles [first, last) of H from their sums, which become zero.
template <Loss loss, class T, class Data>
void update_columns(const Factors<T, Data>& f, const double* statistics, const Update& update,
                    int64_t first, int64_t last) {
  Scratch<double> work(f.tile_size);
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t at = tile * f.tile_size;
    const Sums sums{f.numerator + at, f.denominator + at, statistics};
    T* values = f.tiles + at;
    update_block<loss, kColumns<T>>(values, sums, update, f.n_components, work.data());
    const int64_t columns = f.columns_of(tile);
    for (int64_t r = 0; columns < kColumns<T> && r < f.n_components; ++r)
      std::fill_n(values + r * kColumns<T> + columns, kColumns<T> - columns, T{0});
    std::fill_n(f.numerator + at, f.tile_size, 0.0);
    if constexpr (kSumsDenominator<loss>) std::fill_n(f.denominator + at, f.tile_size, 0.0);
  }
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
