// ISA source (see foreach_isa.h): the micro-kernel of the networks, and what it is fed with.
//
// Activations of kBlockRows rows lie unit by unit, [unit][kBlockRows]: the rows are the lanes of
// vectors, so that a weight is one number for all of them, and ReLU, pooling and masks need no
// shuffles. A tile is as large as the registers allow: 12 outputs by 2 vectors fill 24 of the 32
// registers of AVX-512, 6 by 2 fill 12 of 16 elsewhere.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

constexpr int64_t kOutputs = NNMF_CUDA_VECTOR_BYTES == 64 ? 12 : 6;
constexpr int64_t kPair = 2;

template <class T>
constexpr int64_t kColumns = kPair * Vector<T>::kLanes;

// sum_k left[o * out_stride + k * in_stride] * right[k * right_stride + column] for `count` outputs
// and kPair vectors of columns. `left` may be a matrix or its transpose. Few outputs would wait for
// each multiply-add before the next one: their sums are taken in several chains.
template <int64_t count, class T>
NNMF_CUDA_INLINE void multiply_tile(const T* left, int64_t out_stride, int64_t in_stride,
                                    const T* right, int64_t right_stride, int64_t n_in,
                                    typename Vector<T>::Lanes (&sum)[count][kPair]) {
  using V = Vector<T>;
  constexpr int64_t kChains = count == 1 ? 4 : count == 2 ? 2 : 1;
  typename V::Lanes part[kChains][count][kPair] = {};
  const auto add = [&](int64_t chain) __attribute__((always_inline)) {
    typename V::Lanes r[kPair];
#pragma GCC unroll 2
    for (int64_t v = 0; v < kPair; ++v) r[v] = V::load_once(right + v * V::kLanes);
#pragma GCC unroll 12
    for (int64_t o = 0; o < count; ++o) {
      const typename V::Lanes l = V::broadcast(left[o * out_stride]);
#pragma GCC unroll 2
      for (int64_t v = 0; v < kPair; ++v) part[chain][o][v] += l * r[v];
    }
    left += in_stride;
    right += right_stride;
  };
  int64_t k = 0;
  for (; k + kChains <= n_in; k += kChains)
#pragma GCC unroll 4
    for (int64_t chain = 0; chain < kChains; ++chain) add(chain);
  for (; k < n_in; ++k) add(0);
#pragma GCC unroll 12
  for (int64_t o = 0; o < count; ++o)
#pragma GCC unroll 2
    for (int64_t v = 0; v < kPair; ++v) {
      sum[o][v] = part[0][o][v];
#pragma GCC unroll 4
      for (int64_t chain = 1; chain < kChains; ++chain) sum[o][v] += part[chain][o][v];
    }
}

// A product of matrices: finish(o, column, vector) is called with every vector of the result.
// n_columns is a multiple of kColumns.
template <class T, class Finish>
NNMF_CUDA_INLINE void multiply(const T* left, int64_t out_stride, int64_t in_stride, const T* right,
                               int64_t right_stride, int64_t n_in, int64_t n_out, int64_t n_columns,
                               const Finish& finish) {
  using V = Vector<T>;
  for (int64_t column = 0; column < n_columns; column += kColumns<T>) {
    int64_t o = 0;
    const auto tiles = [&]<int64_t count>() __attribute__((always_inline)) {
      for (; o + count <= n_out; o += count) {
        typename V::Lanes sum[count][kPair];
        multiply_tile<count>(left + o * out_stride, out_stride, in_stride, right + column,
                             right_stride, n_in, sum);
#pragma GCC unroll 12
        for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 2
          for (int64_t v = 0; v < kPair; ++v) finish(o + i, column + v * V::kLanes, sum[i][v]);
      }
    };
    tiles.template operator()<kOutputs>();
    if constexpr (kOutputs > 8) tiles.template operator()<8>();
    tiles.template operator()<4>();
    tiles.template operator()<3>();
    tiles.template operator()<2>();
    tiles.template operator()<1>();
  }
}

// to[row][unit] = from[unit][row] for one block; the rows of `to` are `stride` apart.
template <class T>
void transpose(const T* from, int64_t n_units, T* to, int64_t stride) {
  constexpr int64_t kUnits = 64 / int64_t{sizeof(T)};  // a cache line of each row at a time
  for (int64_t first = 0; first < n_units; first += kUnits) {
    const int64_t n = n_units - first < kUnits ? n_units - first : kUnits;
    for (int64_t row = 0; row < kBlockRows; ++row)
      for (int64_t u = 0; u < n; ++u)
        to[row * stride + first + u] = from[(first + u) * kBlockRows + row];
  }
}

// to[unit][row] = from[row][unit]; zero beyond the last row.
template <class T>
void load_rows(const T* from, int64_t n_rows, int64_t n_units, T* to) {
  for (int64_t row = 0; row < kBlockRows; ++row)
    for (int64_t u = 0; u < n_units; ++u)
      to[u * kBlockRows + row] = row < n_rows ? from[row * n_units + u] : T{0};
}

// to[row][unit] = factor * from[unit][row].
template <class T>
void store_rows(const T* from, int64_t n_rows, int64_t n_units, T factor, T* to) {
  for (int64_t row = 0; row < n_rows; ++row)
    for (int64_t u = 0; u < n_units; ++u)
      to[row * n_units + u] = factor * from[u * kBlockRows + row];
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
