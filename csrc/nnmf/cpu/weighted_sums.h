// ISA source (see isa.h): what an update needs of X whose entries have weights, in one pass over
// it: as sums.h, with the weights in each term. Needs weights.h.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// What the denominator of Kullback-Leibler sums is the weights alone: for bits MaskedSums does it,
// at a fraction of the price.
template <Loss loss, class T>
bool sums_denominator(const Weights<T>& weights) {
  return loss != Loss::kKullbackLeibler || weights.values != nullptr;
}

// numerator = V X (W H)^(beta_loss - 2), denominator = V (W H)^(beta_loss - 1), one tile of each;
// no denominator of Kullback-Leibler with bits.
template <Loss loss, bool bits, class T, class Data>
[[gnu::noinline]] void form_weighted_terms(const Panel<T, Data>& p, const TileWeights<T>& weights,
                                           const T* right, int64_t n_components,
                                           const TermRule<T>& rule, T* numerator, T* denominator,
                                           int64_t stride) {
  using V = Vector<T>;
  using Lanes = typename V::Lanes;
  prefetch<T, true>(p.ahead, p.x_stride);
  prefetch<T, false>(p.x, p.x_stride);
  Lanes wh[kRows][kVectors];
  multiply(p.left.data, p.left.stride, right, n_components, wh);
  const Lanes floor = V::broadcast(rule.floor), one = V::broadcast(T{1});
#pragma GCC unroll 8
  for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 3
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t c = v * V::kLanes;
      const Lanes x = V::load(p.x + i * p.x_stride + c);
      Lanes above, below;
      if constexpr (loss == Loss::kFrobenius) {
        above = x;
        below = wh[i][v];
      } else if constexpr (loss == Loss::kKullbackLeibler) {
        above = V::divide(x, V::max(floor, wh[i][v]));
        below = one;
      } else if constexpr (loss == Loss::kItakuraSaito) {
        below = V::divide(one, V::max(floor, wh[i][v]));
        above = x * below * below;
      } else {
        T values[V::kLanes], tops[V::kLanes], bottoms[V::kLanes];
        V::store(values, wh[i][v]);
        for (int64_t l = 0; l < V::kLanes; ++l) {
          tops[l] =
              numerator_term<loss>(static_cast<T>(p.x[i * p.x_stride + c + l]), values[l], rule);
          bottoms[l] = denominator_term<loss>(values[l], rule);
        }
        above = V::load(tops);
        below = V::load(bottoms);
      }
      V::store(numerator + i * stride + c, weighted<bits>(above, weights, i, c));
      if constexpr (loss != Loss::kKullbackLeibler || !bits)
        V::store(denominator + i * stride + c, weighted<bits>(below, weights, i, c));
    }
  }
}

// What both sums of a weighted X need to form terms of a panel in a chunk of tiles, side by side.
template <Loss loss, class T, class Data>
class WeightedTerms {
 public:
  WeightedTerms(const Problem<T, Data>& problem, const Weights<T>& weights, const TermRule<T>& rule)
      : p_(problem),
        weights_(weights),
        rule_(rule),
        below_(sums_denominator<loss>(weights)),
        edge_(kRows * kColumns<T>),
        weights_edge_(kRows * kColumns<T>) {}

  bool below() const { return below_; }

  // Terms of tile `tile` of a panel; `ahead` as in panel_of.
  void form(const Left<T>& left, int64_t row, int64_t rows, int64_t tile, int64_t ahead,
            T* numerator, T* denominator) const {
    const auto x = panel_of(p_, left, row, rows, tile, ahead, edge_.data());
    if (!below_ && all_zero<T>(x.x, x.x_stride)) {
      for (int64_t i = 0; i < kRows; ++i)
        std::fill_n(numerator + i * kTermsStride<T>, kColumns<T>, T{0});
      return;
    }
    const auto v = weights_of(weights_, p_, row, rows, tile, weights_edge_.data());
    const T* right = p_.tiles + tile * p_.tile_size;
    const auto form = v.values == nullptr ? &form_weighted_terms<loss, true, T, Data>
                                          : &form_weighted_terms<loss, false, T, Data>;
    form(x, v, right, p_.n_components, rule_, numerator, denominator, kTermsStride<T>);
  }

 private:
  const Problem<T, Data>& p_;
  const Weights<T>& weights_;
  TermRule<T> rule_;
  bool below_;
  Scratch<Data> edge_;
  Scratch<T> weights_edge_;
};

// Sums of the rows [begin, end) with H, panel by panel [n_components][kRows], in float64.
template <Loss loss, class T, class Data>
class WeightedRowSums {
 public:
  WeightedRowSums(const Problem<T, Data>& problem, const Weights<T>& weights,
                  const TermRule<T>& rule, int64_t begin, int64_t end)
      : p_(problem),
        terms_(problem, weights, rule),
        begin_(begin),
        end_(end),
        n_panels_(blocks_of(end - begin, kRows)),
        panel_size_(problem.n_components * kRows),
        padded_(panel_size_),
        above_(kRows * kTermsStride<T>),
        below_(terms_.below() ? kRows * kTermsStride<T> : 0),
        lanes_(n_panels_ * panel_size_ * Vector<T>::kLanes),
        lanes_below_(terms_.below() ? n_panels_ * panel_size_ * Vector<T>::kLanes : 0),
        numerator_(n_panels_ * panel_size_),
        denominator_(terms_.below() ? n_panels_ * panel_size_ : 0) {}

