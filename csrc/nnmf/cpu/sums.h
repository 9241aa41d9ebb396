// ISA source (see isa.h): what an update or a projection needs of X, in one pass over it: terms,
// tile by tile, and their sums over features (for W) and over samples (for H). The formulas are
// those of problem.h; pixels count from 0 to 255 here, and whoever uses a numerator divides it by
// 255 once.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// The denominator of Kullback-Leibler and Frobenius needs no W H.
template <Loss loss>
constexpr bool kSumsDenominator = loss == Loss::kItakuraSaito || loss == Loss::kGeneral;

// Whether a panel holds exact zeros alone, which add nothing to a numerator while W H is finite.
// Data without zeros pay for the look at one entry.
template <class T, class Data>
NNMF_CUDA_INLINE bool all_zero(const Data* x, int64_t x_stride) {
  if (*x != 0) return false;
  constexpr int64_t kBytes = kColumns<T> * int64_t{sizeof(Data)};
  using Word = std::conditional_t<kBytes % 4 == 0, uint32_t, uint16_t>;
  constexpr int64_t kWords = kBytes / int64_t{sizeof(Word)};
  static_assert(kWords * int64_t{sizeof(Word)} == kBytes);
  uint32_t any = 0;
  for (int64_t i = 0; i < kRows; ++i) {
    Word words[kWords];
    __builtin_memcpy(words, x + i * x_stride, sizeof(words));
    for (int64_t w = 0; w < kWords; ++w) any |= words[w];
  }
  return any == 0;
}

// numerator = X (W H)^(beta_loss - 2), denominator = (W H)^(beta_loss - 1), one tile of each.
template <Loss loss, class T, class Data>
[[gnu::noinline]] void form_terms(const Panel<T, Data>& p, const T* right, int64_t n_components,
                                  const TermRule<T>& rule, T* numerator, T* denominator,
                                  int64_t stride) {
  using V = Vector<T>;
  prefetch<T, true>(p.ahead, p.x_stride);
  if constexpr (loss == Loss::kFrobenius) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < kRows; ++i)
#pragma GCC unroll 3
      for (int64_t v = 0; v < kVectors; ++v)
        V::store(numerator + i * stride + v * V::kLanes,
                 V::load(p.x + i * p.x_stride + v * V::kLanes));
    return;
  }
  prefetch<T, false>(p.x, p.x_stride);
  typename V::Lanes wh[kRows][kVectors];
  multiply(p.left.data, p.left.stride, right, n_components, wh);
  if constexpr (loss == Loss::kGeneral) {
    for (int64_t i = 0; i < kRows; ++i)
      for (int64_t v = 0; v < kVectors; ++v) {
        T values[V::kLanes];
        V::store(values, wh[i][v]);
        for (int64_t l = 0; l < V::kLanes; ++l) {
          const int64_t c = v * V::kLanes + l;
          // In the padding W H is zero: to a very negative power infinite, times zero NaN.
          const bool valid = i < p.rows && c < p.columns;
          const T x = static_cast<T>(p.x[i * p.x_stride + c]);
          numerator[i * stride + c] = valid ? numerator_term<loss>(x, values[l], rule) : T{0};
          denominator[i * stride + c] = valid ? denominator_term<loss>(values[l], rule) : T{0};
        }
      }
    return;
  }
  const typename V::Lanes floor = V::broadcast(rule.floor);
#pragma GCC unroll 8
  for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 3
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t c = v * V::kLanes;
      const typename V::Lanes x = V::load(p.x + i * p.x_stride + c);
      typename V::Lanes term;
      if constexpr (loss == Loss::kKullbackLeibler) {
        term = V::divide(x, V::max(floor, wh[i][v]));
      } else {
        const typename V::Lanes inverse = V::divide(V::broadcast(T{1}), V::max(floor, wh[i][v]));
        term = x * inverse * inverse;
        V::store(denominator + i * stride + c, inverse);
      }
      V::store(numerator + i * stride + c, term);
    }
  }
}

constexpr int64_t kChunkTiles = 8;    // tiles whose terms are in memory together
constexpr int64_t kFlushTiles = 256;  // tiles after which lanes are added up in float64

template <class T>
constexpr int64_t kTermsStride = kChunkTiles * kColumns<T>;

// The numerators of Frobenius sum X itself: full panels are not copied.
template <Loss loss>
constexpr bool kReadsX = loss == Loss::kFrobenius;

