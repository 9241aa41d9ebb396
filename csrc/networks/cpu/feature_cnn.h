// ISA source (see isa.h): the classifier on one block of rows.
//
// Activations of the convolutions lie position by position, [position][channel][kBlockRows], with a
// position of zeros before the first and after the last: the window of a position is then in one
// piece. The first convolution is a dense layer for each position, the second filters for each
// pair.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// A convolution of kernel 3 at two neighbouring positions at once, by Winograd's minimal filtering
// F(2, 3): four products of matrices instead of six.
//
// With d0 to d3 what the two windows see together, and g0 to g2 the kernel (Lavin & Gray 2016):
//   m0 = (d0 - d2) g0, m1 = (d1 + d2) (g0 + g1 + g2) / 2, m2 = (d2 - d1) (g0 - g1 + g2) / 2,
//   m3 = (d1 - d3) g2; the outputs are m0 + m1 + m2 and m1 - m2 - m3.

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

// What a block keeps between the layers.
template <class T>
struct CnnActivations {
  T *in, *first, *windows, *pooled, *hidden, *logits;

  static int64_t size(const CnnShape& s) {
    const int64_t padded_positions = s.n_features + 2;
    return kBlockRows * (padded_positions * (1 + s.first) + kFilters * s.first +
                         s.second * s.n_pooled() + s.hidden + s.n_classes);
  }

  CnnActivations(const CnnShape& s, T* memory) : in(memory) {
    first = in + kBlockRows * (s.n_features + 2);
    windows = first + kBlockRows * (s.n_features + 2) * s.first;
    pooled = windows + kBlockRows * kFilters * s.first;
    hidden = pooled + kBlockRows * s.second * s.n_pooled();
    logits = hidden + kBlockRows * s.hidden;
  }
};

// Gradients to the same.
template <class T>
struct CnnGradients {
  T *hidden, *pooled, *second, *windows, *first;

  static int64_t size(const CnnShape& s) {
    return kBlockRows * (s.hidden + s.second * (s.n_pooled() + kFilters) +
                         (s.n_features + 2) * (s.second + s.first));
  }

  CnnGradients(const CnnShape& s, T* memory) : hidden(memory) {
    pooled = hidden + kBlockRows * s.hidden;
    second = pooled + kBlockRows * s.second * s.n_pooled();
    windows = second + kBlockRows * (s.n_features + 2) * s.second;
    first = windows + kBlockRows * kFilters * s.second;
  }
};

template <class T>
NNMF_CUDA_INLINE void fill_zeros(T* to, int64_t n_units) {
  __builtin_memset(to, 0, sizeof(T) * static_cast<std::size_t>(n_units * kBlockRows));
}

// The second convolution of pair p, ReLU, and the larger of its two positions: unit
// c * n_pooled + p of the pooled ones.
template <class T>
void convolve_pair(const FeatureCnn<T>& cnn, int64_t p, const CnnActivations<T>& a,
                   uint32_t* signs) {
  using V = Vector<T>;
  using Lanes = typename V::Lanes;
  const CnnShape& s = cnn.shape;
  const int64_t stride = s.first * kBlockRows;
  transform_windows(a.first + 2 * p * stride, stride, s.first, a.windows);
  filter_pair(cnn.second, a.windows,
              [&](int64_t c, int64_t row, const Lanes& left, const Lanes& right)
                  __attribute__((always_inline)) {
                    const Lanes bias = V::broadcast(cnn.second.bias[c]),
                                first = V::max(Lanes{}, left + bias),
                                second = V::max(Lanes{}, right + bias),
                                larger = V::max(first, second);
                    const int64_t unit = c * s.n_pooled() + p;
                    V::store(a.pooled + unit * kBlockRows + row, larger);
                    if (signs == nullptr) return;
                    put_bits<T>(signs + s.pooled_at(), unit, row, V::positive(larger));
                    put_bits<T>(signs + s.pairs_at(), unit, row, V::positive(second - first));
                  });
}

// The features stand in a.in, from its second position on; a.logits are the result.
template <class T>
void feature_cnn_forward(const FeatureCnn<T>& cnn, const CnnActivations<T>& a, uint32_t* signs) {
  constexpr Activation kRelu = Activation::kRelu;
  const CnnShape& s = cnn.shape;
  const int64_t first_size = s.first * kBlockRows;
  fill_zeros(a.in, 1);
  fill_zeros(a.in + (s.n_features + 1) * kBlockRows, 1);
  fill_zeros(a.first, s.first);
  fill_zeros(a.first + (s.n_features + 1) * first_size, s.first);
  for (int64_t p = 0; p < s.n_features; ++p)
    dense_forward<kRelu>(cnn.first, cnn.first.bias, a.in + p * kBlockRows,
                         a.first + (p + 1) * first_size,
                         signs == nullptr ? nullptr : signs + p * s.first);
  for (int64_t p = 0; p < s.n_pooled(); ++p) convolve_pair(cnn, p, a, signs);
  dense_forward<kRelu>(cnn.hidden, cnn.hidden.bias, a.pooled, a.hidden,
                       signs == nullptr ? nullptr : signs + s.hidden_at());
  dense_forward<Activation::kNone, T>(cnn.last, cnn.last.bias, a.hidden, a.logits, nullptr);
}

