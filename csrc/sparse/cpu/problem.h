// ISA source (see isa.h): sparse X as CPU kernels read it, cut into tasks of equal work; a factor
// transposed; a few rows of X as dense ones.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// Places from `begin` to `end` that cut what `weight` counts up to a place, a rising function, into
// up to `parts` about equal parts, none of them empty.
template <class F>
std::vector<int64_t> cut_by_weight(int64_t begin, int64_t end, int64_t parts, const F& weight) {
  std::vector<int64_t> cuts{begin};
  const int64_t low = weight(begin), total = weight(end) - low;
  for (int64_t part = 1; part < parts; ++part) {
    const int64_t wanted = low + total / parts * part + total % parts * part / parts;
    int64_t first = cuts.back(), last = end;
    while (first < last) {
      const int64_t middle = first + (last - first) / 2;
      if (weight(middle) < wanted)
        first = middle + 1;
      else
        last = middle;
    }
    if (first > cuts.back() && first < end) cuts.push_back(first);
  }
  if (end > begin) cuts.push_back(end);
  return cuts;
}

// Rows cut into about `parts` tasks of equal work: what a row costs besides its non-zeros is that
// of a few of them.
template <class T, class Index>
std::vector<int64_t> cut_rows(const SparseParams<T, Index>& p, int64_t begin, int64_t end,
                              int64_t parts) {
  constexpr int64_t kRowCost = 8;
  return cut_by_weight(begin, end, parts, [&](int64_t row) {
    return static_cast<int64_t>(p.crow[row]) + kRowCost * row;
  });
}

// torch does not check what CSR promises, and the kernels write where the indices say.
template <class T, class Index>
void check_csr(const SparseParams<T, Index>& p) {
  const SparseShape& s = p.shape;
  STD_TORCH_CHECK(p.crow[0] == 0 && p.crow[s.n_samples] == s.n_nonzeros,
                  "sparse X is damaged: crow_indices must go from 0 to the number of values, ",
                  s.n_nonzeros, ", got ", p.crow[0], " to ", p.crow[s.n_samples]);
  for (int64_t row = 0; row < s.n_samples; ++row)
    STD_TORCH_CHECK(p.crow[row] <= p.crow[row + 1],
                    "sparse X is damaged: crow_indices must not fall, got ", p.crow[row], ", then ",
                    p.crow[row + 1], " at row ", row);
  constexpr int64_t kCheckedRows = 256;
  const int64_t n_tasks = blocks_of(s.n_samples, kCheckedRows);
  const Scratch<int64_t> wrong(n_tasks);
  parallel_for_each(n_tasks, [&](int64_t task) {
    wrong.data()[task] = -1;
    const int64_t end = std::min((task + 1) * kCheckedRows, s.n_samples);
    for (int64_t row = task * kCheckedRows; row < end; ++row) {
      const int64_t first = p.crow[row], last = p.crow[row + 1];
      if (first == last) continue;
      bool right = p.col[first] >= 0 && p.col[last - 1] < s.n_features;
      for (int64_t i = first + 1; i < last; ++i) right &= p.col[i - 1] < p.col[i];
      if (!right) wrong.data()[task] = row;
    }
  });
  for (int64_t task = 0; task < n_tasks; ++task)
    STD_TORCH_CHECK(wrong.data()[task] < 0, "sparse X is damaged: col_indices of row ",
                    wrong.data()[task], " must ascend, each there once, from 0 to below ",
                    s.n_features, "; sum duplicates and sort before");
}

// Small problems are solved each on one thread, large ones one after another on all of them.
template <class F>
void for_each_sparse_problem(const SparseShape& s, const F& f) {
  constexpr int64_t kLarge = 1 << 20;
  if (s.batch > 1 && s.n_nonzeros * s.n_components < kLarge)
    parallel_for_each(s.batch, f);
  else
    for (int64_t b = 0; b < s.batch; ++b) f(b);
}

// H [n_components, n_features] with its columns side by side.
template <class T>
class TransposedFactor {
 public:
  TransposedFactor(const SparseShape& s, const T* H)
      : n_features_(s.n_features),
        k_(s.n_components),
        stride_(row_stride<T>(k_)),
        // What a vector reads behind the last row.
        data_(n_features_ * stride_ + Vector<T>::kLanes) {
    data_.fill(0);
    for_columns([&](int64_t begin, int64_t end) {
      for (int64_t r = 0; r < k_; ++r)
        for (int64_t c = begin; c < end; ++c)
          data_.data()[c * stride_ + r] = H[r * n_features_ + c];
    });
  }

  // Rows that are read as numbers of the type As.
  template <class As = T>
  FactorRows<As, T> rows() const {
    return {data_.data(), stride_, blocks_of(k_, Vector<As>::kLanes)};
  }

  // H = what is here.
  void unpack(T* H) const {
    for_columns(
        [&](int64_t begin, int64_t end) { read(begin, end - begin, H + begin, n_features_); });
  }

  // block[r][c] = H[r][column + c], rows `width` apart.
  void read(int64_t column, int64_t columns, T* block, int64_t width) const {
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t r = 0; r < k_; ++r)
        block[r * width + c] = data_.data()[(column + c) * stride_ + r];
  }

  // The way back.
  void write(int64_t column, int64_t columns, const T* block, int64_t width) const {
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t r = 0; r < k_; ++r)
        data_.data()[(column + c) * stride_ + r] = block[r * width + c];
  }

 private:
  template <class F>
  void for_columns(const F& f) const {
    constexpr int64_t kBlockColumns = 64;
    parallel_for_each(blocks_of(n_features_, kBlockColumns), [&](int64_t block) {
      const int64_t begin = block * kBlockColumns;
      f(begin, std::min(begin + kBlockColumns, n_features_));
    });
  }

  int64_t n_features_, k_, stride_;
  Scratch<T> data_;
};

// Some rows of X with their zeros.
template <class T, class Index>
class DenseRows {
 public:
  DenseRows(const SparseParams<T, Index>& p, int64_t most_rows)
      : p_(p), data_(most_rows * p.shape.n_features) {
    data_.fill(0);
  }

  const T* data() const { return data_.data(); }

  // Rows [begin, end), the first of them in front; before, all must be zero.
  void fill(int64_t begin, int64_t end) const {
    for_entries(begin, end, [&](T& to, int64_t i) { to = p_.values[i]; });
  }

  // Makes them zero again.
  void clear(int64_t begin, int64_t end) const {
    for_entries(begin, end, [&](T& to, int64_t) { to = 0; });
  }

 private:
  template <class F>
  void for_entries(int64_t begin, int64_t end, const F& f) const {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t i = p_.crow[row]; i < p_.crow[row + 1]; ++i)
        f(data_.data()[(row - begin) * p_.shape.n_features + p_.col[i]], i);
  }

  const SparseParams<T, Index>& p_;
  Scratch<T> data_;
};

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