// Sums of the rows [begin, end) of X with H, panel by panel [n_components][kRows], in float64.
template <Loss loss, class T, class Data>
class RowSums {
 public:
  RowSums(const Problem<T, Data>& problem, int64_t begin, int64_t end)
      : p_(problem),
        begin_(begin),
        end_(end),
        n_panels_(blocks_of(end - begin, kRows)),
        panel_size_(problem.n_components * kRows),
        padded_(panel_size_),
        edge_(kRows * kColumns<T>),
        terms_(kRows * kTermsStride<T>),
        terms_below_(kSumsDenominator<loss> ? kRows * kTermsStride<T> : 0),
        lanes_(n_panels_ * panel_size_ * Vector<T>::kLanes),
        lanes_below_(kSumsDenominator<loss> ? n_panels_ * panel_size_ * Vector<T>::kLanes : 0),
        numerator_(n_panels_ * panel_size_),
        denominator_(kSumsDenominator<loss> ? n_panels_ * panel_size_ : 0) {}

  void compute(const TermRule<T>& rule) {
    lanes_.fill(0);
    numerator_.fill(0);
    if constexpr (kSumsDenominator<loss>) {
      lanes_below_.fill(0);
      denominator_.fill(0);
    }
    for (int64_t first = 0; first < p_.n_tiles; first += kChunkTiles) {
      const int64_t last = std::min(first + kChunkTiles, p_.n_tiles);
      for (int64_t panel = 0; panel < n_panels_; ++panel) add_chunk(panel, first, last, rule);
      if (last % kFlushTiles == 0 || last == p_.n_tiles) {
        flush_lanes(lanes_.data(), n_panels_ * panel_size_, numerator_.data());
        if constexpr (kSumsDenominator<loss>)
          flush_lanes(lanes_below_.data(), n_panels_ * panel_size_, denominator_.data());
      }
    }
  }

  const double* numerator(int64_t panel) const { return numerator_ + panel * panel_size_; }
  const double* denominator(int64_t panel) const { return denominator_ + panel * panel_size_; }

 private:
  void add_chunk(int64_t panel, int64_t first, int64_t last, const TermRule<T>& rule) {
    const int64_t row = begin_ + panel * kRows, rows = std::min(kRows, end_ - row);
    const int64_t at = panel * panel_size_ * Vector<T>::kLanes;
    if constexpr (kReadsX<loss>) {
      if (rows == kRows && last * kColumns<T> <= p_.n_features)
        return add_entries(row, first, last, lanes_ + at);
    }
    add_terms(row, rows, first, last, rule, lanes_ + at, lanes_below_ + at);
  }

  // Tiles [first, last) of X itself. Tiles of zeros part them into runs.
  void add_entries(int64_t row, int64_t first, int64_t last, T* lanes) {
    const Data* x = p_.X + row * p_.x_stride;
    const RowsAhead<Data> ahead{x + kTermsStride<T>, p_.x_stride};
    ahead.right(first * kColumns<T> + kTermsStride<T>).fetch_pages(kRows);
    int64_t run = first;
    for (int64_t tile = first; tile <= last; ++tile) {
      if (tile < last && !all_zero<T>(x + tile * kColumns<T>, p_.x_stride)) continue;
      if (tile > run)
        add_row_sums<kApart>(x + run * kColumns<T>, p_.x_stride, tile - run,
                             p_.tiles + run * p_.tile_size, p_.n_components, lanes,
                             ahead.right(run * kColumns<T>));
      run = tile + 1;
    }
  }

  void add_terms(int64_t row, int64_t rows, int64_t first, int64_t last, const TermRule<T>& rule,
                 T* lanes, T* lanes_below) {
    Left<T> left{};
    if constexpr (loss != Loss::kFrobenius) left = left_of(p_, row, rows, padded_.data());
    int64_t run = first;
    for (int64_t tile = first; tile <= last; ++tile) {
      const int64_t to = (tile - first) * kColumns<T>;
      if (tile < last) {
        const auto x = panel_of(p_, left, row, rows, tile, kTermsStride<T>, edge_.data());
        if (kSumsDenominator<loss> || !all_zero<T>(x.x, x.x_stride)) {
          form_terms<loss>(x, p_.tiles + tile * p_.tile_size, p_.n_components, rule, terms_ + to,
                           terms_below_ + to, kTermsStride<T>);
          continue;
        }
      }
      if (tile > run) add_run(run, tile, (run - first) * kColumns<T>, lanes, lanes_below);
      run = tile + 1;
    }
  }

  void add_run(int64_t run, int64_t end, int64_t from, T* lanes, T* lanes_below) {
    const T* right = p_.tiles + run * p_.tile_size;
    const int64_t n_tiles = end - run, k = p_.n_components;
    add_row_sums<kRows>(terms_ + from, kTermsStride<T>, n_tiles, right, k, lanes);
    if constexpr (kSumsDenominator<loss>)
      add_row_sums<kRows>(terms_below_ + from, kTermsStride<T>, n_tiles, right, k, lanes_below);
  }

