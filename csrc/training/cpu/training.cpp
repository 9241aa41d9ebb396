// Whole epochs of training on the CPU, of networks that are too small for anything to be done
// between two steps: batches of blocks of 32 rows, Adam and a moving average of the weights. One
// thread, as a step is shorter than it takes two threads to meet.
//
//   train_feature_cnn_epoch(Tensor x, Tensor labels, Tensor state, *, int[] widths,
//     int batch_size, int step, float lr, float ema_decay) -> (Tensor, Tensor)
//   train_mlp_epoch(Tensor x, Tensor targets, Tensor state, *, int[] widths,
//     int batch_size, int step, float lr, float ema_decay) -> (Tensor, Tensor)
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <tuple>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../../common/arguments.h"
#include "../../common/cpu/threads.h"
#include "../../networks/cpu/weights.h"

namespace nnmf_cuda {
namespace {

// One step of Adam (Kingma & Ba 2015, algorithm 1) and of the moving average of the weights.
template <class T>
struct AdamStep {
  T mean_moves, square_keeps, square_moves, step_size, root_factor, epsilon, average_moves;
};

// Weights and what goes along with them: `size` numbers each, whole vectors of them.
template <class T>
struct TrainingState {
  T *weights, *mean, *square, *average, *gradient;
  int64_t size;
};

// Rows of one block, and the share of each in the mean loss of its batch.
template <class T>
struct TrainingRows {
  const T* x;
  int64_t count;
  T share;
};

}  // namespace
}  // namespace nnmf_cuda

#define NNMF_CUDA_ISA_SOURCE "../../training/cpu/steps.h"
#include "../../common/cpu/isa.h"

namespace nnmf_cuda {
namespace {

constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEpsilon = 1e-8;

struct Settings {
  int64_t batch_size, step;
  double lr, ema_decay;
};

// The numbers of a step, the first of which is 1.
template <class T>
AdamStep<T> adam_at(const Settings& settings, int64_t step) {
  const double n = static_cast<double>(step);
  const double keeps = std::min(settings.ema_decay, n / (9 + n));
  return {static_cast<T>(1 - kBeta1),
          static_cast<T>(kBeta2),
          static_cast<T>(1 - kBeta2),
          static_cast<T>(settings.lr / (1 - std::pow(kBeta1, n))),
          static_cast<T>(1 / std::sqrt(1 - std::pow(kBeta2, n))),
          static_cast<T>(kEpsilon),
          static_cast<T>(1 - keeps)};
}

// A FeatureCNN whose weights lie as their sums do, so that one loop moves all of them.
template <class T>
class TrainedCnn {
 public:
  TrainedCnn(const CnnShape& shape, const int64_t* labels)
      : shape_(shape),
        labels_(labels),
        filters_(static_cast<std::size_t>(filters_size(shape))),
        signs_(static_cast<std::size_t>(shape.n_words())) {
    add_cnn(shape_, layout_);
  }

  int64_t n_weights() const { return shape_.n_weights(); }
  const SumsLayout& layout() const { return layout_; }
  int64_t memory() const { return NNMF_CUDA_CHOOSE(cnn_training_memory<T>)(shape_); }
  template <class Sum, class To>
  To* write(const LayerSums<Sum>* sums, To* to) const {
    return write_cnn(shape_, sums, to);
  }

  void read(const LayerSums<T>* weights) {
    const CnnShape& s = shape_;
    const auto dense = [&](int layer, int64_t inputs, int64_t outputs) {
      return Dense<T>{weights[layer].weight, weights[layer].bias, inputs, outputs, padded(inputs)};
    };
    cnn_ = {s,
            dense(0, 3, s.first),
            {},  // nobody asks for the gradient to the features
            {},
            {},
            dense(2, s.second * s.n_pooled(), s.hidden),
            dense(3, s.hidden, s.n_classes)};
    const T* second = weights[1].weight;
    const int64_t stride = padded(3 * s.first);
    const auto weight = [=, n = s.first](int64_t o, int64_t c, int64_t d) {
      return second[o * stride + d * n + c];
    };
    pack_filters(s, weight, weights[1].bias, filters_.data(), cnn_);
  }

  double block(const TrainingRows<T>& rows, int64_t first_row, const LayerSums<T>* sums,
               T* memory) {
    return NNMF_CUDA_CHOOSE(cnn_training_block<T>)(cnn_, rows, labels_ + first_row, sums,
                                                   signs_.data(), memory);
  }

