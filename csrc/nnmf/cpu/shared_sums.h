// ISA source (see isa.h): the sums of Frobenius for several factorisations of one X. They need
// nothing of W H: a few rows of X are copied, as numbers, where the sums of all factorisations find
// them in cache. Each gets the bits that RowSums and ColumnSums would give it.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// Factorisations that share a copy: their sums have to stay in the second cache.
inline int64_t sharing_factorisations(int64_t n_components) {
  return std::clamp<int64_t>(128 / std::max<int64_t>(n_components, 1), 1, 16);
}

// Rows of X in some tiles, as numbers, zeros beyond X; and in which tiles of which panels there is
// anything but zeros.
template <class T, class Data>
class CopiedRows {
 public:
  CopiedRows(const Problem<T, Data>& p, int64_t most_rows, int64_t most_tiles)
      : p_(p),
        most_tiles_(most_tiles),
        stride_(most_tiles * kColumns<T>),
        copy_(blocks_of(most_rows, kRows) * kRows * stride_),
        holds_(blocks_of(most_rows, kRows) * most_tiles),
        edge_(kRows * kColumns<T>) {}

  // Rows [row, end) in the tiles [first, last).
  void read(int64_t row, int64_t end, int64_t first, int64_t last) {
    using V = Vector<T>;
    for (int64_t panel = 0; row < end; row += kRows, ++panel)
      for (int64_t tile = first; tile < last; ++tile) {
        const auto x =
            panel_of(p_, Left<T>{}, row, std::min(kRows, end - row), tile, 0, edge_.data());
        holds_.data()[panel * most_tiles_ + tile - first] = !all_zero<T>(x.x, x.x_stride);
        T* to = copy_ + panel * kRows * stride_ + (tile - first) * kColumns<T>;
        for (int64_t i = 0; i < kRows; ++i)
          for (int64_t v = 0; v < kVectors; ++v)
            V::store(to + i * stride_ + v * V::kLanes,
                     V::load(x.x + i * x.x_stride + v * V::kLanes));
      }
  }

  // Tile and panel count from what was read first.
  const T* panel(int64_t panel, int64_t tile) const {
    return copy_ + panel * kRows * stride_ + tile * kColumns<T>;
  }
  bool holds(int64_t panel, int64_t tile) const {
    return holds_.data()[panel * most_tiles_ + tile];
  }
  int64_t stride() const { return stride_; }

 private:
  const Problem<T, Data>& p_;
  int64_t most_tiles_, stride_;
  Scratch<T> copy_;
  Scratch<bool> holds_;
  Scratch<Data> edge_;
};

constexpr int64_t kSharedTiles = 2 * kChunkTiles;  // copied for sums over features
constexpr int64_t kSharedRows = 4 * kGroupRows;    // copied for sums over samples
static_assert(kFlushTiles % kSharedTiles == 0 && kFlushRows % kSharedRows == 0);

// Sums of the rows [begin, end) of X with the H of each factorisation: see RowSums.
template <class T, class Data>
class SharedRowSums {
 public:
  SharedRowSums(std::span<const Factorisation<T, Data>> batch, int64_t begin, int64_t end)
      : batch_(batch),
        p_(batch.front()),
        begin_(begin),
        end_(end),
        n_panels_(blocks_of(end - begin, kRows)),
        panel_size_(p_.n_components * kRows),
        size_(static_cast<int64_t>(batch.size()) * n_panels_ * panel_size_),
        rows_(p_, end - begin, kSharedTiles),
        lanes_(size_ * Vector<T>::kLanes),
        numerator_(size_) {}

  void compute() {
    lanes_.fill(0);
    numerator_.fill(0);
    for (int64_t first = 0; first < p_.n_tiles; first += kSharedTiles) {
      const int64_t last = std::min(first + kSharedTiles, p_.n_tiles);
      rows_.read(begin_, end_, first, last);
      const Data* next = p_.X + begin_ * p_.x_stride + (first + kSharedTiles) * kColumns<T>;
      add_tiles(0, first, last, RowsAhead<Data>{next, p_.x_stride});
      for (std::size_t b = 1; b < batch_.size(); ++b) add_tiles(b, first, last, NothingAhead{});
      if (last % kFlushTiles == 0 || last == p_.n_tiles)
        flush_lanes(lanes_.data(), size_, numerator_.data());
    }
  }

  const double* numerator(std::size_t b, int64_t panel) const {
    return numerator_ + (static_cast<int64_t>(b) * n_panels_ + panel) * panel_size_;
  }

