// ISA source (see isa.h): a chain of denoising steps, and then a defended classifier, on one block
// of rows, forwards and backwards. It serves purification alone and the network alone too.
// clang-format off: each builds on those before it
#include "../../networks/cpu/layers.h"
#include "../../networks/cpu/feature_cnn.h"
#include "philox_normals.h"
// clang-format on

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// The rows of a block.
struct Rows {
  int64_t first, count;
};

template <class T>
NNMF_CUDA_INLINE Rows rows_of(const Defence<T>& d, int64_t block) {
  const int64_t first = block * kBlockRows, left = d.n_rows() - first;
  return {first, left < kBlockRows ? left : kBlockRows};
}

// The values of each row's sample, [unit][row]; times `factor`.
template <class T>
void load_samples(const T* from, const Rows& rows, int64_t n_draws, int64_t n_units, T factor,
                  T* to) {
  int64_t sample = rows.first / n_draws, draw = rows.first % n_draws;
  for (int64_t row = 0; row < kBlockRows; ++row) {
    for (int64_t u = 0; u < n_units; ++u)
      to[u * kBlockRows + row] = row < rows.count ? factor * from[sample * n_units + u] : T{0};
    if (++draw == n_draws) {
      draw = 0;
      ++sample;
    }
  }
}

// What a step keeps: x_t, the output of every hidden layer, the prediction.
template <class T>
struct ChainActivations {
  T* memory;
  int64_t step_size;  // 0: every step overwrites the one before

  static int64_t size(const Chain<T>& chain, int64_t n_features) {
    return kBlockRows * (2 * n_features + chain.words_per_step());
  }

  T* x_t(int64_t step) const { return memory + step * step_size; }
  // The outputs of the layers of a step; that of the last goes to `prediction`, if it is given.
  void outputs(const Chain<T>& chain, int64_t n_features, int64_t step, T* prediction,
               T** out) const {
    T* next = x_t(step) + kBlockRows * n_features;
    for (int64_t l = 0; l < chain.mlp.n_layers; ++l) {
      out[l] = next;
      next += kBlockRows * chain.mlp.layers[l].outputs;
    }
    if (prediction != nullptr) out[chain.mlp.n_layers - 1] = prediction;
  }
};

// noise[unit][row] of the n-th noised step.
template <class T>
void load_noise(const Defence<T>& d, int64_t n, const Rows& rows, T* noise) {
  const Chain<T>& chain = *d.chain;
  if (chain.noise != nullptr)
    load_rows(chain.noise + (n * d.n_rows() + rows.first) * d.n_features, rows.count, d.n_features,
              noise);
  else
    draw_normals(chain.seed, static_cast<uint32_t>(n), rows.first, rows.count, d.n_draws,
                 d.n_features, noise);
}

// to = a * x + b * y, [n_units][kBlockRows].
template <class T>
void combine(T a, const T* x, T b, const T* y, int64_t n_units, T* to) {
  using V = Vector<T>;
  const typename V::Lanes va = V::broadcast(a), vb = V::broadcast(b);
  for (int64_t i = 0; i < n_units * kBlockRows; i += V::kLanes)
    V::store(to + i, va * V::load(x + i) + vb * V::load(y + i));
}

// to = factor * x, [n_units][kBlockRows].
template <class T>
void scale(T factor, const T* x, int64_t n_units, T* to) {
  using V = Vector<T>;
  const typename V::Lanes v = V::broadcast(factor);
  for (int64_t i = 0; i < n_units * kBlockRows; i += V::kLanes)
    V::store(to + i, v * V::load(x + i));
}

// The last prediction is written to `prediction`. `noise` is memory for one.
template <class T>
void chain_forward(const Defence<T>& d, const Rows& rows, const ChainActivations<T>& a, T* noise,
                   uint32_t* signs, T* prediction) {
  const Chain<T>& chain = *d.chain;
  const int64_t m = d.n_features;
  load_samples(d.x, rows, d.n_draws, m, T{1}, a.x_t(0));
  load_noise(d, 0, rows, noise);
  combine(chain.steps[0].keep, a.x_t(0), chain.steps[0].spread, noise, m, a.x_t(0));
  for (int64_t i = 0; i < chain.n_steps; ++i) {
    const ChainStep<T>& step = chain.steps[i];
    const bool last = i + 1 == chain.n_steps;
    T* outputs[kMostLayers];
    a.outputs(chain, m, i, last ? prediction : nullptr, outputs);
    mlp_forward<T>(chain.mlp, chain.bias(i), a.x_t(i), outputs, signs);
    if (signs != nullptr) signs += chain.words_per_step();
    if (last) return;
    T* next = a.x_t(i + 1);
    combine(step.of_prediction, outputs[chain.mlp.n_layers - 1], step.of_x_t, a.x_t(i), m, next);
    if (chain.n_noised == 1) continue;
    load_noise(d, i + 1, rows, noise);
    combine(T{1}, next, step.of_noise, noise, m, next);
  }
}

