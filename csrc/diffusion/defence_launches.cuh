// The launches of purify, feature_cnn and defended_logits. Free of torch, without host
// synchronisation. What a row gets does not depend on the other rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "defence_weights_kernel.cuh"
#include "prepare_kernel.cuh"

namespace nnmf_cuda {

// A layer as the user has it, [outputs][inputs]; a convolution's inputs are [channels][3].
template <class T>
struct LayerInput {
  const T *weight, *bias;
  int64_t outputs, inputs;

  int64_t size() const { return outputs * (inputs + 1); }
};

// All that an op is given but gradients. Either list of layers may be empty, not both.
template <class T>
struct DefenceInputs {
  const T* x;
  int64_t n_samples, n_draws, n_features;
  const T* noise;  // null: drawn from the seed
  int64_t seed;
  const int64_t* timesteps;
  int64_t n_steps;
  const double* alphas_cumprod;
  int64_t n_alphas;
  double eta;
  std::vector<LayerInput<T>> denoiser, classifier;

  int64_t n_rows() const { return n_samples * n_draws; }
  int64_t words_per_step() const {
    int64_t words = 0;
    for (std::size_t l = 0; l + 1 < denoiser.size(); ++l) words += denoiser[l].outputs;
    return words;
  }
  CnnShape cnn() const {
    return {n_features, classifier[0].outputs, classifier[1].outputs, classifier[2].outputs,
            classifier[3].outputs};
  }
  int64_t n_words() const {
    return n_steps * words_per_step() + (classifier.empty() ? 0 : cnn().n_words());
  }
  int64_t n_outputs() const { return classifier.empty() ? n_features : classifier[3].outputs; }
  // Units of a buffer that holds what any layer is given or gives, backwards as well.
  int64_t width() const {
    int64_t most = n_features;
    for (const auto& layer : denoiser) most = std::max(most, layer.outputs);
    if (classifier.empty()) return most;
    const CnnShape s = cnn();
    return std::max({most, s.n_features * s.first, s.second * s.n_pooled(), s.hidden, s.n_classes});
  }
  static int64_t count(const std::vector<LayerInput<T>>& layers) {
    int64_t n = 0;
    for (const auto& layer : layers) n += layer.size();
    return n;
  }
};

enum class Direction { kForward, kBackward };

// A defence with packed weights, and the launch that packs them. Memory has get<T>(size), as
// DeviceMemory.
template <class T, class Memory>
class DefencePreparation {
 public:
  DefencePreparation(const DefenceInputs<T>& in, Direction direction, Memory& memory)
      : in_(in), forward_(direction == Direction::kForward), memory_(memory) {
    d_.x = in.x;
    d_.n_rows = in.n_rows();
    d_.n_draws = in.n_draws;
    d_.n_features = static_cast<int>(in.n_features);
    d_.width = static_cast<int>(in.width());
    d_.has_chain = !in.denoiser.empty();
    d_.has_cnn = !in.classifier.empty();
    if (d_.has_chain) add_chain();
    if (d_.has_cnn) add_cnn();
    allocate();
  }

  DeviceDefence<T> launch(cudaStream_t stream) const {
    launch_prepare_defence(preparation_, stream);
    return d_;
  }

 private:
  // Inputs beyond the first `inputs` are left out.
  void add_layer(const LayerInput<T>& layer, int64_t inputs, DeviceDense<T>& to) {
    if (forward_)
      add_pack({layer.weight, nullptr, 0, layer.outputs, inputs, 1, layer.inputs, 1, 0}, to);
    else
      add_pack({layer.weight, nullptr, 0, inputs, layer.outputs, 1, 1, layer.inputs, 0}, to);
    to.bias = layer.bias;
  }

  // Backwards its outputs are channels before it, its inputs [channels][3].
  void add_convolution(const LayerInput<T>& layer, DeviceDense<T>& to) {
    if (forward_) return add_layer(layer, layer.inputs, to);
    const int64_t before = layer.inputs / 3;
    add_pack({layer.weight, nullptr, 0, before, layer.outputs * 3, 3, 3, layer.inputs, 1}, to);
  }

  void add_pack(PackTask<T> task, DeviceDense<T>& to) {
    to.outputs = static_cast<int>(task.outputs);
    to.inputs = static_cast<int>(task.inputs);
    task.first = preparation_.n_entries;
    preparation_.n_entries += task.size();
    packed_.push_back(&to.weight);
    preparation_.packs[preparation_.n_packs++] = task;
  }

