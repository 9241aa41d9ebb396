// ISA source (see foreach_isa.h): one pass over X for each half of an iteration.
//
// Both halves form a few tiles of terms (the quotient X / (W H), say) in memory that stays in the
// first cache, and fold them into sums at once; W H is never held. Sums are taken in T over short
// stretches and added up in float64. Where a stretch ends depends on the sizes alone, so results do
// not depend on the number of threads.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

constexpr int64_t kTaskRows = 16;    // rows of W that one task updates
constexpr int64_t kGroupRows = 16;   // rows whose terms are in memory together
constexpr int64_t kFlushRows = 256;  // rows after which column sums go on in float64
static_assert(kTaskRows % kRows == 0 && kGroupRows % kRows == 0 && kFlushRows % kGroupRows == 0);

// One factorisation while it is iterated.
template <class T, class Data>
struct Factors : Problem<T, Data> {
  Factors(const Data* X, int64_t x_stride, T* W, const T* H, const Shape& s, bool sums_denominator)
      : Problem<T, Data>(X, x_stride, W, H, s),
        numerator(this->n_tiles * this->tile_size),
        denominator(sums_denominator ? this->n_tiles * this->tile_size : 0) {}

  Scratch<double> numerator, denominator;  // of H, packed like it
};

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

// totals += sums, then sums = 0
template <class T>
NNMF_CUDA_INLINE void flush(T* sums, int64_t size, double* totals) {
  for (int64_t i = 0; i < size; ++i) totals[i] += static_cast<double>(sums[i]);
  std::fill_n(sums, size, T{0});
}

// Adds what rows [begin, end) give to the sums of H in tiles [first, last). `begin` is a multiple
// of kFlushRows.
template <Loss loss, class T, class Data>
void add_columns(const Factors<T, Data>& f, T beta_loss, int64_t begin, int64_t end, int64_t first,
                 int64_t last) {
  const int64_t k = f.n_components, size = (last - first) * f.tile_size;
  const Scratch<T> padded(kRows * k), terms(kGroupRows * kTermsStride<T>),
      terms_below(kSumsDenominator<loss> ? kGroupRows * kTermsStride<T> : 0), sums(size),
      sums_below(kSumsDenominator<loss> ? size : 0);
  const Scratch<Data> edge(kRows * kColumns<T>);
  sums.fill(0);
  sums_below.fill(0);
  int64_t rows;
  for (int64_t row = begin; row < end; row += rows) {
    // Full panels together; the last, where it is not full, alone.
    rows = std::min(kGroupRows, end - row);
    rows = rows < kRows ? rows : rows / kRows * kRows;
    const Left<T> left = left_of(f, row, std::min(rows, kRows), padded.data());
    const int64_t padded_rows = std::max(rows, kRows);
    for (int64_t chunk = first; chunk < last; chunk += kChunkTiles) {
      const int64_t chunk_end = std::min(chunk + kChunkTiles, last);
      const int64_t ahead =
          chunk_end < last ? kTermsStride<T> : rows * f.x_stride - (chunk - first) * kColumns<T>;
      if constexpr (kReadsX<loss, T, Data>) {
        if (rows >= kRows && chunk_end * kColumns<T> <= f.n_features) {
          const T* x = f.X + row * f.x_stride + chunk * kColumns<T>;
          for (int64_t tile = chunk; tile < chunk_end; ++tile, x += kColumns<T>) {
            for (int64_t i = 0; i < rows; i += kRows)
              prefetch<T, true>(x + i * f.x_stride + ahead, f.x_stride);
            add_column_sums(x, f.x_stride, rows, left.data, left.stride, k,
                            sums + (tile - first) * f.tile_size);
          }
          continue;
        }
      }
      for (int64_t i = 0; i < rows; i += kRows) {
        for (int64_t tile = chunk; tile < chunk_end; ++tile) {
          const auto p = panel_of(f, {left.data + i * left.stride, left.stride}, row + i,
                                  std::min(rows - i, kRows), tile, ahead, edge.data());
          const int64_t to = i * kTermsStride<T> + (tile - chunk) * kColumns<T>;
          form_terms<loss>(p, f.tiles + tile * f.tile_size, k, beta_loss, terms + to,
                           terms_below + to, kTermsStride<T>);
        }
      }
      for (int64_t tile = chunk; tile < chunk_end; ++tile) {
        const int64_t from = (tile - chunk) * kColumns<T>, to = (tile - first) * f.tile_size;
        add_column_sums(terms + from, kTermsStride<T>, padded_rows, left.data, left.stride, k,
                        sums + to);
        if constexpr (kSumsDenominator<loss>)
          add_column_sums(terms_below + from, kTermsStride<T>, padded_rows, left.data, left.stride,
                          k, sums_below + to);
      }
    }
    if ((row + rows) % kFlushRows == 0 || row + rows == end) {
      flush(sums.data(), size, f.numerator + first * f.tile_size);
      if constexpr (kSumsDenominator<loss>)
        flush(sums_below.data(), size, f.denominator + first * f.tile_size);
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
