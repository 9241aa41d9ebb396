// ISA source (see foreach_isa.h): layers on one block of rows, forwards, backwards, and the
// gradients of their weights. Activations lie as tiles.h says; signs are one word a unit, bit r for
// row r.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

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

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
