// ISA source (see isa.h): coordinate descent for Kullback-Leibler on sparse X. Rows of W depend on
// H alone, and columns of H on W: each sweep goes over the rows of X, or of X^T, independently.
// What a row's non-zeros need of the other factor is gathered once, a component after the other, so
// that the sums of an entry read values side by side. An entry's step waits for its sums, so a few
// rows take turns.
// clang-format off: each builds on those before it
#include "rows.h"
#include "problem.h"
// clang-format on

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// The transpose of a square of lanes.
template <class T, int64_t step, std::size_t... lane>
NNMF_CUDA_INLINE void exchange(typename Vector<T>::Lanes& a, typename Vector<T>::Lanes& b,
                               std::index_sequence<lane...>) {
  constexpr int kLanes = sizeof...(lane), kStep = step;
  const typename Vector<T>::Lanes low =
      __builtin_shufflevector(a, b, ((lane & kStep) ? kLanes + (int{lane} ^ kStep) : int{lane})...);
  b = __builtin_shufflevector(a, b, ((lane & kStep) ? kLanes + int{lane} : (int{lane} ^ kStep))...);
  a = low;
}

template <class T, int64_t step = 1>
NNMF_CUDA_INLINE void transpose(typename Vector<T>::Lanes (&part)[Vector<T>::kLanes]) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  if constexpr (step < kLanes) {
#pragma GCC unroll 16
    for (int64_t l = 0; l < kLanes; ++l)
      if ((l & step) == 0)
        exchange<T, step>(part[l], part[l + step], std::make_index_sequence<kLanes>{});
    transpose<T, 2 * step>(part);
  }
}

// A factor with the components of each row, or of each column, side by side.
template <class T>
class RowFactor {
 public:
  // from[row * row_step + component * component_step].
  RowFactor(const T* from, int64_t n_rows, int64_t n_components, int64_t row_step,
            int64_t component_step)
      : n_rows_(n_rows),
        k_(n_components),
        stride_(row_stride<T>(k_)),
        // What a vector reads behind the last row.
        data_(n_rows_ * stride_ + Vector<T>::kLanes) {
    std::fill_n(data_ + n_rows_ * stride_, Vector<T>::kLanes, T{0});
    for_rows([&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t r = 0; r < k_; ++r)
          (*this)[row][r] = from[row * row_step + r * component_step];
        std::fill((*this)[row] + k_, (*this)[row] + stride_, T{0});
      }
    });
  }

  void unpack(T* to, int64_t row_step, int64_t component_step) const {
    for_rows([&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t r = 0; r < k_; ++r) to[row * row_step + r * component_step] = (*this)[row][r];
    });
  }

  T* operator[](int64_t row) const { return data_ + row * stride_; }
  int64_t n_components() const { return k_; }

  // Sums over the rows, of each component; the same for any number of threads.
  void sum(double* sums) const {
    const int64_t n_blocks = blocks_of(n_rows_, kBlockRows);
    const Scratch<double> parts(n_blocks * k_);
    parts.fill(0);
    for_rows([&](int64_t begin, int64_t end) {
      double* const part = parts + begin / kBlockRows * k_;
      for (int64_t row = begin; row < end; ++row)
        for (int64_t r = 0; r < k_; ++r) part[r] += static_cast<double>((*this)[row][r]);
    });
    std::fill_n(sums, k_, 0.0);
    for (int64_t block = 0; block < n_blocks; ++block)
      for (int64_t r = 0; r < k_; ++r) sums[r] += parts.data()[block * k_ + r];
  }

 private:
  static constexpr int64_t kBlockRows = 64;

  template <class F>
  void for_rows(const F& f) const {
    parallel_for_each(blocks_of(n_rows_, kBlockRows), [&](int64_t block) {
      f(block * kBlockRows, std::min((block + 1) * kBlockRows, n_rows_));
    });
  }

  int64_t n_rows_, k_, stride_;
  Scratch<T> data_;
};

// A row of X while its row of W is on the way: W H at its non-zeros, and what they need of H.
template <class T, class Index>
class RowDescent {
 public:
  // Values of memory that a row of so many non-zeros needs.
  static int64_t memory_size(int64_t count, int64_t k) {
    const int64_t padded = padded_size(count);
    return (2 + (keeps_all(padded, k) ? k : 2)) * padded;
  }