  void add_chain() {
    DeviceChain<T>& chain = d_.chain;
    const LayerInput<T>& first = in_.denoiser[0];
    const int64_t dim = first.inputs - in_.n_features;
    chain.noise = in_.noise;
    chain.seed = static_cast<uint64_t>(in_.seed);
    chain.n_steps = preparation_.n_steps = static_cast<int>(in_.n_steps);
    chain.n_noised = in_.eta > 0 ? chain.n_steps : 1;
    chain.n_layers = static_cast<int>(in_.denoiser.size());
    chain.words_per_step = static_cast<int>(in_.words_per_step());
    chain.embedding_dim = static_cast<int>(dim);
    chain.coefficients = memory_.template get<T>(in_.n_steps * kCoefficients);
    chain.embeddings = memory_.template get<T>(in_.n_steps * dim);
    chain.biases = memory_.template get<T>(in_.n_steps * first.outputs);
    preparation_.chain = {in_.timesteps, in_.alphas_cumprod, in_.n_alphas,     in_.n_features,
                          dim,           first.outputs,      in_.eta,          first.weight,
                          first.bias,    chain.coefficients, chain.embeddings, chain.biases};
    for (std::size_t l = 0; l < in_.denoiser.size(); ++l)
      add_layer(in_.denoiser[l], l == 0 ? in_.n_features : in_.denoiser[l].inputs, chain.layers[l]);
  }

  void add_cnn() {
    DeviceCnn<T>& cnn = d_.cnn;
    const CnnShape s = in_.cnn();
    cnn.first_channels = static_cast<int>(s.first);
    cnn.second_channels = static_cast<int>(s.second);
    cnn.n_pooled = static_cast<int>(s.n_pooled());
    cnn.pooled_at = static_cast<int>(s.pooled_at());
    cnn.pairs_at = static_cast<int>(s.pairs_at());
    cnn.hidden_at = static_cast<int>(s.hidden_at());
    cnn.first_weight = in_.classifier[0].weight;
    cnn.first_bias = in_.classifier[0].bias;
    add_convolution(in_.classifier[1], cnn.second);
    add_layer(in_.classifier[2], in_.classifier[2].inputs, cnn.hidden);
    add_layer(in_.classifier[3], in_.classifier[3].inputs, cnn.last);
    cnn.second.bias = in_.classifier[1].bias;
  }

  void allocate() {
    T* memory = memory_.template get<T>(preparation_.n_entries);
    for (int i = 0; i < preparation_.n_packs; ++i)
      *packed_[static_cast<std::size_t>(i)] = preparation_.packs[i].to =
          memory + preparation_.packs[i].first;
  }

