// ISA source (see isa.h): the micro-kernel of the networks, what it is fed with, and dense layers
// on one block of rows: forwards, backwards, and the gradients of their weights.
//
// Activations of kBlockRows rows lie unit by unit, [unit][kBlockRows]: the rows are the lanes of
// vectors, so that a weight is one number for all of them, and ReLU, pooling and masks need no
// shuffles. Signs are one word a unit, bit r for row r. A tile is as large as the registers allow:
// 12 outputs by 2 vectors fill 24 of the 32 registers of AVX-512, 6 by 2 fill 12 of 16 elsewhere.

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

// signs[unit] gets the bits of a vector that starts at `row`.
template <class T>
NNMF_CUDA_INLINE void put_bits(uint32_t* signs, int64_t unit, int64_t row, uint32_t bits) {
  signs[unit] = row == 0 ? bits : signs[unit] | bits << row;
}

enum class Activation { kNone, kRelu };

// out = weight in + bias, and ReLU. Signs are kept where there is room for them.
template <Activation activation, class T>
void dense_forward(const Dense<T>& layer, const T* bias, const T* in, T* out, uint32_t* signs) {
  using V = Vector<T>;
  multiply(layer.weight, layer.stride, int64_t{1}, in, kBlockRows, layer.inputs, layer.outputs,
           kBlockRows,
           [=](int64_t o, int64_t row, typename V::Lanes v) __attribute__((always_inline)) {
             v += V::broadcast(bias[o]);
             if constexpr (activation == Activation::kRelu) {
               if (signs != nullptr) put_bits<T>(signs, o, row, V::positive(v));
               v = V::max(typename V::Lanes{}, v);
             }
             V::store(out + o * kBlockRows + row, v);
           });
}

// grad_in = weight^T grad, for the first n_inputs inputs; zero where the signs of those say so.
template <class T>
void dense_backward(const Dense<T>& layer, int64_t n_inputs, const T* grad, const uint32_t* signs,
                    T* grad_in) {
  using V = Vector<T>;
  multiply(layer.weight, int64_t{1}, layer.stride, grad, kBlockRows, layer.outputs, n_inputs,
           kBlockRows,
           [=](int64_t i, int64_t row, typename V::Lanes v) __attribute__((always_inline)) {
             if (signs != nullptr) v = V::keep(signs[i] >> row, v);
             V::store(grad_in + i * kBlockRows + row, v);
           });
}

// sums[o][column] += sum over rows of grad[o][row] * given[row][column]: `given` is transposed, its
// rows `given_stride` apart; the rows of sums are padded(n_columns) apart.
template <class T>
void add_outer(const T* grad, int64_t n_out, const T* given, int64_t given_stride,
               int64_t n_columns, T* sums) {
  using V = Vector<T>;
  const int64_t stride = padded(n_columns);
  multiply(grad, kBlockRows, int64_t{1}, given, given_stride, kBlockRows, n_out, stride,
           [=](int64_t o, int64_t column, typename V::Lanes v) __attribute__((always_inline)) {
             T* to = sums + o * stride + column;
             V::store(to, V::load(to) + v);
           });
}

// sums[o] += the sum over rows of grad[o][row].
template <class T>
void add_rows(const T* grad, int64_t n_out, T* sums) {
  using V = Vector<T>;
  for (int64_t o = 0; o < n_out; ++o) {
    typename V::Lanes sum{};
    for (int64_t row = 0; row < kBlockRows; row += V::kLanes)
      sum += V::load(grad + o * kBlockRows + row);
    sums[o] += V::sum(sum);
  }
}

// outputs[l] gets the output of layer l. `bias` stands for the first layer's; the signs of the
// hidden layers follow each other.
template <class T>
void mlp_forward(const Mlp<T>& mlp, const T* bias, const T* in, T* const* outputs,
                 uint32_t* signs) {
  for (int64_t l = 0; l < mlp.n_layers; ++l) {
    const Dense<T>& layer = mlp.layers[l];
    if (l + 1 < mlp.n_layers) {
      dense_forward<Activation::kRelu>(layer, bias, in, outputs[l], signs);
      if (signs != nullptr) signs += layer.outputs;
      bias = mlp.layers[l + 1].bias;
    } else {
      dense_forward<Activation::kNone, T>(layer, bias, in, outputs[l], nullptr);
    }
    in = outputs[l];
  }
}

// What the gradients of the weights need: what each layer was given, [inputs][kBlockRows]; where
// they are summed; memory for the largest input, transposed.
template <class T>
struct WeightSums {
  const T* const* given;
  const LayerSums<T>* layers;
  T* transposed;
};

template <class T>
void add_dense_sums(const Dense<T>& layer, const T* grad, const T* given, const LayerSums<T>& sums,
                    T* transposed) {
  const int64_t stride = padded(layer.inputs);
  transpose(given, layer.inputs, transposed, stride);
  add_outer(grad, layer.outputs, transposed, stride, layer.inputs, sums.weight);
  add_rows(grad, layer.outputs, sums.bias);
}

// grad_in = the gradient to the input from that to the output (grad); no grad_in, if it is null.
// `signs` are those of mlp_forward; `work` is memory for two of the widest layers. With `sums`, the
// gradients of the weights are added there.
template <class T>
void mlp_backward(const Mlp<T>& mlp, const T* grad, const uint32_t* signs, T* const (&work)[2],
                  T* grad_in, const WeightSums<T>* sums) {
  for (int64_t l = 0; l + 1 < mlp.n_layers; ++l) signs += mlp.layers[l].outputs;
  for (int64_t l = mlp.n_layers - 1; l >= 0; --l) {
    const Dense<T>& layer = mlp.layers[l];
    if (sums != nullptr)
      add_dense_sums(layer, grad, sums->given[l], sums->layers[l], sums->transposed);
    if (l > 0) {
      signs -= layer.inputs;
      dense_backward(layer, layer.inputs, grad, signs, work[l % 2]);
      grad = work[l % 2];
    } else if (grad_in != nullptr) {
      dense_backward<T>(layer, layer.inputs, grad, nullptr, grad_in);
    }
  }
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
