// ISA source (see isa.h): iterations on sparse X. Row i of W depends on row i of X and on H, so a
// pass over the rows makes the new W and, from it, what the numerators of H sum; those are added up
// by columns, each thread having its own. No sum depends on how rows and columns are cut. Other
// losses than Kullback-Leibler and Frobenius need W H everywhere: a few rows of X at a time are
// made dense for the kernels of dense X.
// clang-format off: each builds on those before it
#include "../../nnmf/cpu/iterate.h"
#include "rows.h"
#include "problem.h"
// clang-format on

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// One factorisation while it is iterated: W where it is, H transposed.
template <Loss loss, class T, class Index>
class SparseFactorisation {
 public:
  SparseFactorisation(const SparseParams<T, Index>& p, T* W, const T* H)
      : x_(p),
        k_(p.shape.n_components),
        W_(W),
        H_(p.shape, H),
        statistics_(statistics_size<loss>(k_)) {}

  void run(const Update& update_W, const Update& update_H, int64_t n_iter, bool updates_H, T* H) {
    update_columns(nullptr, nullptr);
    const std::vector<int64_t> all{0, x_.shape.n_samples};
    if (!updates_H) return update_all_rows(update_W, n_iter, 0, x_.shape.n_samples, nullptr);
    // Frobenius sums X itself; the terms of Kullback-Leibler are in memory for some rows at a time.
    const std::vector<int64_t> chunks = loss == Loss::kFrobenius ? all : cut_into_chunks();
    Scratch<T> terms(loss == Loss::kFrobenius ? 0 : most_nonzeros(chunks));
    Scratch<int64_t> counts = column_counts();
    const std::vector<int64_t> ranges = cut_columns(counts.data());
    SparseColumnSums<T> sums(x_.shape.n_features, k_, counts.data());
    counts.release();
    for (int64_t iteration = 0; iteration < n_iter; ++iteration) {
      for (std::size_t c = 0; c + 1 < chunks.size(); ++c) {
        update_all_rows(update_W, 1, chunks[c], chunks[c + 1], terms.data());
        add_columns(ranges, chunks[c], chunks[c + 1], terms.data(), sums);
      }
      sum_rows();
      update_columns(&update_H, &sums);
    }
    sums.release();  // until here nobody has touched the memory of the new H
    H_.unpack(H);
  }

 private:
  // Rows of W that are updated together. Those of Kullback-Leibler are read again for the terms of
  // H, which the first cache has to hold until then.
  static constexpr int64_t kTogether = loss == Loss::kFrobenius ? kColumns<T> : kRows;

  // Rows [begin, end) cut into tasks of as many non-zeros.
  void update_all_rows(const Update& update, int64_t repeats, int64_t begin, int64_t end,
                       T* terms) const {
    const std::vector<int64_t> tasks =
        cut_rows(x_, begin, end, 4 * int64_t{torch::stable::get_num_threads()});
    parallel_for_each(static_cast<int64_t>(tasks.size()) - 1, [&](int64_t task) {
      with_held(H_.rows().vectors, [&]<int64_t held>() {
        update_rows<held>(update, repeats, tasks[task], tasks[task + 1],
                          terms == nullptr ? nullptr : terms - x_.crow[begin]);
      });
    });
  }