  RowDescent(const T* values, const Index* col, int64_t count, const RowFactor<T>& H, T* w, T floor,
             T* memory)
      : col_(col),
        count_(count),
        padded_(padded_size(count)),
        k_(H.n_components()),
        H_(H),
        w_(w),
        floor_(floor),
        x_(memory),
        wh_(x_ + padded_),
        h_(wh_ + padded_) {
    std::copy_n(values, count, x_);
    std::fill(x_ + count, x_ + padded_, T{0});
    if (keeps_all(padded_, k_))
      gather_all();
    else
      multiply();
  }

  // Moves an entry of the row of W.
  void step(int64_t component, const Coordinate<double>& coordinate) {
    const T* h = keeps_all(padded_, k_) ? h_ + component * padded_ : gathered(component);
    const PoleSums<double> sums = move_ == T{0} ? sums_of<false>(h) : sums_of<true>(h);
    const T w = w_[component];
    const double next = descended(coordinate, static_cast<double>(w), sums, [&](double t) {
      return sums_at(h, static_cast<T>(t - static_cast<double>(w)));
    });
    w_[component] = static_cast<T>(next);
    move_ = w_[component] - w;
    moved_h_ = h;
  }

 private:
  using V = Vector<T>;
  using Lanes = typename V::Lanes;

  static int64_t padded_size(int64_t count) { return blocks_of(count, V::kLanes) * V::kLanes; }

  // Whether all components of a row's non-zeros are in memory together. Those of a longer one would
  // be as much as H: they are gathered again for each entry.
  static bool keeps_all(int64_t padded, int64_t k) {
    constexpr int64_t kMost = 1 << 20;
    return padded * k <= kMost;
  }

  // h_ = the components of H at the non-zeros, and wh_ = their products with the row of W.
  void gather_all() {
    for (int64_t p = 0; p < padded_; p += V::kLanes) {
      const int64_t here = std::min(V::kLanes, count_ - p);
      Lanes product{};
      for (int64_t first = 0; first < k_; first += V::kLanes) {
        Lanes part[V::kLanes];
        if (here == V::kLanes) {
#pragma GCC unroll 16
          for (int64_t l = 0; l < V::kLanes; ++l) part[l] = V::load(H_[col_[p + l]] + first);
        } else {
          for (int64_t l = 0; l < V::kLanes; ++l)
            part[l] = l < here ? V::load(H_[col_[p + l]] + first) : Lanes{};
        }
        transpose<T>(part);
        const auto keep = [&](int64_t c) {
          V::store(h_ + (first + c) * padded_ + p, part[c]);
          product += V::broadcast(w_[first + c]) * part[c];
        };
        if (first + V::kLanes <= k_) {
#pragma GCC unroll 16
          for (int64_t c = 0; c < V::kLanes; ++c) keep(c);
        } else {
          for (int64_t c = 0; c < k_ - first; ++c) keep(c);
        }
      }
      V::store(wh_ + p, product);
    }
  }

  // The products alone.
  void multiply() {
    std::fill_n(wh_, padded_, T{0});
    for (int64_t p = 0; p < count_; ++p)
      for (int64_t r = 0; r < k_; ++r) wh_[p] += w_[r] * H_[col_[p]][r];
  }

  // One component at the non-zeros; the one before stays.
  const T* gathered(int64_t component) {
    T* const h = moved_h_ == h_ ? h_ + padded_ : h_;
    for (int64_t p = 0; p < count_; ++p) h[p] = H_[col_[p]][component];
    std::fill(h + count_, h + padded_, T{0});
    return h;
  }

  // The sums of the entry whose component is h, wh following the entry before.
  template <bool follows>
  NNMF_CUDA_INLINE PoleSums<double> sums_of(const T* h) const {
    const Lanes move = V::broadcast(move_);
    return summed(h, [&](int64_t p) {
      Lanes wh = V::load(wh_ + p);
      if constexpr (follows) {
        wh += move * V::load(moved_h_ + p);
        V::store(wh_ + p, wh);
      }
      return wh;
    });
  }

  // The same were the entry to move by `by`.
  [[gnu::noinline]] PoleSums<double> sums_at(const T* h, T by) const {
    const Lanes move = V::broadcast(by);
    return summed(h, [&](int64_t p) { return V::load(wh_ + p) + move * V::load(h + p); });
  }

  template <class F>
  NNMF_CUDA_INLINE PoleSums<double> summed(const T* h, const F& wh_of) const {
    constexpr int64_t kTerms = 64 * V::kLanes;  // after which sums go on in float64
    const Lanes lowest = V::broadcast(floor_);
    PoleSums<double> sums{0, 0};
    for (int64_t begin = 0; begin < padded_; begin += kTerms) {
      const int64_t end = std::min(begin + kTerms, padded_);
      Lanes S{}, D{};
      for (int64_t p = begin; p < end; p += V::kLanes) {
        const Lanes ratio = V::divide(V::load(h + p), V::max(lowest, wh_of(p)));
        const Lanes term = V::load(x_ + p) * ratio;
        S += term;
        D += term * ratio;
      }
      sums.S += static_cast<double>(V::sum(S));
      sums.D += static_cast<double>(V::sum(D));
    }
    return sums;
  }

