// ISA source (see foreach_isa.h): the sums over features that an update of W and a projection need.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

constexpr int64_t kChunkTiles = 8;    // tiles whose terms are in memory together
constexpr int64_t kFlushTiles = 256;  // tiles after which lanes are added up in float64

template <class T>
constexpr int64_t kTermsStride = kChunkTiles * kColumns<T>;

// The numerators of Frobenius sum X itself: full panels are not copied.
template <Loss loss, class T, class Data>
constexpr bool kReadsX = loss == Loss::kFrobenius && std::is_same_v<T, Data>;

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

  void compute(T beta_loss) {
    lanes_.fill(0);
    numerator_.fill(0);
    if constexpr (kSumsDenominator<loss>) {
      lanes_below_.fill(0);
      denominator_.fill(0);
    }
    for (int64_t first = 0; first < p_.n_tiles; first += kChunkTiles) {
      const int64_t last = std::min(first + kChunkTiles, p_.n_tiles);
      for (int64_t panel = 0; panel < n_panels_; ++panel) add_chunk(panel, first, last, beta_loss);
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
  void add_chunk(int64_t panel, int64_t first, int64_t last, T beta_loss) {
    const int64_t row = begin_ + panel * kRows, rows = std::min(kRows, end_ - row);
    const int64_t at = panel * panel_size_ * Vector<T>::kLanes;
    if constexpr (kReadsX<loss, T, Data>) {
      if (rows == kRows && last * kColumns<T> <= p_.n_features)
        return add_entries(row, first, last, lanes_ + at);
    }
    add_terms(row, rows, first, last, beta_loss, lanes_ + at, lanes_below_ + at);
  }

  // Tiles [first, last) of X itself. Tiles of zeros part them into runs.
  void add_entries(int64_t row, int64_t first, int64_t last, T* lanes) {
    const auto* x = reinterpret_cast<const T*>(p_.X) + row * p_.x_stride;
    int64_t run = first;
    for (int64_t tile = first; tile <= last; ++tile) {
      const T* here = x + tile * kColumns<T>;
      if (tile < last) prefetch<T, true>(here + kTermsStride<T>, p_.x_stride);
      if (tile < last && !all_zero<T>(here, p_.x_stride)) continue;
      if (tile > run)
        add_row_sums(x + run * kColumns<T>, p_.x_stride, tile - run, p_.tiles + run * p_.tile_size,
                     p_.n_components, lanes, terms_.data(), kTermsStride<T>);
      run = tile + 1;
    }
  }

  void add_terms(int64_t row, int64_t rows, int64_t first, int64_t last, T beta_loss, T* lanes,
                 T* lanes_below) {
    Left<T> left{};
    if constexpr (loss != Loss::kFrobenius) left = left_of(p_, row, rows, padded_.data());
    int64_t run = first;
    for (int64_t tile = first; tile <= last; ++tile) {
      const int64_t to = (tile - first) * kColumns<T>;
      if (tile < last) {
        const auto x = panel_of(p_, left, row, rows, tile, kTermsStride<T>, edge_.data());
        if (kSumsDenominator<loss> || !all_zero<T>(x.x, x.x_stride)) {
          form_terms<loss>(x, p_.tiles + tile * p_.tile_size, p_.n_components, beta_loss,
                           terms_ + to, terms_below_ + to, kTermsStride<T>);
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
    add_row_sums(terms_ + from, kTermsStride<T>, n_tiles, right, k, lanes);
    if constexpr (kSumsDenominator<loss>)
      add_row_sums(terms_below_ + from, kTermsStride<T>, n_tiles, right, k, lanes_below);
  }

  const Problem<T, Data>& p_;
  int64_t begin_, end_, n_panels_, panel_size_;
  Scratch<T> padded_;
  Scratch<Data> edge_;
  Scratch<T> terms_, terms_below_, lanes_, lanes_below_;
  Scratch<double> numerator_, denominator_;
};

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