  const DefenceInputs<T>& in_;
  bool forward_;
  Memory& memory_;
  DeviceDefence<T> d_{};
  Preparation<T> preparation_{};
  std::vector<const T**> packed_;
};

// Calls f(Shared<>, blocks, bytes): with the activations in shared memory and as many blocks as
// there can be, or with a few blocks, for whose activations task.d.workspace is allocated.
template <bool shared>
struct Shared {
  static constexpr bool value = shared;
};

template <class T, class Task, class Memory, class F>
void place_activations(Task& task, int64_t most_blocks, const DeviceSize& size, Memory& memory,
                       const F& f) {
  constexpr int64_t kReserved = 1024;  // of a multiprocessor's shared memory, for each block
  const int64_t bytes = task.memory * static_cast<int64_t>(sizeof(T));
  if (bytes <= size.shared_bytes - kReserved) return f(Shared<true>{}, most_blocks, bytes);
  const int64_t blocks = std::min(most_blocks, 2 * size.multiprocessors);
  task.d.workspace = memory.template get<T>(blocks * task.memory);
  f(Shared<false>{}, blocks, int64_t{0});
}

template <class T>
void launch_sum_draws(const RowNumbers<T>& rows, T* to, const DefenceInputs<T>& in, double divisor,
                      cudaStream_t stream) {
  const int64_t size = in.n_samples * rows.width;
  if (size == 0) return;
  NNMF_CUDA_LAUNCH(sum_draws_kernel<T>, grid_of((size + kDefenceThreads - 1) / kDefenceThreads),
                   kDefenceThreads, 0, stream, rows.values, to, in.n_samples, in.n_draws,
                   rows.width, divisor);
}

// Where rows go whose sums over draws go to `to`: there, if there is one draw.
template <class T, class Memory>
RowNumbers<T> rows_of_samples(const DefenceInputs<T>& in, int64_t width, T* to, Memory& memory) {
  if (in.n_draws == 1) return {to, static_cast<int>(width), false};
  return {memory.template get<T>(n_blocks(in.n_rows()) * width * kRows), static_cast<int>(width),
          true};
}

// out: logits [n_samples][n_classes], without a network predictions [rows][n_features]; signs
// [n_blocks][n_words] may be null.
template <class T, class Memory>
void launch_defence_forward(const DefenceInputs<T>& in, T* out, uint32_t* signs,
                            const DeviceSize& size, Memory& memory, cudaStream_t stream) {
  const bool mean = !in.classifier.empty();
  ForwardTask<T> task{};
  task.out = mean ? rows_of_samples(in, in.n_outputs(), out, memory)
                  : RowNumbers<T>{out, static_cast<int>(in.n_features), false};
  if (in.n_rows() > 0) {
    task.d = DefencePreparation<T, Memory>(in, Direction::kForward, memory).launch(stream);
    task.signs = signs;
    task.n_words = in.n_words();
    task.n_blocks = n_blocks(in.n_rows());
    task.memory = Work<T>::size(in.n_features, in.width());
    place_activations<T>(task, task.n_blocks, size, memory,
                         [&]<bool shared>(Shared<shared>, int64_t blocks, int64_t bytes) {
                           NNMF_CUDA_LAUNCH((defence_forward_kernel<T, shared>), grid_of(blocks),
                                            kDefenceThreads, static_cast<size_t>(bytes), stream,
                                            task);
                         });
  }
  if (mean && task.out.by_block)
    launch_sum_draws(task.out, out, in, static_cast<double>(in.n_draws), stream);
}

// of_x [n_samples][n_features]; of_noise like the noise, may be null.
template <class T, class Memory>
void launch_defence_backward(const DefenceInputs<T>& in, const T* grad, const uint32_t* signs,
                             T* of_x, T* of_noise, const DeviceSize& size, Memory& memory,
                             cudaStream_t stream) {
  BackwardTask<T> task{};
  task.of_x = rows_of_samples(in, in.n_features, of_x, memory);
  if (in.n_rows() > 0) {
    task.d = DefencePreparation<T, Memory>(in, Direction::kBackward, memory).launch(stream);
    task.grad = grad;
    task.signs = signs;
    task.of_noise = of_noise;
    task.n_words = in.n_words();
    task.n_blocks = n_blocks(in.n_rows());
    task.memory = Work<T>::size(in.n_features, in.width());
    place_activations<T>(task, task.n_blocks, size, memory,
                         [&]<bool shared>(Shared<shared>, int64_t blocks, int64_t bytes) {
                           NNMF_CUDA_LAUNCH((defence_backward_kernel<T, shared>), grid_of(blocks),
                                            kDefenceThreads, static_cast<size_t>(bytes), stream,
                                            task);
                         });
  }
  if (task.of_x.by_block) launch_sum_draws(task.of_x, of_x, in, 1.0, stream);
}

// Groups of blocks that have sums of their own: many, but with at most so many sums in all.
constexpr int64_t kMostGroups = 256, kMostSums = int64_t{1} << 23;

inline int64_t weight_groups(int64_t n_blocks, int64_t n_weights) {
  return std::min({n_blocks, kMostGroups, std::max(kMostSums / n_weights, int64_t{8})});
}

template <class T>
void launch_sum_groups(const double* sums, T* to, int64_t groups, int64_t stride, int64_t size,
                       cudaStream_t stream) {
  if (size == 0) return;
  NNMF_CUDA_LAUNCH(sum_groups_kernel<T>, grid_of((size + kDefenceThreads - 1) / kDefenceThreads),
                   kDefenceThreads, 0, stream, sums, to, groups, stride, size);
}

// One tensor after another: the denoiser's, and the classifier's. How sums are rounded depends on
// `most_groups`, which is another one in tests alone.
template <class T, class Memory>
void launch_defence_weights(const DefenceInputs<T>& in, const T* grad, const uint32_t* signs,
                            T* of_denoiser, T* of_classifier, const DeviceSize& size,
                            Memory& memory, cudaStream_t stream,
                            int64_t most_groups = kMostGroups) {
  const int64_t n_denoiser = in.count(in.denoiser), n_classifier = in.count(in.classifier);
  WeightsTask<T> task{};
  task.n_weights = n_denoiser + n_classifier;
  task.n_blocks = n_blocks(in.n_rows());
  const int64_t groups = std::min(most_groups, weight_groups(task.n_blocks, task.n_weights));
  if (groups > 0) {
    task.d = DefencePreparation<T, Memory>(in, Direction::kForward, memory).launch(stream);
    task.back = DefencePreparation<T, Memory>(in, Direction::kBackward, memory).launch(stream);
    task.grad = grad;
    task.signs = signs;
    task.n_words = in.n_words();
    task.sums = memory.template get<double>(groups * task.n_weights);
    int64_t at = 0;
    for (std::size_t l = 0; l < in.denoiser.size(); at += in.denoiser[l++].size())
      task.chain_at[l] = at;
    for (std::size_t l = 0; l < in.classifier.size(); at += in.classifier[l++].size())
      task.cnn_at[l] = at;
    int64_t units = (in.n_steps + 1) * in.n_features + in.words_per_step();
    if (!in.classifier.empty()) {
      const CnnShape s = in.cnn();
      units += s.n_features * s.first + s.second * s.n_pooled() + s.hidden;
    }
    task.memory = units * kRows + Work<T>::size(in.n_features, in.width());
    // The number of groups decides how sums are rounded: it is the same wherever activations are.
    const DeviceSize any{groups, size.shared_bytes};
    place_activations<T>(
        task, groups, any, memory, [&]<bool shared>(Shared<shared>, int64_t blocks, int64_t bytes) {
          NNMF_CUDA_LAUNCH((defence_weights_kernel<T, shared>), grid_of(blocks), kDefenceThreads,
                           static_cast<size_t>(bytes), stream, task);
        });
  }
  launch_sum_groups(task.sums, of_denoiser, groups, task.n_weights, n_denoiser, stream);
  launch_sum_groups<T>(task.sums == nullptr ? nullptr : task.sums + n_denoiser, of_classifier,
                       groups, task.n_weights, n_classifier, stream);
}

}  // namespace nnmf_cuda