  void compute() {
    lanes_.fill(0);
    lanes_below_.fill(0);
    numerator_.fill(0);
    denominator_.fill(0);
    const int64_t k = p_.n_components, size = n_panels_ * panel_size_;
    for (int64_t first = 0; first < p_.n_tiles; first += kChunkTiles) {
      const int64_t last = std::min(first + kChunkTiles, p_.n_tiles);
      for (int64_t panel = 0; panel < n_panels_; ++panel) {
        const int64_t row = begin_ + panel * kRows, rows = std::min(kRows, end_ - row);
        const Left<T> left = left_of(p_, row, rows, padded_.data());
        for (int64_t tile = first; tile < last; ++tile) {
          const int64_t to = (tile - first) * kColumns<T>;
          terms_.form(left, row, rows, tile, kTermsStride<T>, above_ + to, below_ + to);
        }
        const T* right = p_.tiles + first * p_.tile_size;
        const int64_t at = panel * panel_size_ * Vector<T>::kLanes;
        add_row_sums<kRows>(above_.data(), kTermsStride<T>, last - first, right, k, lanes_ + at);
        if (terms_.below())
          add_row_sums<kRows>(below_.data(), kTermsStride<T>, last - first, right, k,
                              lanes_below_ + at);
      }
      if (last % kFlushTiles != 0 && last != p_.n_tiles) continue;
      flush_lanes(lanes_.data(), size, numerator_.data());
      if (terms_.below()) flush_lanes(lanes_below_.data(), size, denominator_.data());
    }
  }

  const double* numerator(int64_t panel) const { return numerator_ + panel * panel_size_; }
  const double* denominator(int64_t panel) const { return denominator_ + panel * panel_size_; }

 private:
  const Problem<T, Data>& p_;
  WeightedTerms<loss, T, Data> terms_;
  int64_t begin_, end_, n_panels_, panel_size_;
  Scratch<T> padded_, above_, below_, lanes_, lanes_below_;
  Scratch<double> numerator_, denominator_;
};

// Sums of rows with W in the tiles [first, last) of H, added to the factorisation's in float64.
template <Loss loss, class T, class Data>
class WeightedColumnSums {
 public:
  WeightedColumnSums(const Factorisation<T, Data>& f, const Weights<T>& weights,
                     const TermRule<T>& rule, int64_t first, int64_t last)
      : f_(f),
        terms_(f, weights, rule),
        first_(first),
        last_(last),
        size_((last - first) * f.tile_size),
        padded_(kRows * f.n_components),
        above_(kGroupRows * kTermsStride<T>),
        below_(terms_.below() ? kGroupRows * kTermsStride<T> : 0),
        sums_(size_),
        sums_below_(terms_.below() ? size_ : 0) {}

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
      if (terms_.below()) flush(sums_below_.data(), size_, f_.denominator + first_ * f_.tile_size);
    }
  }

 private:
  void add_group(int64_t row, int64_t rows) {
    const int64_t k = f_.n_components, padded_rows = std::max(rows, kRows);
    const Left<T> left = left_of(f_, row, std::min(rows, kRows), padded_.data());
    for (int64_t chunk = first_; chunk < last_; chunk += kChunkTiles) {
      const int64_t end = std::min(chunk + kChunkTiles, last_);
      // The next chunk, or, after the last, the first in the rows below.
      const int64_t ahead =
          end < last_ ? kTermsStride<T> : rows * f_.x_stride + (first_ - chunk) * kColumns<T>;
      for (int64_t i = 0; i < rows; i += kRows)
        for (int64_t tile = chunk; tile < end; ++tile) {
          const int64_t to = i * kTermsStride<T> + (tile - chunk) * kColumns<T>;
          terms_.form({left.data + i * left.stride, left.stride}, row + i,
                      std::min(rows - i, kRows), tile, ahead, above_ + to, below_ + to);
        }
      for (int64_t tile = chunk; tile < end; ++tile) {
        const int64_t from = (tile - chunk) * kColumns<T>, to = (tile - first_) * f_.tile_size;
        add_column_sums(above_ + from, kTermsStride<T>, padded_rows, left.data, left.stride, k,
                        sums_ + to);
        if (terms_.below())
          add_column_sums(below_ + from, kTermsStride<T>, padded_rows, left.data, left.stride, k,
                          sums_below_ + to);
      }
    }
  }

  const Factorisation<T, Data>& f_;
  WeightedTerms<loss, T, Data> terms_;
  int64_t first_, last_, size_;
  Scratch<T> padded_, above_, below_, sums_, sums_below_;
};

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
