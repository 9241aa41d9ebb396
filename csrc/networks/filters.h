// ISA source (see foreach_isa.h): a convolution of kernel 3 at two neighbouring positions at once,
// by Winograd's minimal filtering F(2, 3): four products of matrices instead of six.
//
// With d0 to d3 what the two windows see together, and g0 to g2 the kernel (Lavin & Gray 2016):
//   m0 = (d0 - d2) g0, m1 = (d1 + d2) (g0 + g1 + g2) / 2, m2 = (d2 - d1) (g0 - g1 + g2) / 2,
//   m3 = (d1 - d3) g2; the outputs are m0 + m1 + m2 and m1 - m2 - m3.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

constexpr int64_t kFilterOutputs = NNMF_CUDA_VECTOR_BYTES == 64 ? 3 : 1;

// sums[j][o][v] = the j-th product, for `count` outputs and kPair vectors of rows.
template <int64_t count, class T>
NNMF_CUDA_INLINE void filter_tile(const T* filters, const T* windows, int64_t n_in,
                                  typename Vector<T>::Lanes (&sums)[kFilters][count][kPair]) {
  using V = Vector<T>;
  typename V::Lanes part[kFilters][count][kPair] = {};
  const int64_t stride = n_in * kFilters;
  for (int64_t i = 0; i < n_in; ++i, filters += kFilters, windows += kFilters * kBlockRows)
#pragma GCC unroll 4
    for (int64_t j = 0; j < kFilters; ++j) {
      typename V::Lanes r[kPair];
#pragma GCC unroll 2
      for (int64_t v = 0; v < kPair; ++v)
        r[v] = V::load_once(windows + j * kBlockRows + v * V::kLanes);
#pragma GCC unroll 3
      for (int64_t o = 0; o < count; ++o) {
        const typename V::Lanes l = V::broadcast(filters[o * stride + j]);
#pragma GCC unroll 2
        for (int64_t v = 0; v < kPair; ++v) part[j][o][v] += l * r[v];
      }
    }
  __builtin_memcpy(sums, part, sizeof(part));
}

// finish(o, row, first, second) is called with every vector of both positions' outputs.
// windows: [inputs][kFilters][kBlockRows].
template <class T, class Finish>
NNMF_CUDA_INLINE void filter_pair(const Filters<T>& layer, const T* windows, const Finish& finish) {
  using V = Vector<T>;
  for (int64_t row = 0; row < kBlockRows; row += kColumns<T>) {
    int64_t o = 0;
    const auto tiles = [&]<int64_t count>() __attribute__((always_inline)) {
      for (; o + count <= layer.outputs; o += count) {
        typename V::Lanes m[kFilters][count][kPair];
        filter_tile<count>(layer.weight + o * layer.inputs * kFilters, windows + row, layer.inputs,
                           m);
#pragma GCC unroll 3
        for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 2
          for (int64_t v = 0; v < kPair; ++v)
            finish(o + i, row + v * V::kLanes, m[0][i][v] + m[1][i][v] + m[2][i][v],
                   m[1][i][v] - m[2][i][v] - m[3][i][v]);
      }
    };
    tiles.template operator()<kFilterOutputs>();
    if constexpr (kFilterOutputs > 2) tiles.template operator()<2>();
    tiles.template operator()<1>();
  }
}

template <class T>
NNMF_CUDA_INLINE void store_windows(const typename Vector<T>::Lanes& d0,
                                    const typename Vector<T>::Lanes& d1,
                                    const typename Vector<T>::Lanes& d2,
                                    const typename Vector<T>::Lanes& d3, T* to) {
  using V = Vector<T>;
  V::store(to, d0 - d2);
  V::store(to + kBlockRows, d1 + d2);
  V::store(to + 2 * kBlockRows, d2 - d1);
  V::store(to + 3 * kBlockRows, d1 - d3);
}

// What the windows of two positions see, d0 to d3 being units apart by `stride`.
template <class T>
void transform_windows(const T* d0, int64_t stride, int64_t n_units, T* windows) {
  using V = Vector<T>;
  for (int64_t i = 0; i < n_units; ++i, d0 += kBlockRows, windows += kFilters * kBlockRows)
    for (int64_t row = 0; row < kBlockRows; row += V::kLanes) {
      const T* at = d0 + row;
      store_windows<T>(V::load(at), V::load(at + stride), V::load(at + 2 * stride),
                       V::load(at + 3 * stride), windows + row);
    }
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