// Hands the gradient of each pooled unit to the one of its pair that it is, for the sums of
// weights.
template <class T>
void unpool(const T* pooled, const uint32_t* pairs, const CnnShape& s, T* second) {
  using V = Vector<T>;
  const int64_t size = s.second * kBlockRows;
  fill_zeros(second, s.second);
  for (int64_t p = 2 * s.n_pooled(); p <= s.n_features; ++p)
    fill_zeros(second + (p + 1) * size, s.second);
  for (int64_t p = 0; p < s.n_pooled(); ++p)
    for (int64_t c = 0; c < s.second; ++c) {
      const int64_t unit = c * s.n_pooled() + p;
      T* to = second + (2 * p + 1) * size + c * kBlockRows;
      for (int64_t row = 0; row < kBlockRows; row += V::kLanes) {
        const typename V::Lanes v = V::load(pooled + unit * kBlockRows + row);
        V::store(to + row, V::keep(~pairs[unit] >> row, v));
        V::store(to + size + row, V::keep(pairs[unit] >> row, v));
      }
    }
}

// What the windows of positions 2 p and 2 p + 1 see of the gradient to the second convolution,
// transformed: of each pooled unit, one position of its pair has the gradient, the other zero.
template <class T>
void transform_pooled(const T* pooled, const uint32_t* pairs, int64_t p, const CnnShape& s,
                      T* windows) {
  using V = Vector<T>;
  using Lanes = typename V::Lanes;
  for (int64_t c = 0; c < s.second; ++c)
    for (int64_t row = 0; row < kBlockRows; row += V::kLanes) {
      const auto load = [&](int64_t pair, bool second) __attribute__((always_inline)) {
        if (pair < 0 || pair >= s.n_pooled()) return Lanes{};
        const int64_t unit = c * s.n_pooled() + pair;
        return V::keep((second ? pairs[unit] : ~pairs[unit]) >> row,
                       V::load(pooled + unit * kBlockRows + row));
      };
      const Lanes before = load(p - 1, true), left = load(p, false), right = load(p, true),
                  after = load(p + 1, false);
      store_windows<T>(before, left, right, after, windows + c * kFilters * kBlockRows + row);
    }
}

// The gradient to the first convolution's outputs, from that to the pooled ones.
template <class T>
void second_backward(const FeatureCnn<T>& cnn, const uint32_t* signs, const CnnGradients<T>& g) {
  using V = Vector<T>;
  using Lanes = typename V::Lanes;
  const CnnShape& s = cnn.shape;
  for (int64_t p = 0; 2 * p < s.n_features; ++p) {
    transform_pooled(g.pooled, signs + s.pairs_at(), p, s, g.windows);
    const bool has_right = 2 * p + 1 < s.n_features;  // else zeros, where they belong
    filter_pair(cnn.second_backward, g.windows,
                [&](int64_t c, int64_t row, const Lanes& left, const Lanes& right)
                    __attribute__((always_inline)) {
                      const int64_t unit = 2 * p * s.first + c;
                      T* to = g.first + (s.first + unit) * kBlockRows + row;
                      V::store(to, V::keep(signs[unit] >> row, left));
                      V::store(to + s.first * kBlockRows,
                               V::keep(has_right ? signs[unit + s.first] >> row : 0, right));
                    });
  }
}

// Gradients of the weights are summed here: four layers, in the layout of FeatureCnn, from what a
// forward pass left in `a`.
template <class T>
struct CnnSums {
  const CnnActivations<T>* a;
  LayerSums<T> first, second, hidden, last;
  T* transposed;  // for the largest of what the layers are given, and some columns more
};

template <class T>
void add_convolution_sums(const T* grad, int64_t n_out, const T* given, int64_t n_in,
                          int64_t n_positions, int64_t padded_positions, const LayerSums<T>& sums,
                          T* transposed) {
  // A window is read by whole tiles: what they find beyond it goes into columns of the sums that
  // nobody reads.
  const int64_t stride = padded(padded_positions * n_in) + 32;
  transpose(given, padded_positions * n_in, transposed, stride);
  for (int64_t p = 0; p < n_positions; ++p) {
    const T* at = grad + (p + 1) * n_out * kBlockRows;
    add_outer(at, n_out, transposed + p * n_in, stride, 3 * n_in, sums.weight);
    add_rows(at, n_out, sums.bias);
  }
}

// grad_in [n_features][kBlockRows] = the gradient to the features from that to the logits; no
// grad_in, if it is null. With `sums`, the gradients of the weights are added there.
template <class T>
void feature_cnn_backward(const FeatureCnn<T>& cnn, const T* grad, const uint32_t* signs,
                          const CnnGradients<T>& g, T* grad_in, const CnnSums<T>* sums) {
  const CnnShape& s = cnn.shape;
  const int64_t first_size = s.first * kBlockRows;
  dense_backward(cnn.last, s.hidden, grad, signs + s.hidden_at(), g.hidden);
  dense_backward(cnn.hidden, cnn.hidden.inputs, g.hidden, signs + s.pooled_at(), g.pooled);
  second_backward(cnn, signs, g);
  fill_zeros(g.first, s.first);
  fill_zeros(g.first + (s.n_features + 1) * first_size, s.first);
  if (grad_in != nullptr)
    for (int64_t p = 0; p < s.n_features; ++p)
      dense_backward<T>(cnn.first_backward, 1, g.first + p * first_size, nullptr,
                        grad_in + p * kBlockRows);
  if (sums == nullptr) return;
  add_dense_sums(cnn.last, grad, sums->a->hidden, sums->last, sums->transposed);
  add_dense_sums(cnn.hidden, g.hidden, sums->a->pooled, sums->hidden, sums->transposed);
  unpool(g.pooled, signs + s.pairs_at(), s, g.second);
  add_convolution_sums(g.second, s.second, sums->a->first, s.first, 2 * s.n_pooled(),
                       s.n_features + 2, sums->second, sums->transposed);
  add_convolution_sums(g.first, s.first, sums->a->in, int64_t{1}, s.n_features, s.n_features + 2,
                       sums->first, sums->transposed);
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
