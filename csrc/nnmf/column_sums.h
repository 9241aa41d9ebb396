// ISA source (see foreach_isa.h): the sums over samples that an update of H needs.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

constexpr int64_t kGroupRows = 16;   // rows whose terms are in memory together
constexpr int64_t kFlushRows = 256;  // rows after which the sums go on in float64
static_assert(kGroupRows % kRows == 0 && kFlushRows % kGroupRows == 0);

// One factorisation while it is iterated.
template <class T, class Data>
struct Factors : Problem<T, Data> {
  Factors(const Data* X, int64_t x_stride, T* W, const T* H, const Shape& s, bool sums_denominator)
      : Problem<T, Data>(X, x_stride, W, H, s),
        numerator(this->n_tiles * this->tile_size),
        denominator(sums_denominator ? this->n_tiles * this->tile_size : 0) {}

  Scratch<double> numerator, denominator;  // of H, packed like it
};

// Sums of rows of X with W in the tiles [first, last) of H, added to the factorisation's in
// float64.
template <Loss loss, class T, class Data>
class ColumnSums {
 public:
  ColumnSums(const Factors<T, Data>& f, int64_t first, int64_t last, T beta_loss)
      : f_(f),
        first_(first),
        last_(last),
        size_((last - first) * f.tile_size),
        beta_loss_(beta_loss),
        padded_(kRows * f.n_components),
        edge_(kRows * kColumns<T>),
        terms_(kGroupRows * kTermsStride<T>),
        terms_below_(kSumsDenominator<loss> ? kGroupRows * kTermsStride<T> : 0),
        sums_(size_),
        sums_below_(kSumsDenominator<loss> ? size_ : 0) {}

  // `begin` is a multiple of kFlushRows: where float64 sets in depends on the row alone.
  void add_rows(int64_t begin, int64_t end) {
    sums_.fill(0);
    sums_below_.fill(0);
    int64_t rows;
    for (int64_t row = begin; row < end; row += rows) {
      // Full panels together; the last, where it is not full, alone.
      rows = std::min(kGroupRows, end - row);
      rows = rows < kRows ? rows : rows / kRows * kRows;
      add_group(row, rows);
      if ((row + rows) % kFlushRows != 0 && row + rows != end) continue;
      flush(sums_.data(), f_.numerator + first_ * f_.tile_size);
      if constexpr (kSumsDenominator<loss>)
        flush(sums_below_.data(), f_.denominator + first_ * f_.tile_size);
    }
  }

 private:
  void add_group(int64_t row, int64_t rows) {
    const Left<T> left = left_of(f_, row, std::min(rows, kRows), padded_.data());
    for (int64_t chunk = first_; chunk < last_; chunk += kChunkTiles) {
      const int64_t end = std::min(chunk + kChunkTiles, last_);
      // What is read next: further right, or the rows below.
      const int64_t ahead =
          end < last_ ? kTermsStride<T> : rows * f_.x_stride - (chunk - first_) * kColumns<T>;
      if constexpr (kReadsX<loss, T, Data>) {
        if (rows >= kRows && end * kColumns<T> <= f_.n_features) {
          add_uncopied(left, row, rows, chunk, end, ahead);
          continue;
        }
      }
      add_terms(left, row, rows, chunk, end, ahead);
    }
  }

  // Tiles [chunk, end) of X itself.
  void add_uncopied(const Left<T>& left, int64_t row, int64_t rows, int64_t chunk, int64_t end,
                    int64_t ahead) {
    for (int64_t tile = chunk; tile < end; ++tile) {
      const auto* x = reinterpret_cast<const T*>(f_.X) + row * f_.x_stride + tile * kColumns<T>;
      bool zero = true;
      for (int64_t i = 0; i < rows; i += kRows) {
        prefetch<T, true>(x + i * f_.x_stride + ahead, f_.x_stride);
        zero = zero && all_zero<T>(x + i * f_.x_stride, f_.x_stride);
      }
      if (!zero)
        add_column_sums(x, f_.x_stride, rows, left.data, left.stride, f_.n_components,
                        sums_ + (tile - first_) * f_.tile_size);
    }
  }

  void add_terms(const Left<T>& left, int64_t row, int64_t rows, int64_t chunk, int64_t end,
                 int64_t ahead) {
    const int64_t k = f_.n_components, padded_rows = std::max(rows, kRows);
    bool zero[kChunkTiles];
    std::fill_n(zero, kChunkTiles, true);
    for (int64_t i = 0; i < rows; i += kRows) {
      for (int64_t tile = chunk; tile < end; ++tile) {
        const auto x = panel_of(f_, {left.data + i * left.stride, left.stride}, row + i,
                                std::min(rows - i, kRows), tile, ahead, edge_.data());
        const int64_t to = i * kTermsStride<T> + (tile - chunk) * kColumns<T>;
        if (!kSumsDenominator<loss> && all_zero<T>(x.x, x.x_stride)) {
          clear_tile(terms_ + to);
          continue;
        }
        zero[tile - chunk] = false;
        form_terms<loss>(x, f_.tiles + tile * f_.tile_size, k, beta_loss_, terms_ + to,
                         terms_below_ + to, kTermsStride<T>);
      }
    }
    for (int64_t tile = chunk; tile < end; ++tile) {
      if (zero[tile - chunk]) continue;
      const int64_t from = (tile - chunk) * kColumns<T>, to = (tile - first_) * f_.tile_size;
      add_column_sums(terms_ + from, kTermsStride<T>, padded_rows, left.data, left.stride, k,
                      sums_ + to);
      if constexpr (kSumsDenominator<loss>)
        add_column_sums(terms_below_ + from, kTermsStride<T>, padded_rows, left.data, left.stride,
                        k, sums_below_ + to);
    }
  }

  static void clear_tile(T* terms) {
    for (int64_t i = 0; i < kRows; ++i) std::fill_n(terms + i * kTermsStride<T>, kColumns<T>, T{0});
  }

  // totals += sums, then sums = 0
  void flush(T* sums, double* totals) const {
    for (int64_t i = 0; i < size_; ++i) totals[i] += static_cast<double>(sums[i]);
    std::fill_n(sums, size_, T{0});
  }

  const Factors<T, Data>& f_;
  int64_t first_, last_, size_;
  T beta_loss_;
  Scratch<T> padded_;
  Scratch<Data> edge_;
  Scratch<T> terms_, terms_below_, sums_, sums_below_;
};

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
