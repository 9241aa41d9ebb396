// ISA source (see isa.h): the micro-kernels of all CPU kernels that meet X, W and H.
//
// X is walked in panels of kRows rows and tiles of kColumns columns. H is packed tile by tile,
// [tile][n_components][kColumns] with zeros beyond its last column, so that a kernel reads it front
// to back. One tile of W H, or of a sum over W and X, is as large as the registers allow: 8 rows by
// 3 vectors fill 24 of the 32 registers of AVX-512, 4 by 3 fill 12 of 16 elsewhere.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

constexpr int64_t kRows = NNMF_CUDA_VECTOR_BYTES == 64 ? 8 : 4;
constexpr int64_t kVectors = 3;

template <class T>
constexpr int64_t kColumns = kVectors * Vector<T>::kLanes;

// sum = the panel's rows of W (row i at left + i * stride) times one tile of H.
template <class T>
NNMF_CUDA_INLINE void multiply(const T* left, int64_t stride, const T* right, int64_t n_components,
                               typename Vector<T>::Lanes (&sum)[kRows][kVectors]) {
  using V = Vector<T>;
#pragma GCC unroll 8
  for (int64_t i = 0; i < kRows; ++i)
#pragma GCC unroll 3
    for (int64_t v = 0; v < kVectors; ++v) sum[i][v] = typename V::Lanes{};
  for (int64_t r = 0; r < n_components; ++r) {
    typename V::Lanes h[kVectors];
#pragma GCC unroll 3
    for (int64_t v = 0; v < kVectors; ++v) h[v] = V::load(right + r * kColumns<T> + v * V::kLanes);
#pragma GCC unroll 8
    for (int64_t i = 0; i < kRows; ++i) {
      const typename V::Lanes w = V::broadcast(left[i * stride + r]);
#pragma GCC unroll 3
      for (int64_t v = 0; v < kVectors; ++v) sum[i][v] += w * h[v];
    }
  }
}

// What the sums fetch from afar while they add up, a line between multiply-adds: many at once would
// wait for one another. Nothing, or rows of X.
struct NothingAhead {
  NothingAhead from_row(int64_t) const { return {}; }
  NothingAhead right(int64_t) const { return {}; }
  void fetch_pages(int64_t) const {}

  template <class T>
  NNMF_CUDA_INLINE void fetch(int64_t, int64_t, int64_t) const {}
};

template <class Data>
struct RowsAhead {
  const Data* x;
  int64_t stride;

  RowsAhead from_row(int64_t row) const { return {x + row * stride, stride}; }
  RowsAhead right(int64_t columns) const { return {x + columns, stride}; }

  // Into the second cache what a vector of one row needs.
  template <class T>
  NNMF_CUDA_INLINE void fetch(int64_t row, int64_t column, int64_t vector) const {
    constexpr int64_t kBytes = Vector<T>::kLanes * int64_t{sizeof(Data)};
    if (vector * kBytes % int64_t{kCacheLine} == 0)
      __builtin_prefetch(x + row * stride + column + vector * Vector<T>::kLanes, 0, 2);
  }

  // One entry of each row into the first cache, where the pages of those rows are needed soon. A
  // fetch into the second would make an AMD processor wait while it looks for the page.
  void fetch_pages(int64_t rows) const {
    for (int64_t i = 0; i < rows; ++i) __builtin_prefetch(x + i * stride, 0, 3);
  }
};

// sums[c][i][lane] += terms[i][...] * right[...][c] for `rows` rows and `count` components: what
// the terms (n_tiles tiles wide) add to X H^T, each lane on its own. Meanwhile half as many rows
// are fetched, as wide.
template <int64_t rows, int64_t count, class T, class Data, class Ahead>
void add_row_sums(const Data* terms, int64_t stride, int64_t n_tiles, const T* right,
                  int64_t n_components, T* sums, const Ahead ahead) {
  using V = Vector<T>;
  typename V::Lanes sum[count][rows] = {};
  for (int64_t t = 0; t < n_tiles; ++t) {
#pragma GCC unroll 3
    for (int64_t v = 0; v < kVectors; ++v) {
      for (int64_t i = 0; i < rows / 2; ++i) ahead.template fetch<T>(i, t * kColumns<T>, v);
      typename V::Lanes h[count];
#pragma GCC unroll 8
      for (int64_t c = 0; c < count; ++c)
        h[c] = V::load_once(right + (t * n_components + c) * kColumns<T> + v * V::kLanes);
#pragma GCC unroll 8
      for (int64_t i = 0; i < rows; ++i) {
        const typename V::Lanes x =
            V::load_once(terms + i * stride + t * kColumns<T> + v * V::kLanes);
#pragma GCC unroll 8
        for (int64_t c = 0; c < count; ++c) sum[c][i] += x * h[c];
      }
    }
  }
#pragma GCC unroll 8
  for (int64_t c = 0; c < count; ++c)
#pragma GCC unroll 8
    for (int64_t i = 0; i < rows; ++i) {
      T* to = sums + (c * kRows + i) * V::kLanes;
      V::store(to, V::load(to) + sum[c][i]);
    }
}