  const Index* col_;
  int64_t count_, padded_, k_;
  const RowFactor<T>& H_;
  T* w_;
  T floor_;
  T *x_, *wh_, *h_;             // padded with zeros to whole vectors
  T move_{0};                   // by which the last entry has moved, not yet in wh_
  const T* moved_h_ = nullptr;  // its component
};

// Sweeps over the rows of W for rows of X, or over those of H^T for rows of X^T.
template <class T, class Index>
class RowSweeps {
 public:
  RowSweeps(const SparseParams<T, Index>& x, const Descent& descent)
      : x_(x),
        descent_(descent),
        tasks_(cut_rows(x, 0, x.shape.n_samples, 4 * int64_t{torch::stable::get_num_threads()})) {}

  void run(const RowFactor<T>& W, const RowFactor<T>& H) const {
    const int64_t k = H.n_components();
    const Scratch<double> sums(k);
    H.sum(sums.data());
    for (int64_t r = 0; r < k; ++r) sums.data()[r] += descent_.l1_reg;
    parallel_for_each(static_cast<int64_t>(tasks_.size()) - 1, [&](int64_t task) {
      for (int64_t row = tasks_[task]; row < tasks_[task + 1];)
        row = sweep_together(row, tasks_[task + 1], W, H, sums.data());
    });
  }

 private:
  static constexpr int64_t kTogether = 4;
  static constexpr int64_t kShort = 512;  // non-zeros of rows that take turns

  int64_t count(int64_t row) const { return x_.crow[row + 1] - x_.crow[row]; }

  // Sweeps over `row` and a few rows behind it; returns the row after them.
  int64_t sweep_together(int64_t row, int64_t end, const RowFactor<T>& W, const RowFactor<T>& H,
                         const double* sums) const {
    using Row = RowDescent<T, Index>;
    const int64_t k = H.n_components();
    int64_t last = row, total = 0, size = 0;
    do {
      total += count(last);
      size += Row::memory_size(count(last), k);
      ++last;
    } while (last < end && last < row + kTogether && total + count(last) <= kShort);
    const Scratch<T> memory(size);
    std::optional<Row> rows[kTogether];
    T* unused = memory.data();
    for (int64_t i = row; i < last; ++i) {
      const int64_t first = x_.crow[i];
      rows[i - row].emplace(x_.values + first, x_.col + first, count(i), H, W[i],
                            static_cast<T>(descent_.floor), unused);
      unused += Row::memory_size(count(i), k);
    }
    for (int64_t sweep = 0; sweep < descent_.n_inner; ++sweep)
      for (int64_t r = descent_.n_fixed; r < k; ++r)
        for (int64_t i = row; i < last; ++i) rows[i - row]->step(r, {sums[r], descent_.l2_reg});
    return last;
  }

  const SparseParams<T, Index>& x_;
  Descent descent_;
  std::vector<int64_t> tasks_;
};

// W and H [batch, ...] become what is made of by_rows.W and by_rows.H; H is held where by_columns
// is null.
template <class T, class Index>
void descend_sparse(const SparseParams<T, Index>& by_rows, const SparseParams<T, Index>* by_columns,
                    const Descent& of_W, const Descent& of_H, int64_t n_iter, T* W, T* H) {
  const SparseShape& s = by_rows.shape;
  const int64_t n = s.n_samples, f = s.n_features, k = s.n_components;
  check_csr(by_rows);
  if (by_columns != nullptr) check_csr(*by_columns);
  const RowSweeps<T, Index> sweeps_of_W(by_rows, of_W);
  const RowSweeps<T, Index> sweeps_of_H(by_columns == nullptr ? by_rows : *by_columns, of_H);
  for_each_sparse_problem(s, [&](int64_t b) {
    const RowFactor<T> rows(by_rows.W + b * n * k, n, k, k, 1);
    const RowFactor<T> columns(by_rows.H + b * k * f, f, k, 1, f);
    for (int64_t iteration = 0; iteration < n_iter; ++iteration) {
      sweeps_of_W.run(rows, columns);
      if (by_columns != nullptr) sweeps_of_H.run(columns, rows);
    }
    rows.unpack(W + b * n * k, k, 1);
    columns.unpack(H + b * k * f, 1, f);
  });
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
