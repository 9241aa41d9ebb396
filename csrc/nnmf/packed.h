// ISA source (see foreach_isa.h): one factorisation as the micro-kernels want it.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

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