  // Updates rows [begin, end) of W `repeats` times, and forms what the numerators of H sum of them,
  // if `terms`, where the first non-zero of X has its place, is not null.
  template <int64_t held>
  void update_rows(const Update& update, int64_t repeats, int64_t begin, int64_t end,
                   T* terms) const {
    const FactorRows<T> H = H_.rows();
    const int64_t padded = H.vectors * Vector<T>::kLanes;
    const Scratch<T> w(padded), block(k_ * kTogether);
    const Scratch<double> sums(padded), numerator(k_ * kTogether), work(k_ * kTogether);
    const T floor = static_cast<T>(update.terms.floor);
    w.fill(0);
    numerator.fill(0);
    block.fill(0);
    for (int64_t first = begin; first < end; first += kTogether) {
      const int64_t rows = std::min(kTogether, end - first);
      for (int64_t repeat = 0; repeat < repeats; ++repeat) {
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t r = 0; r < k_; ++r)
            block.data()[r * kTogether + i] = W_[(first + i) * k_ + r];
          if (loss == Loss::kFrobenius && repeat > 0) continue;  // they do not depend on W
          std::copy_n(W_ + (first + i) * k_, k_, w.data());
          row_numerator<held>(first + i, w.data(), H, floor, sums);
          for (int64_t r = 0; r < k_; ++r) numerator.data()[r * kTogether + i] = sums.data()[r];
        }
        update_block<loss, kTogether>(block.data(), {numerator.data(), nullptr, statistics_.data()},
                                      update, k_, work.data());
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t r = 0; r < k_; ++r)
            W_[(first + i) * k_ + r] = block.data()[r * kTogether + i];
      }
      if constexpr (loss == Loss::kKullbackLeibler)
        if (terms != nullptr)
          for (int64_t i = 0; i < rows; ++i) {
            std::copy_n(W_ + (first + i) * k_, k_, w.data());
            for_blocks(first + i, [&](int64_t at, int64_t count) {
              T quotients[kBlock];
              form_quotients<held>(x_.values + at, x_.col + at, count, w.data(), H, floor,
                                   quotients);
              std::copy_n(quotients, count, terms + at);
            });
          }
    }
  }

  // sums = what the non-zeros of a row add to the numerators of its row of W.
  template <int64_t held>
  NNMF_CUDA_INLINE void row_numerator(int64_t row, const T* w, const FactorRows<T>& H, T floor,
                                      const Scratch<double>& sums) const {
    sums.fill(0);
    for_blocks(row, [&](int64_t at, int64_t count) {
      T quotients[loss == Loss::kFrobenius ? 1 : kBlock];
      const T* terms = x_.values + at;
      if constexpr (loss == Loss::kKullbackLeibler) {
        form_quotients<held>(x_.values + at, x_.col + at, count, w, H, floor, quotients);
        terms = quotients;
      }
      add_all_rows<held>(terms, H, x_.col + at, count, sums.data());
    });
  }

  // Calls f(first, count) for the non-zeros of a row, up to kBlock at a time.
  template <class F>
  NNMF_CUDA_INLINE void for_blocks(int64_t row, const F& f) const {
    const int64_t end = x_.crow[row + 1];
    for (int64_t at = x_.crow[row]; at < end; at += kBlock) f(at, std::min(kBlock, end - at));
  }

  // Adds what rows [begin, end) put into the numerators of H.
  void add_columns(const std::vector<int64_t>& ranges, int64_t begin, int64_t end, const T* terms,
                   const SparseColumnSums<T>& sums) const {
    const int64_t first = x_.crow[begin];
    const T* of_X = loss == Loss::kFrobenius ? x_.values : terms - first;
    parallel_for_each(static_cast<int64_t>(ranges.size()) - 1, [&](int64_t range) {
      with_held(sums.units(), [&]<int64_t held>() {
        add_range<held>(ranges[range], ranges[range + 1], ranges.size() == 2, begin, end, of_X,
                        sums);
      });
    });
  }

  template <int64_t held>
  void add_range(int64_t low, int64_t high, bool is_all, int64_t begin, int64_t end, const T* terms,
                 const SparseColumnSums<T>& sums) const {
    const Scratch<T> w(sums.units() * Unit<T>::kLanes);
    w.fill(0);
    for (int64_t row = begin; row < end; ++row) {
      const Index *from = x_.col + x_.crow[row], *to = x_.col + x_.crow[row + 1];
      if (!is_all) {
        from = std::lower_bound(from, to, static_cast<Index>(low));
        to = std::lower_bound(from, to, static_cast<Index>(high));
      }
      if (from == to) continue;
      std::copy_n(W_ + row * k_, k_, w.data());
      sums.template add<held>(terms + (from - x_.col), from, to - from, w.data());
    }
  }

  // Updates H from its sums, which become zero, unless `update` is null; and sums it.
  void update_columns(const Update* update, const SparseColumnSums<T>* sums) {
    constexpr int64_t kWidth = kColumns<T>;
    const int64_t n_features = x_.shape.n_features, n_tiles = blocks_of(n_features, kWidth);
    const int64_t size = statistics_size<loss>(k_);
    const int64_t n_parts = blocks_of(n_tiles, kStatisticsTiles);
    const Scratch<double> parts(n_parts * size);
    parts.fill(0);
    parallel_for_each(n_parts, [&](int64_t part) {
      const Scratch<T> block(k_ * kWidth);
      const Scratch<double> numerator(update == nullptr ? 0 : k_ * kWidth), work(k_ * kWidth);
      const int64_t last = std::min((part + 1) * kStatisticsTiles, n_tiles);
      for (int64_t tile = part * kStatisticsTiles; tile < last; ++tile) {
        const int64_t column = tile * kWidth, columns = std::min(kWidth, n_features - column);
        block.fill(0);
        H_.read(column, columns, block.data(), kWidth);
        if (update != nullptr) {
          numerator.fill(0);
          sums->take(column, columns, numerator.data(), kWidth);
          update_block<loss, kWidth>(block.data(), {numerator.data(), nullptr, statistics_.data()},
                                     *update, k_, work.data());
          H_.write(column, columns, block.data(), kWidth);
          clear_padding<kWidth>(block.data(), columns);
        }
        add_statistics<loss, kWidth>(block.data(), k_, work.data(), parts + part * size);
      }
    });
    gather_parts<loss>(parts.data(), n_parts, k_, statistics_.data());
  }

  // Sums W for the update of H.
  void sum_rows() {
    constexpr int64_t kWidth = kColumns<T>, kPart = kStatisticsTiles * kWidth;
    const int64_t n_samples = x_.shape.n_samples, size = statistics_size<loss>(k_);
    const int64_t n_parts = blocks_of(n_samples, kPart);
    const Scratch<double> parts(n_parts * size);
    parts.fill(0);
    parallel_for_each(n_parts, [&](int64_t part) {
      const Scratch<T> block(k_ * kWidth);
      const Scratch<double> work(k_ * kWidth);
      const int64_t end = std::min((part + 1) * kPart, n_samples);
      for (int64_t row = part * kPart; row < end; row += kWidth) {
        const int64_t rows = std::min(kWidth, end - row);
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t r = 0; r < k_; ++r) block.data()[r * kWidth + i] = W_[(row + i) * k_ + r];
        clear_padding<kWidth>(block.data(), rows);
        add_statistics<loss, kWidth>(block.data(), k_, work.data(), parts + part * size);
      }
    });
    gather_parts<loss>(parts.data(), n_parts, k_, statistics_.data());
  }

  // Zeros behind the first `used` values of each row of a block.
  template <int64_t width>
  void clear_padding(T* block, int64_t used) const {
    for (int64_t r = 0; used < width && r < k_; ++r)
      std::fill_n(block + r * width + used, width - used, T{0});
  }

  std::vector<int64_t> cut_into_chunks() const {
    constexpr int64_t kSmallest = 1 << 15;
    const int64_t wanted = std::max(kSmallest, x_.shape.n_nonzeros / 32);
    return cut_rows(x_, 0, x_.shape.n_samples, blocks_of(x_.shape.n_nonzeros, wanted));
  }

  int64_t most_nonzeros(const std::vector<int64_t>& cuts) const {
    int64_t most = 0;
    for (std::size_t c = 0; c + 1 < cuts.size(); ++c)
      most = std::max<int64_t>(most, x_.crow[cuts[c + 1]] - x_.crow[cuts[c]]);
    return most;
  }

  Scratch<int64_t> column_counts() const {
    Scratch<int64_t> counts(x_.shape.n_features);
    counts.fill(0);
    for (int64_t p = 0; p < x_.shape.n_nonzeros; ++p) ++counts.data()[x_.col[p]];
    return counts;
  }

  // Columns cut into one range a thread, of as many non-zeros.
  std::vector<int64_t> cut_columns(const int64_t* counts) const {
    const int64_t n_features = x_.shape.n_features, n_ranges = torch::stable::get_num_threads();
    if (n_ranges == 1) return {0, n_features};
    const Scratch<int64_t> before(n_features + 1);
    before.data()[0] = 0;
    std::partial_sum(counts, counts + n_features, before + 1);
    return cut_by_weight(0, n_features, n_ranges,
                         [&](int64_t column) { return before.data()[column] + column; });
  }

  const SparseParams<T, Index>& x_;
  int64_t k_;
  T* W_;
  TransposedFactor<T> H_;
  Scratch<double> statistics_;  // of the factor that is not updated
};

