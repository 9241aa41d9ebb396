// ISA source (see foreach_isa.h): the denoiser's layers on one block of rows.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

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