 private:
  CnnShape shape_;
  const int64_t* labels_;
  SumsLayout layout_;
  FeatureCnn<T> cnn_{};
  std::vector<T> filters_;
  std::vector<uint32_t> signs_;
};

// The same of an MLP.
template <class T>
class TrainedMlp {
 public:
  TrainedMlp(int64_t inputs, const std::vector<int64_t>& widths, const T* targets)
      : targets_(targets) {
    for (const int64_t outputs : widths) {
      layers_.push_back({nullptr, nullptr, inputs, outputs, padded(inputs)});
      layout_.add(outputs, inputs);
      signs_.resize(signs_.size() + static_cast<std::size_t>(outputs));
      inputs = outputs;
    }
    mlp_ = {layers_.data(), static_cast<int64_t>(layers_.size())};
  }
  TrainedMlp(const TrainedMlp&) = delete;
  TrainedMlp& operator=(const TrainedMlp&) = delete;

  int64_t n_weights() const {
    int64_t n = 0;
    for (const Dense<T>& layer : layers_) n += layer.outputs * (layer.inputs + 1);
    return n;
  }
  const SumsLayout& layout() const { return layout_; }
  int64_t memory() const { return NNMF_CUDA_CHOOSE(mlp_training_memory<T>)(mlp_); }
  template <class Sum, class To>
  To* write(const LayerSums<Sum>* sums, To* to) const {
    for (const Dense<T>& layer : layers_)
      to = write_dense(*sums++, layer.outputs, layer.inputs, to);
    return to;
  }

  void read(const LayerSums<T>* weights) {
    for (Dense<T>& layer : layers_) {
      layer.weight = weights->weight;
      layer.bias = (weights++)->bias;
    }
  }

  double block(const TrainingRows<T>& rows, int64_t first_row, const LayerSums<T>* sums,
               T* memory) {
    const T* targets = targets_ + first_row * layers_.back().outputs;
    return NNMF_CUDA_CHOOSE(mlp_training_block<T>)(mlp_, rows, targets, sums, signs_.data(),
                                                   memory);
  }