// Memory of chain_backward.
template <class T>
struct ChainGradients {
  T *x_t, *prediction, *through, *work[2];

  static int64_t widest(const Chain<T>& chain) {
    int64_t most = 0;
    for (int64_t l = 0; l < chain.mlp.n_layers; ++l)
      most = most < chain.mlp.layers[l].outputs ? chain.mlp.layers[l].outputs : most;
    return most;
  }
  static int64_t size(const Chain<T>& chain, int64_t n_features) {
    return kBlockRows * (3 * n_features + 2 * widest(chain));
  }

  ChainGradients(const Chain<T>& chain, int64_t n_features, T* memory) : x_t(memory) {
    prediction = x_t + kBlockRows * n_features;
    through = prediction + kBlockRows * n_features;
    work[0] = through + kBlockRows * n_features;
    work[1] = work[0] + kBlockRows * widest(chain);
  }
};

// g.x_t = the gradient to what the chain starts from, by that to its last prediction, which stands
// in g.prediction. `sums` are the layers of all steps; then `a` has what every step was given.
template <class T>
void chain_backward(const Defence<T>& d, const Rows& rows, const uint32_t* signs,
                    const ChainGradients<T>& g, T* of_noise, const ChainActivations<T>& a,
                    const LayerSums<T>* sums, T* transposed) {
  const Chain<T>& chain = *d.chain;
  const int64_t m = d.n_features, n_layers = chain.mlp.n_layers;
  const auto mlp = [&](int64_t i, T* grad_in) {
    const uint32_t* of_step = signs + i * chain.words_per_step();
    if (sums == nullptr) {
      mlp_backward<T>(chain.mlp, g.prediction, of_step, g.work, grad_in, nullptr);
      return;
    }
    const T* given[kMostLayers];
    T* outputs[kMostLayers];
    a.outputs(chain, m, i, nullptr, outputs);
    for (int64_t l = 0; l < n_layers; ++l) given[l] = l == 0 ? a.x_t(i) : outputs[l - 1];
    const WeightSums<T> weights{given, sums + i * n_layers, transposed};
    mlp_backward<T>(chain.mlp, g.prediction, of_step, g.work, grad_in, &weights);
  };
  const auto store_noise = [&](int64_t n, T factor) {
    if (of_noise == nullptr || n >= chain.n_noised) return;
    store_rows(g.x_t, rows.count, m, factor, of_noise + (n * d.n_rows() + rows.first) * m);
  };
  mlp(chain.n_steps - 1, g.x_t);
  for (int64_t i = chain.n_steps - 2; i >= 0; --i) {
    const ChainStep<T>& step = chain.steps[i];
    store_noise(i + 1, step.of_noise);
    scale(step.of_prediction, g.x_t, m, g.prediction);
    mlp(i, g.through);
    combine(T{1}, g.through, step.of_x_t, g.x_t, m, g.x_t);
  }
  store_noise(0, chain.steps[0].spread);
}

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
void backward(const Defence<T>& d, const Rows& rows, const RowGradients<T>& gradients,
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
void backward_block(const Defence<T>& d, int64_t block, T* memory,
                    const RowGradients<T>& gradients) {
  backward<T>(d, rows_of(d, block), gradients, gradients.signs + block * d.n_words(), memory,
              Activations<T>(d, 1, memory), nullptr, nullptr);
}

// The same after another forward pass; the gradients of the weights are added to `sums`. `memory`
// has room for all three; `signs` for one block's.
template <class T>
void backward_block_with_sums(const Defence<T>& d, int64_t block, T* memory, uint32_t* signs,
                              const RowGradients<T>& gradients, const DefenceSums<T>& sums) {
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