 private:
  template <class Ahead>
  void add_tiles(std::size_t b, int64_t first, int64_t last, const Ahead& ahead) {
    T* lanes = lanes_ + static_cast<int64_t>(b) * n_panels_ * panel_size_ * Vector<T>::kLanes;
    const T* tiles = batch_[b].tiles + first * p_.tile_size;
    ahead.right(kSharedTiles * kColumns<T>).fetch_pages(end_ - begin_);
    for (int64_t panel = 0; panel < n_panels_; ++panel) {
      for (int64_t chunk = 0; chunk < last - first; chunk += kChunkTiles)
        add_chunk(panel, chunk, std::min(chunk + kChunkTiles, last - first), tiles, lanes,
                  ahead.from_row(panel * kRows));
      lanes += panel_size_ * Vector<T>::kLanes;
    }
  }

  // Tiles of zeros part the others into runs.
  template <class Ahead>
  void add_chunk(int64_t panel, int64_t first, int64_t last, const T* tiles, T* lanes,
                 const Ahead& ahead) {
    int64_t run = first;
    for (int64_t tile = first; tile <= last; ++tile) {
      if (tile < last && rows_.holds(panel, tile)) continue;
      if (tile > run)
        add_row_sums<kRows>(rows_.panel(panel, run), rows_.stride(), tile - run,
                            tiles + run * p_.tile_size, p_.n_components, lanes,
                            ahead.right(run * kColumns<T>));
      run = tile + 1;
    }
  }

  std::span<const Factorisation<T, Data>> batch_;
  const Problem<T, Data>& p_;
  int64_t begin_, end_, n_panels_, panel_size_, size_;
  CopiedRows<T, Data> rows_;
  Scratch<T> lanes_;
  Scratch<double> numerator_;
};

// Sums of rows of X with the W of each factorisation in the tiles [first, last) of H, added to each
// factorisation's in float64: see ColumnSums.
template <class T, class Data>
class SharedColumnSums {
 public:
  SharedColumnSums(std::span<const Factorisation<T, Data>> batch, int64_t first, int64_t last)
      : batch_(batch),
        p_(batch.front()),
        first_(first),
        last_(last),
        size_((last - first) * p_.tile_size),
        rows_(p_, kSharedRows, last - first),
        padded_(kRows * p_.n_components),
        sums_(static_cast<int64_t>(batch.size()) * size_) {}

  void add_rows(int64_t begin, int64_t end) {
    sums_.fill(0);
    for (int64_t row = begin; row < end; row += kSharedRows) {
      const int64_t below = row + kSharedRows, stop = std::min(below, end);
      rows_.read(row, stop, first_, last_);
      const RowsAhead<Data> next{p_.X + below * p_.x_stride + first_ * kColumns<T>, p_.x_stride};
      next.from_row(kSharedRows).fetch_pages(stop - row);
      add_block(0, row, stop, next);
      for (std::size_t b = 1; b < batch_.size(); ++b) add_block(b, row, stop, NothingAhead{});
      if (stop % kFlushRows != 0 && stop != end) continue;
      for (std::size_t b = 0; b < batch_.size(); ++b)
        flush(sums_ + static_cast<int64_t>(b) * size_, size_,
              batch_[b].numerator + first_ * p_.tile_size);
    }
  }

 private:
  // What the rows [begin, end), the copied ones, add to the sums of one factorisation.
  template <class Ahead>
  void add_block(std::size_t b, int64_t begin, int64_t end, const Ahead& ahead) {
    const int64_t n_tiles = last_ - first_;
    T* sums = sums_ + static_cast<int64_t>(b) * size_;
    for (int64_t tile = 0; tile < n_tiles; ++tile, sums += p_.tile_size) {
      int64_t rows;
      for (int64_t row = begin; row < end; row += rows) {
        rows = group_rows(end - row);
        const int64_t panel = (row - begin) / kRows;
        bool zero = true;
        for (int64_t i = 0; i < rows; i += kRows)
          zero = zero && !rows_.holds(panel + i / kRows, tile);
        if (zero) continue;
        const Left<T> left = left_of(batch_[b], row, std::min(rows, kRows), padded_.data());
        add_column_sums(rows_.panel(panel, tile), rows_.stride(), std::max(rows, kRows), left.data,
                        left.stride, p_.n_components, sums,
                        ahead.from_row(row - begin).right(tile * kColumns<T>));
      }
    }
  }

  std::span<const Factorisation<T, Data>> batch_;
  const Problem<T, Data>& p_;
  int64_t first_, last_, size_;
  CopiedRows<T, Data> rows_;
  Scratch<T> padded_, sums_;
};

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
