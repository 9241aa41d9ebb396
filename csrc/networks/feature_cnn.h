// ISA source (see foreach_isa.h): the classifier on one block of rows.
//
// Activations of the convolutions lie position by position, [position][channel][kBlockRows], with a
// position of zeros before the first and after the last: the window of a position is then in one
// piece, and a convolution a dense layer for each position.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// What a block keeps between the layers.
template <class T>
struct CnnActivations {
  T *in, *first, *pair, *pooled, *hidden, *logits;

  static int64_t size(const CnnShape& s) {
    const int64_t padded_positions = s.n_features + 2;
    return kBlockRows * (padded_positions * (1 + s.first) + 2 * s.second + s.second * s.n_pooled() +
                         s.hidden + s.n_classes);
  }

  CnnActivations(const CnnShape& s, T* memory) : in(memory) {
    first = in + kBlockRows * (s.n_features + 2);
    pair = first + kBlockRows * (s.n_features + 2) * s.first;
    pooled = pair + kBlockRows * 2 * s.second;
    hidden = pooled + kBlockRows * s.second * s.n_pooled();
    logits = hidden + kBlockRows * s.hidden;
  }
};

// Gradients to the same.
template <class T>
struct CnnGradients {
  T *hidden, *pooled, *second, *first;

  static int64_t size(const CnnShape& s) {
    return kBlockRows *
           (s.hidden + s.second * s.n_pooled() + (s.n_features + 2) * (s.second + s.first));
  }

  CnnGradients(const CnnShape& s, T* memory) : hidden(memory) {
    pooled = hidden + kBlockRows * s.hidden;
    second = pooled + kBlockRows * s.second * s.n_pooled();
    first = second + kBlockRows * (s.n_features + 2) * s.second;
  }
};

template <class T>
NNMF_CUDA_INLINE void fill_zeros(T* to, int64_t n_units) {
  __builtin_memset(to, 0, sizeof(T) * static_cast<std::size_t>(n_units * kBlockRows));
}

// The larger of two positions, channel by channel; unit c * n_pooled + p of the pooled ones.
template <class T>
void pool_pair(const T* pair, int64_t p, const CnnShape& s, T* pooled, uint32_t* signs) {
  using V = Vector<T>;
  for (int64_t c = 0; c < s.second; ++c) {
    const int64_t unit = c * s.n_pooled() + p;
    for (int64_t row = 0; row < kBlockRows; row += V::kLanes) {
      const typename V::Lanes left = V::load(pair + c * kBlockRows + row),
                              right = V::load(pair + (s.second + c) * kBlockRows + row),
                              larger = V::max(left, right);
      V::store(pooled + unit * kBlockRows + row, larger);
      if (signs == nullptr) continue;
      put_bits<T>(signs + s.pooled_at(), unit, row, V::positive(larger));
      put_bits<T>(signs + s.pairs_at(), unit, row, V::positive(right - left));
    }
  }
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
  for (int64_t p = 0; p < s.n_pooled(); ++p) {
    for (int64_t half = 0; half < 2; ++half)
      dense_forward<kRelu, T>(cnn.second, cnn.second.bias, a.first + (2 * p + half) * first_size,
                              a.pair + half * s.second * kBlockRows, nullptr);
    pool_pair(a.pair, p, s, a.pooled, signs);
  }
  dense_forward<kRelu>(cnn.hidden, cnn.hidden.bias, a.pooled, a.hidden,
                       signs == nullptr ? nullptr : signs + s.hidden_at());
  dense_forward<Activation::kNone, T>(cnn.last, cnn.last.bias, a.hidden, a.logits, nullptr);
}

// Hands the gradient of each pooled unit to the one of its pair that it is.
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
  const int64_t first_size = s.first * kBlockRows, second_size = s.second * kBlockRows;
  dense_backward(cnn.last, s.hidden, grad, signs + s.hidden_at(), g.hidden);
  dense_backward(cnn.hidden, cnn.hidden.inputs, g.hidden, signs + s.pooled_at(), g.pooled);
  unpool(g.pooled, signs + s.pairs_at(), s, g.second);
  for (int64_t p = 0; p < s.n_features; ++p)
    dense_backward(cnn.second_backward, s.first, g.second + p * second_size, signs + p * s.first,
                   g.first + (p + 1) * first_size);
  fill_zeros(g.first, s.first);
  fill_zeros(g.first + (s.n_features + 1) * first_size, s.first);
  if (grad_in != nullptr)
    for (int64_t p = 0; p < s.n_features; ++p)
      dense_backward<T>(cnn.first_backward, 1, g.first + p * first_size, nullptr,
                        grad_in + p * kBlockRows);
  if (sums == nullptr) return;
  add_dense_sums(cnn.last, grad, sums->a->hidden, sums->last, sums->transposed);
  add_dense_sums(cnn.hidden, g.hidden, sums->a->pooled, sums->hidden, sums->transposed);
  add_convolution_sums(g.second, s.second, sums->a->first, s.first, 2 * s.n_pooled(),
                       s.n_features + 2, sums->second, sums->transposed);
  add_convolution_sums(g.first, s.first, sums->a->in, int64_t{1}, s.n_features, s.n_features + 2,
                       sums->first, sums->transposed);
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