 private:
  const T* targets_;
  SumsLayout layout_;
  std::vector<Dense<T>> layers_;
  Mlp<T> mlp_{};
  std::vector<uint32_t> signs_;
};

// Adds the gradients of a batch's mean loss to `sums`; returns the sum of its losses.
template <class T, class Network>
double batch_gradient(Network& network, const T* x, int64_t n_features, int64_t begin, int64_t end,
                      const LayerSums<T>* sums, T* memory) {
  double total = 0;
  const T share = T{1} / static_cast<T>(end - begin);
  for (int64_t first = begin; first < end; first += kBlockRows) {
    const TrainingRows<T> rows{x + first * n_features, std::min<int64_t>(kBlockRows, end - first),
                               share};
    total += network.block(rows, first, sums, memory);
  }
  return total;
}

// `state` comes in and goes out in the network's layout. Returns the mean loss.
template <class T, class Network>
double run_epoch(Network& network, const Tensor& x, const TrainingState<T>& state,
                 const Settings& settings) {
  const FlushDenormals guard;
  const int64_t n_rows = x.size(0), n_features = x.size(1);
  const std::vector<LayerSums<T>> weights = network.layout().in(state.weights),
                                  sums = network.layout().in(state.gradient);
  const auto step = NNMF_CUDA_CHOOSE(adam_step<T>);
  const Scratch<T> memory(network.memory());
  double total = 0;
  int64_t n_steps = settings.step;
  for (int64_t begin = 0; begin < n_rows; begin += settings.batch_size) {
    const int64_t end = std::min(begin + settings.batch_size, n_rows);
    std::fill_n(state.gradient, state.size, T{0});
    network.read(weights.data());
    total += batch_gradient(network, x.const_data_ptr<T>(), n_features, begin, end, sums.data(),
                            memory.data());
    step(adam_at<T>(settings, ++n_steps), state);
  }
  return total / static_cast<double>(n_rows);
}

// Where the network's layout has each number of torch's.
template <class Network>
std::vector<int64_t> places(const Network& network) {
  std::vector<int64_t> all(static_cast<std::size_t>(network.layout().size()));
  std::iota(all.begin(), all.end(), int64_t{0});
  std::vector<int64_t> result(static_cast<std::size_t>(network.n_weights()));
  network.write(network.layout().in(all.data()).data(), result.data());
  return result;
}

// What an epoch makes of `state`, (4, n_weights): weights, both moments of Adam, the average.
template <class T, class Network>
std::tuple<Tensor, Tensor> train(Network& network, const Tensor& x, const Argument& state,
                                 const Settings& settings) {
  const int64_t size = network.layout().size(), n_weights = network.n_weights();
  check_dim(state, 2);
  check_size(state, 0, 4, "weights, two moments, average");
  check_size(state, 1, n_weights, "weights of such a network");
  const std::vector<int64_t> place = places(network);
  const Scratch<T> memory(5 * size);
  memory.fill(T{0});
  const TrainingState<T> inside{memory + 0,        memory + size,     memory + 2 * size,
                                memory + 3 * size, memory + 4 * size, size};
  const T* from = state.tensor.const_data_ptr<T>();
  for (int64_t part = 0; part < 4; ++part)
    for (const int64_t at : place) memory.data()[part * size + at] = *from++;
  Tensor loss = torch::stable::new_empty(x, {}, ScalarType::Double),
         trained = torch::stable::new_empty(x, {4, n_weights});
  *loss.mutable_data_ptr<double>() = run_epoch(network, x, inside, settings);
  T* to = trained.mutable_data_ptr<T>();
  for (int64_t part = 0; part < 4; ++part)
    for (const int64_t at : place) *to++ = memory.data()[part * size + at];
  return {trained, loss};
}

void check_training(const Argument& x, const Argument& wanted, const Argument& state,
                    const Settings& settings) {
  check_floating(x);
  check_dim(x, 2);
  check_same_dtype(state, x);
  check_size(wanted, 0, x.tensor.size(0), "rows of x");
  STD_TORCH_CHECK(settings.batch_size >= 1, "batch_size must be at least 1, got ",
                  settings.batch_size);
}

std::tuple<Tensor, Tensor> train_feature_cnn_epoch_cpu(const Tensor& x, const Tensor& labels,
                                                       const Tensor& state,
                                                       std::vector<int64_t> widths,
                                                       int64_t batch_size, int64_t step, double lr,
                                                       double ema_decay) {
  const Settings settings{batch_size, step, lr, ema_decay};
  const Tensor rows = torch::stable::contiguous(x), classes = torch::stable::contiguous(labels),
               before = torch::stable::contiguous(state);
  check_dim({"labels", classes}, 1);
  check_training({"x", rows}, {"labels", classes}, {"state", before}, settings);
  STD_TORCH_CHECK(classes.scalar_type() == ScalarType::Long, "labels must be int64, got ",
                  dtype_name(classes.scalar_type()));
  STD_TORCH_CHECK(widths.size() == 4, "widths must be those of 4 layers, got ", widths.size());
  const int64_t* label = classes.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < classes.numel(); ++i)
    STD_TORCH_CHECK(label[i] >= 0 && label[i] < widths[3], "labels must be within 0..",
                    widths[3] - 1, ", got ", label[i]);
  return dispatch_floating(rows.scalar_type(), [&]<class T>(Type<T>) {
    TrainedCnn<T> network({rows.size(1), widths[0], widths[1], widths[2], widths[3]}, label);
    return train<T>(network, rows, {"state", before}, settings);
  });
}

std::tuple<Tensor, Tensor> train_mlp_epoch_cpu(const Tensor& x, const Tensor& targets,
                                               const Tensor& state, std::vector<int64_t> widths,
                                               int64_t batch_size, int64_t step, double lr,
                                               double ema_decay) {
  const Settings settings{batch_size, step, lr, ema_decay};
  const Tensor rows = torch::stable::contiguous(x), wanted = torch::stable::contiguous(targets),
               before = torch::stable::contiguous(state);
  check_dim({"targets", wanted}, 2);
  check_training({"x", rows}, {"targets", wanted}, {"state", before}, settings);
  check_same_dtype({"targets", wanted}, {"x", rows});
  const int64_t n_layers = static_cast<int64_t>(widths.size());
  STD_TORCH_CHECK(n_layers >= 1 && n_layers <= kMostLayers, "widths must be those of 1 to ",
                  kMostLayers, " layers for the compiled kernels, got ", n_layers);
  check_size({"targets", wanted}, 1, widths.back(), "width of the last layer");
  return dispatch_floating(rows.scalar_type(), [&]<class T>(Type<T>) {
    TrainedMlp<T> network(rows.size(1), widths, wanted.const_data_ptr<T>());
    return train<T>(network, rows, {"state", before}, settings);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("train_feature_cnn_epoch", TORCH_BOX(&train_feature_cnn_epoch_cpu));
  m.impl("train_mlp_epoch", TORCH_BOX(&train_mlp_epoch_cpu));
}

}  // namespace nnmf_cuda