constexpr int64_t kDenseRows = 64;  // rows of X that are dense at a time

// The same for losses that need W H everywhere.
template <Loss loss, class T, class Index>
void iterate_dense_rows(const SparseParams<T, Index>& p, const Update& update_W,
                        const Update& update_H, int64_t n_iter, bool updates_H, T* W, const T* H,
                        T* new_H) {
  const int64_t n = p.shape.n_samples, f = p.shape.n_features, k = p.shape.n_components;
  const DenseRows<T, Index> dense(p, kDenseRows);
  Factorisation<T, T> part(dense.data(), f, W, H, Shape{1, kDenseRows, f, k, 0, f},
                           /*sums_denominator=*/true);
  const auto for_chunks = [&](const auto& each) {
    for (int64_t begin = 0; begin < n; begin += kDenseRows) {
      const int64_t rows = std::min(kDenseRows, n - begin);
      part.W = W + begin * k;
      dense.fill(begin, begin + rows);
      each(rows);
      dense.clear(begin, begin + rows);
    }
  };
  const auto update = [&](int64_t rows, int64_t repeats) {
    parallel_for_each(blocks_of(rows, kRows), [&](int64_t panel) {
      const int64_t first = panel * kRows;
      update_rows<loss>(part, nullptr, update_W, repeats, first, std::min(first + kRows, rows));
    });
  };
  const auto for_tiles = [&](const auto& each) {
    const int64_t block = task_tiles(part.n_tiles);
    parallel_for_each(blocks_of(part.n_tiles, block), [&](int64_t task) {
      each(task * block, std::min((task + 1) * block, part.n_tiles));
    });
  };
  if (!updates_H) return for_chunks([&](int64_t rows) { update(rows, n_iter); });
  part.numerator.fill(0);
  part.denominator.fill(0);
  for (int64_t iteration = 0; iteration < n_iter; ++iteration) {
    for_chunks([&](int64_t rows) {
      update(rows, 1);
      for_tiles([&](int64_t first, int64_t last) {
        ColumnSums<loss, T, T>(part, first, last, update_H.terms.as<T>()).add_rows(0, rows);
      });
    });
    for_tiles([&](int64_t first, int64_t last) {
      update_columns<loss>(part, nullptr, update_H, first, last);
    });
  }
  part.release_sums();
  part.unpack(new_H);
}

// W and H [batch, ...] become what is made of p.W and p.H.
template <Loss loss, class T, class Index>
void iterate_sparse(const SparseParams<T, Index>& p, const Update& update_W, const Update& update_H,
                    int64_t n_iter, bool updates_H, T* W, T* H) {
  const SparseShape& s = p.shape;
  const int64_t size_W = s.n_samples * s.n_components, size_H = s.n_components * s.n_features;
  check_csr(p);
  std::copy_n(p.W, s.batch * size_W, W);
  for_each_sparse_problem(s, [&](int64_t b) {
    const bool active = (p.active == nullptr || p.active[b]) && size_W > 0 && size_H > 0;
    const T* old_H = p.H + b * size_H;
    if (!active || !updates_H) std::copy_n(old_H, size_H, H + b * size_H);
    if (!active) return;
    if constexpr (kSumsDenominator<loss>)
      iterate_dense_rows<loss>(p, update_W, update_H, n_iter, updates_H, W + b * size_W, old_H,
                               H + b * size_H);
    else
      SparseFactorisation<loss, T, Index>(p, W + b * size_W, old_H)
          .run(update_W, update_H, n_iter, updates_H, H + b * size_H);
  });
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