// Rows that a sum over features holds in registers where X lies far apart: the lines of more would
// drive each other out of the first cache, as rows are often a power of two of bytes apart.
constexpr int64_t kApart = 4;

// All components of a panel, `rows` rows at a time: each row of terms is read once for as many
// components as the registers allow, each vector of H once for these rows. sums
// [n_components][kRows][lanes], right [n_tiles][n_components][kColumns]; `ahead` is a panel that is
// needed later.
template <int64_t rows, class T, class Data, class Ahead = NothingAhead>
NNMF_CUDA_INLINE void add_row_sums(const Data* terms, int64_t stride, int64_t n_tiles,
                                   const T* right, int64_t n_components, T* sums,
                                   const Ahead ahead = {}) {
  constexpr int64_t kMost = kVectors * kRows / rows;
  static_assert(kRows % rows == 0);
  for (int64_t row = 0; row < kRows; row += rows) {
    int64_t r = 0, fetched = 0;
    const auto part = [&]<int64_t count>() {
      add_row_sums<rows, count>(terms + row * stride, stride, n_tiles, right + r * kColumns<T>,
                                n_components, sums + (r * kRows + row) * Vector<T>::kLanes,
                                ahead.from_row(row + fetched));
      // Later the same rows once more: that costs less than a look whether all is fetched.
      fetched = rows / 2;
      r += count;
    };
    for (int64_t passes = blocks_of(n_components, kMost); passes > 0; --passes) {
      const int64_t count = blocks_of(n_components - r, passes);
      [&]<int64_t... less>(std::integer_sequence<int64_t, less...>) {
        ((count == less + 1 ? part.template operator()<less + 1>() : void()), ...);
      }(std::make_integer_sequence<int64_t, kMost>{});
    }
  }
}

// sums[c][kColumns] += left[.][c] * terms[.][kColumns] over n_rows rows, for `count` components.
// Meanwhile as many rows are fetched.
template <int64_t count, class T, class Data, class Ahead>
void add_column_sums(const Data* terms, int64_t stride, int64_t n_rows, const T* left,
                     int64_t left_stride, T* sums, const Ahead ahead) {
  using V = Vector<T>;
  typename V::Lanes sum[count][kVectors] = {};
  for (int64_t i = 0; i < n_rows; ++i) {
    typename V::Lanes x[kVectors];
#pragma GCC unroll 3
    for (int64_t v = 0; v < kVectors; ++v) {
      ahead.template fetch<T>(i, 0, v);
      x[v] = V::load(terms + i * stride + v * V::kLanes);
    }
#pragma GCC unroll 8
    for (int64_t c = 0; c < count; ++c) {
      const typename V::Lanes w = V::broadcast(left[i * left_stride + c]);
#pragma GCC unroll 3
      for (int64_t v = 0; v < kVectors; ++v) sum[c][v] += w * x[v];
    }
  }
#pragma GCC unroll 8
  for (int64_t c = 0; c < count; ++c)
#pragma GCC unroll 3
    for (int64_t v = 0; v < kVectors; ++v) {
      T* to = sums + c * kColumns<T> + v * V::kLanes;
      V::store(to, V::load(to) + sum[c][v]);
    }
}

// All components: sums [n_components][kColumns], row i of W at left + i * left_stride.
template <class T, class Data, class Ahead = NothingAhead>
NNMF_CUDA_INLINE void add_column_sums(const Data* terms, int64_t stride, int64_t n_rows,
                                      const T* left, int64_t left_stride, int64_t n_components,
                                      T* sums, const Ahead ahead = {}) {
  int64_t r = 0;
  const auto part = [&]<int64_t count>() {
    const T* w = left + r;
    T* to = sums + r * kColumns<T>;
    if (r == 0)
      add_column_sums<count>(terms, stride, n_rows, w, left_stride, to, ahead);
    else
      add_column_sums<count>(terms, stride, n_rows, w, left_stride, to, NothingAhead{});
    r += count;
  };
  while (r + kRows <= n_components) part.template operator()<kRows>();
  const auto rest = [&]<int64_t... counts>(std::integer_sequence<int64_t, counts...>) {
    const int64_t left_over = n_components - r;
    ((left_over == counts + 1 ? part.template operator()<counts + 1>() : void()), ...);
  };
  rest(std::make_integer_sequence<int64_t, kRows - 1>{});
}

