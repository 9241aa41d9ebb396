// ISA source (see isa.h): what a step of training does to one block of rows, and then to the
// weights.
// clang-format off: each builds on those before it
#include "../../networks/cpu/layers.h"
#include "../../networks/cpu/feature_cnn.h"
// clang-format on

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

NNMF_CUDA_INLINE float exponential(float x) {
  return __builtin_expf(x);
}
NNMF_CUDA_INLINE double exponential(double x) {
  return __builtin_exp(x);
}

// The sum of the cross-entropies of a block's rows; the logits, [n_classes][kBlockRows], become
// `share` times their gradient.
template <class T>
double cross_entropy(const int64_t* labels, int64_t n_rows, int64_t n_classes, T share, T* logits) {
  double total = 0;
  for (int64_t row = 0; row < kBlockRows; ++row) {
    T* const z = logits + row;
    T largest = z[0], sum = 0;
    for (int64_t c = 1; c < n_classes; ++c)
      if (z[c * kBlockRows] > largest) largest = z[c * kBlockRows];
    if (row < n_rows) {
      const double of_label = static_cast<double>(z[labels[row] * kBlockRows]);
      for (int64_t c = 0; c < n_classes; ++c) sum += exponential(z[c * kBlockRows] - largest);
      total += static_cast<double>(largest) - of_label + __builtin_log(static_cast<double>(sum));
    }
    for (int64_t c = 0; c < n_classes; ++c)
      z[c * kBlockRows] = row < n_rows ? share * (exponential(z[c * kBlockRows] - largest) / sum -
                                                  static_cast<T>(c == labels[row]))
                                       : T{0};
  }
  return total;
}

// The sum of the mean squared errors of a block's rows; the predictions, [n_units][kBlockRows],
// become `share` times their gradient.
template <class T>
double squared_error(const T* targets, int64_t n_rows, int64_t n_units, T share, T* predictions) {
  double total = 0;
  const T factor = 2 * share / static_cast<T>(n_units);
  for (int64_t u = 0; u < n_units; ++u) {
    T* const prediction = predictions + u * kBlockRows;
    for (int64_t row = 0; row < n_rows; ++row) {
      const T error = prediction[row] - targets[row * n_units + u];
      total += static_cast<double>(error) * static_cast<double>(error);
      prediction[row] = factor * error;
    }
    for (int64_t row = n_rows; row < kBlockRows; ++row) prediction[row] = T{0};
  }
  return total / static_cast<double>(n_units);
}

template <class T>
int64_t cnn_training_memory(const CnnShape& s) {
  const int64_t given[] = {(s.n_features + 2) * s.first, s.second * s.n_pooled(), s.hidden};
  int64_t widest = given[0];
  for (const int64_t width : given) widest = width > widest ? width : widest;
  return CnnActivations<T>::size(s) + CnnGradients<T>::size(s) + kBlockRows * (padded(widest) + 32);
}

// Adds the gradients of a block to `sums`, four layers in the layout of FeatureCnn, and returns the
// sum of its losses. `signs` is memory for those of the block.
template <class T>
double cnn_training_block(const FeatureCnn<T>& cnn, const TrainingRows<T>& rows,
                          const int64_t* labels, const LayerSums<T>* sums, uint32_t* signs,
                          T* memory) {
  const CnnShape& s = cnn.shape;
  const CnnActivations<T> a(s, memory);
  memory += CnnActivations<T>::size(s);
  const CnnGradients<T> g(s, memory);
  memory += CnnGradients<T>::size(s);
  load_rows(rows.x, rows.count, s.n_features, a.in + kBlockRows);
  feature_cnn_forward(cnn, a, signs);
  const double loss = cross_entropy(labels, rows.count, s.n_classes, rows.share, a.logits);
  const CnnSums<T> of_weights{&a, sums[0], sums[1], sums[2], sums[3], memory};
  feature_cnn_backward<T>(cnn, a.logits, signs, g, nullptr, &of_weights);
  return loss;
}

template <class T>
int64_t mlp_training_memory(const Mlp<T>& mlp) {
  int64_t widest = mlp.layers[0].inputs, all = widest;
  for (int64_t l = 0; l < mlp.n_layers; ++l) {
    const int64_t width = mlp.layers[l].outputs;
    if (width > widest) widest = width;
    all += width;
  }
  return kBlockRows * (all + 2 * widest + padded(widest) + 32);
}

// The same of an MLP that should turn rows into `targets`.
template <class T>
double mlp_training_block(const Mlp<T>& mlp, const TrainingRows<T>& rows, const T* targets,
                          const LayerSums<T>* sums, uint32_t* signs, T* memory) {
  T *layers[kMostLayers + 1], *work[2];
  int64_t widest = mlp.layers[0].inputs;
  layers[0] = memory;
  memory += kBlockRows * widest;
  for (int64_t l = 0; l < mlp.n_layers; ++l) {
    layers[l + 1] = memory;
    memory += kBlockRows * mlp.layers[l].outputs;
    if (mlp.layers[l].outputs > widest) widest = mlp.layers[l].outputs;
  }
  for (T*& part : work) {
    part = memory;
    memory += kBlockRows * widest;
  }
  T* const predictions = layers[mlp.n_layers];
  load_rows(rows.x, rows.count, mlp.layers[0].inputs, layers[0]);
  mlp_forward<T>(mlp, mlp.layers[0].bias, layers[0], layers + 1, signs);
  const double loss = squared_error(targets, rows.count, mlp.layers[mlp.n_layers - 1].outputs,
                                    rows.share, predictions);
  const WeightSums<T> of_weights{layers, sums, memory};
  mlp_backward<T>(mlp, predictions, signs, work, nullptr, &of_weights);
  return loss;
}

// Moves the weights by the sums of gradients, and their average after them.
template <class T>
void adam_step(const AdamStep<T>& step, const TrainingState<T>& state) {
  using V = Vector<T>;
  for (int64_t i = 0; i < state.size; i += V::kLanes) {
    const typename V::Lanes g = V::load(state.gradient + i), mean = V::load(state.mean + i),
                            square = V::load(state.square + i), w = V::load(state.weights + i),
                            average = V::load(state.average + i),
                            new_mean = mean + step.mean_moves * (g - mean),
                            new_square = step.square_keeps * square + step.square_moves * (g * g),
                            root = step.root_factor * V::sqrt(new_square) + step.epsilon,
                            new_w = w - step.step_size * V::divide(new_mean, root);
    V::store(state.mean + i, new_mean);
    V::store(state.square + i, new_square);
    V::store(state.weights + i, new_w);
    V::store(state.average + i, average + step.average_moves * (new_w - average));
  }
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