  const Problem<T, Data>& p_;
  int64_t begin_, end_, n_panels_, panel_size_;
  Scratch<T> padded_;
  Scratch<Data> edge_;
  Scratch<T> terms_, terms_below_, lanes_, lanes_below_;
  Scratch<double> numerator_, denominator_;
};

constexpr int64_t kGroupRows = 16;   // rows whose terms are in memory together
constexpr int64_t kFlushRows = 256;  // rows after which the sums go on in float64
static_assert(kGroupRows % kRows == 0 && kFlushRows % kGroupRows == 0);

// Rows of the next group where that many are left: full panels together; the last, where it is not
// full, alone.
inline int64_t group_rows(int64_t left) {
  const int64_t rows = std::min(kGroupRows, left);
  return rows < kRows ? rows : rows / kRows * kRows;
}

// totals += sums, then sums = 0
template <class T>
void flush(T* sums, int64_t size, double* totals) {
  for (int64_t i = 0; i < size; ++i) totals[i] += static_cast<double>(sums[i]);
  std::fill_n(sums, size, T{0});
}

// One factorisation while it is iterated.
template <class T, class Data>
struct Factorisation : Problem<T, Data> {
  Factorisation(const Data* X, int64_t x_stride, T* W, const T* H, const Shape& s,
                bool sums_denominator)
      : Problem<T, Data>(X, x_stride, W, H, s),
        numerator(this->n_tiles * this->tile_size),
        denominator(sums_denominator ? this->n_tiles * this->tile_size : 0) {}

  void release_sums() {
    numerator.release();
    denominator.release();
  }

  Scratch<double> numerator, denominator;  // of H, packed like it
};

// Sums of rows of X with W in the tiles [first, last) of H, added to the factorisation's in
// float64.
template <Loss loss, class T, class Data>
class ColumnSums {
 public:
  ColumnSums(const Factorisation<T, Data>& f, int64_t first, int64_t last, const TermRule<T>& rule)
      : f_(f),
        first_(first),
        last_(last),
        size_((last - first) * f.tile_size),
        rule_(rule),
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
      rows = group_rows(end - row);
      add_group(row, rows);
      if ((row + rows) % kFlushRows != 0 && row + rows != end) continue;
      flush(sums_.data(), size_, f_.numerator + first_ * f_.tile_size);
      if constexpr (kSumsDenominator<loss>)
        flush(sums_below_.data(), size_, f_.denominator + first_ * f_.tile_size);
    }
  }

 private:
  void add_group(int64_t row, int64_t rows) {
    const Left<T> left = left_of(f_, row, std::min(rows, kRows), padded_.data());
    for (int64_t chunk = first_; chunk < last_; chunk += kChunkTiles) {
      const int64_t end = std::min(chunk + kChunkTiles, last_);
      if constexpr (kReadsX<loss>) {
        if (rows >= kRows && end * kColumns<T> <= f_.n_features) {
          add_entries(left, row, rows, chunk, end);
          continue;
        }
      }
      add_terms(left, row, rows, chunk, end, ahead_of(chunk, rows, 1));
    }
  }

  // Where the entries are that are read `further` chunks after those of `chunk`, from there:
  // further right, or in the rows below.
  int64_t ahead_of(int64_t chunk, int64_t rows, int64_t further) const {
    const int64_t n_chunks = blocks_of(last_ - first_, kChunkTiles);
    const int64_t index = (chunk - first_) / kChunkTiles, later = index + further;
    return later / n_chunks * rows * f_.x_stride + (later % n_chunks - index) * kTermsStride<T>;
  }

  // Tiles [chunk, end) of X itself.
  void add_entries(const Left<T>& left, int64_t row, int64_t rows, int64_t chunk, int64_t end) {
    const Data* x = f_.X + row * f_.x_stride;
    const RowsAhead<Data> here{x, f_.x_stride};
    here.right(chunk * kColumns<T> + ahead_of(chunk, rows, 2)).fetch_pages(rows);
    const RowsAhead<Data> ahead = here.right(ahead_of(chunk, rows, 1));
    for (int64_t tile = chunk; tile < end; ++tile) {
      const int64_t column = tile * kColumns<T>;
      bool zero = true;
      for (int64_t i = 0; i < rows; i += kRows)
        zero = zero && all_zero<T>(x + i * f_.x_stride + column, f_.x_stride);
      if (!zero)
        add_column_sums(x + column, f_.x_stride, rows, left.data, left.stride, f_.n_components,
                        sums_ + (tile - first_) * f_.tile_size, ahead.right(column));
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
        form_terms<loss>(x, f_.tiles + tile * f_.tile_size, k, rule_, terms_ + to,
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

  const Factorisation<T, Data>& f_;
  int64_t first_, last_, size_;
  TermRule<T> rule_;
  Scratch<T> padded_;
  Scratch<Data> edge_;
  Scratch<T> terms_, terms_below_, sums_, sums_below_;
};

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