// totals += the sums, whose lanes are added up; the sums become zero.
template <class T>
NNMF_CUDA_INLINE void flush_lanes(T* sums, int64_t size, double* totals) {
  using V = Vector<T>;
  for (int64_t i = 0; i < size; ++i) {
    totals[i] += static_cast<double>(V::sum(V::load(sums + i * V::kLanes)));
    V::store(sums + i * V::kLanes, typename V::Lanes{});
  }
}

// Small problems are solved each on one thread, large ones one after another on all of them.
template <class Data>
bool is_small(const Shape& s) {
  return s.n_samples * s.n_features * int64_t{sizeof(Data)} < (1 << 20);
}

template <class Data, class F>
void for_each_problem(const Shape& s, const F& f) {
  if (is_small<Data>(s) && s.batch > 1)
    parallel_for_each(s.batch, f);
  else
    for (int64_t b = 0; b < s.batch; ++b) f(b);
}

// X and W where they are, H packed tile by tile.
template <class T, class Data>
struct Problem {
  Problem(const Data* X_, int64_t x_stride_, T* W_, const T* H, const Shape& s)
      : X(X_),
        x_stride(x_stride_),
        W(W_),
        n_samples(s.n_samples),
        n_features(s.n_features),
        n_components(s.n_components),
        n_tiles(blocks_of(s.n_features, kColumns<T>)),
        tile_size(s.n_components * kColumns<T>),
        tiles(n_tiles * tile_size) {
    parallel_for_each(n_tiles, [&](int64_t tile) {
      std::fill_n(tiles + tile * tile_size, tile_size, T{0});
      for (int64_t r = 0; r < n_components; ++r)
        std::copy_n(H + r * n_features + tile * kColumns<T>, columns_of(tile),
                    tiles + tile * tile_size + r * kColumns<T>);
    });
  }

  void unpack(T* H) const {
    parallel_for_each(n_tiles, [&](int64_t tile) {
      for (int64_t r = 0; r < n_components; ++r)
        std::copy_n(tiles + tile * tile_size + r * kColumns<T>, columns_of(tile),
                    H + r * n_features + tile * kColumns<T>);
    });
  }

  // The columns of a tile that are no padding.
  int64_t columns_of(int64_t tile) const {
    return std::min(kColumns<T>, n_features - tile * kColumns<T>);
  }

  const Data* X;  // [n_samples, n_features], rows x_stride apart
  int64_t x_stride;
  T* W;  // [n_samples, n_components]; null where only X and H matter
  int64_t n_samples, n_features, n_components, n_tiles, tile_size;
  Scratch<T> tiles;  // [n_tiles, n_components, kColumns]
};

// Rows of W for the micro-kernels: where they are, or padded with zeros where a panel is not full.
template <class T>
struct Left {
  const T* data;
  int64_t stride;
};

template <class T, class Data>
NNMF_CUDA_INLINE Left<T> left_of(const Problem<T, Data>& p, int64_t row, int64_t rows, T* padded) {
  const int64_t k = p.n_components;
  if (rows == kRows) return {p.W + row * k, k};
  std::fill_n(padded, kRows * k, T{0});
  std::copy_n(p.W + row * k, rows * k, padded);
  return {padded, k};
}

// One panel of X in the columns of one tile, and of W: where they are, or padded with zeros.
template <class T, class Data>
struct Panel {
  const Data* x;
  int64_t x_stride;
  Left<T> left;
  int64_t rows, columns;  // what is no padding
  const Data* ahead;      // the panel that is needed next but some, not necessarily within X
};

// Tile `tile` of the panel that starts at `row` and has `rows` rows. `edge` has room for one.
template <class T, class Data>
NNMF_CUDA_INLINE Panel<T, Data> panel_of(const Problem<T, Data>& p, const Left<T>& left,
                                         int64_t row, int64_t rows, int64_t tile, int64_t ahead,
                                         Data* edge) {
  const int64_t columns = p.columns_of(tile);
  const Data* x = p.X + row * p.x_stride + tile * kColumns<T>;
  if (rows == kRows && columns == kColumns<T>)
    return {x, p.x_stride, left, rows, columns, x + ahead};
  std::fill_n(edge, kRows * kColumns<T>, Data{0});
  for (int64_t i = 0; i < rows; ++i)
    std::copy_n(x + i * p.x_stride, columns, edge + i * kColumns<T>);
  return {edge, kColumns<T>, left, rows, columns, x + ahead};
}

// Fetches a panel of X in the columns of one tile into the first cache or, for later, the second.
// Where rows lie pages apart the processor does not look ahead by itself.
template <class T, bool later, class Data>
NNMF_CUDA_INLINE void prefetch(const Data* x, int64_t x_stride) {
  constexpr int64_t kLine = int64_t{kCacheLine} / int64_t{sizeof(Data)};
#pragma GCC unroll 8
  for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 3
    for (int64_t c = 0; c < kColumns<T>; c += kLine)
      __builtin_prefetch(x + i * x_stride + c, 0, later ? 2 : 3);
  }
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
