// ISA source (see foreach_isa.h): a defended classifier on one block of rows, forwards and
// backwards. It serves purification alone and the network alone too.
// clang-format off: each builds on those before it
#include "../networks/tiles.h"
#include "../networks/layers.h"
#include "../networks/mlp.h"
#include "../networks/filters.h"
#include "../networks/feature_cnn.h"
#include "philox_normals.h"
#include "chain.h"
// clang-format on

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// Numbers of scratch memory that the functions below need.
template <class T>
int64_t forward_memory(const Defence<T>& d, int64_t n_kept_steps) {
  int64_t size = kBlockRows * 2 * d.n_features;
  if (d.chain != nullptr) size += n_kept_steps * ChainActivations<T>::size(*d.chain, d.n_features);
  if (d.cnn != nullptr) size += CnnActivations<T>::size(d.cnn->shape);
  return size;
}

template <class T>
int64_t backward_memory(const Defence<T>& d) {
  int64_t size = kBlockRows * d.n_outputs();
  if (d.chain != nullptr) size += ChainGradients<T>::size(*d.chain, d.n_features);
  if (d.cnn != nullptr) size += CnnGradients<T>::size(d.cnn->shape) + kBlockRows * d.n_features;
  return size;
}

// Forward memory, cut up.
template <class T>
struct Activations {
  T *noise, *prediction;
  ChainActivations<T> chain{nullptr, 0};
  CnnActivations<T> cnn;

  Activations(const Defence<T>& d, int64_t n_kept_steps, T* memory)
      : noise(memory),
        prediction(memory + kBlockRows * d.n_features),
        cnn(d.cnn == nullptr ? CnnShape{} : d.cnn->shape, prediction + kBlockRows * d.n_features) {
    T* next = prediction + kBlockRows * d.n_features;
    if (d.cnn != nullptr) {
      next += CnnActivations<T>::size(d.cnn->shape);
      prediction = cnn.in + kBlockRows;  // the network's input, after its position of zeros
    }
    if (d.chain == nullptr) return;
    const int64_t size = ChainActivations<T>::size(*d.chain, d.n_features);
    chain = {next, n_kept_steps > 1 ? size : 0};
  }
};

template <class T>
void forward(const Defence<T>& d, const Rows& rows, const Activations<T>& a, uint32_t* signs) {
  if (d.chain != nullptr)
    chain_forward(d, rows, a.chain, a.noise, signs, a.prediction);
  else
    load_samples(d.x, rows, d.n_draws, d.n_features, T{1}, a.prediction);
  if (d.cnn != nullptr)
    feature_cnn_forward(*d.cnn, a.cnn, signs == nullptr ? nullptr : signs + d.chain_words());
}

// out[row] = the prediction, or the logits, of each row of a block. Signs may be null.
template <class T>
void forward_block(const Defence<T>& d, int64_t block, T* memory, T* out, uint32_t* signs) {
  const Rows rows = rows_of(d, block);
  const Activations<T> a(d, 1, memory);
  if (signs != nullptr) signs += block * d.n_words();
  forward(d, rows, a, signs);
  if (signs != nullptr && rows.count < kBlockRows)
    for (int64_t u = 0; u < d.n_words(); ++u) signs[u] &= (1u << rows.count) - 1;
  store_rows(d.cnn == nullptr ? a.prediction : a.cnn.logits, rows.count, d.n_outputs(), T{1},
             out + rows.first * d.n_outputs());
}

// The gradients of a block; with `sums`, those of the weights too, for which `a` holds what a
// forward pass left there (all steps of it). `transposed` is memory for them.
template <class T>
void backward(const Defence<T>& d, const Rows& rows, const Gradients<T>& gradients,
              const uint32_t* signs, T* memory, const Activations<T>& a, const DefenceSums<T>* sums,
              T* transposed) {
  T *outputs = memory, *next = memory + kBlockRows * d.n_outputs(), *at_features = outputs;
  if (d.cnn != nullptr) {
    load_samples(gradients.of_outputs, rows, d.n_draws, d.n_outputs(),
                 T{1} / static_cast<T>(d.n_draws), outputs);
    const CnnGradients<T> g(d.cnn->shape, next);
    next += CnnGradients<T>::size(d.cnn->shape);
    at_features = next;
    next += kBlockRows * d.n_features;
    const uint32_t* of_cnn = signs + d.chain_words();
    if (sums == nullptr) {
      feature_cnn_backward<T>(*d.cnn, outputs, of_cnn, g, at_features, nullptr);
    } else {
      const CnnSums<T> of_weights{&a.cnn,       sums->cnn[0], sums->cnn[1],
                                  sums->cnn[2], sums->cnn[3], transposed};
      feature_cnn_backward(*d.cnn, outputs, of_cnn, g, at_features, &of_weights);
    }
  } else {
    load_rows(gradients.of_outputs + rows.first * d.n_outputs(), rows.count, d.n_outputs(),
              outputs);
  }
  if (d.chain != nullptr) {
    const ChainGradients<T> g(*d.chain, d.n_features, next);
    scale(T{1}, at_features, d.n_features, g.prediction);
    chain_backward(d, rows, signs, g, gradients.of_noise, a.chain,
                   sums == nullptr ? nullptr : sums->chain, transposed);
    at_features = g.x_t;
  }
  store_rows(at_features, rows.count, d.n_features, T{1},
             gradients.of_rows + rows.first * d.n_features);
}

template <class T>
void backward_block(const Defence<T>& d, int64_t block, T* memory, const Gradients<T>& gradients) {
  backward<T>(d, rows_of(d, block), gradients, gradients.signs + block * d.n_words(), memory,
              Activations<T>(d, 1, memory), nullptr, nullptr);
}

// The same after another forward pass; the gradients of the weights are added to `sums`. `memory`
// has room for all three; `signs` for one block's.
template <class T>
void backward_block_with_sums(const Defence<T>& d, int64_t block, T* memory, uint32_t* signs,
                              const Gradients<T>& gradients, const DefenceSums<T>& sums) {
  const Rows rows = rows_of(d, block);
  const int64_t n_steps = d.chain == nullptr ? 1 : d.chain->n_steps;
  const Activations<T> a(d, n_steps, memory);
  T* of_backward = memory + forward_memory(d, n_steps);
  forward(d, rows, a, signs);
  backward<T>(d, rows, gradients, signs, of_backward, a, &sums, of_backward + backward_memory(d));
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
