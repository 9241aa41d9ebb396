// Gradients of all weights of a defence: included once, after the ISA source defence_blocks.h.
#pragma once

#include <algorithm>
#include <vector>

#include "../networks/weight_sums.h"

namespace nnmf_cuda {
namespace {

// Blocks that one task sums in T, and tasks whose sums are kept before they go on in double.
constexpr int64_t kBlocksPerTask = 16, kTasksAtOnce = 64;

// Layers of the chain: all of its first step, then the first bias of each later step; as
// DefenceSums has them: every step's layers.
template <class T>
class DefenceLayout {
 public:
  explicit DefenceLayout(const Defence<T>& d) : d_(d) {
    if (d.chain != nullptr) {
      const Mlp<T>& mlp = d.chain->mlp;
      for (int64_t l = 0; l < mlp.n_layers; ++l)
        layout_.add(mlp.layers[l].outputs, mlp.layers[l].inputs);
      for (int64_t i = 1; i < d.chain->n_steps; ++i) layout_.add_bias(0, mlp.layers[0].outputs);
    }
    if (d.cnn != nullptr) add_cnn(d.cnn->shape, layout_);
  }

  int64_t size() const { return layout_.size(); }

  // [n_steps * n_layers] of the chain, then four of the network.
  template <class Sum>
  std::vector<LayerSums<Sum>> in(Sum* memory) const {
    const std::vector<LayerSums<Sum>> places = layout_.in(memory);
    std::vector<LayerSums<Sum>> sums;
    const int64_t n_layers = d_.chain == nullptr ? 0 : d_.chain->mlp.n_layers,
                  n_steps = d_.chain == nullptr ? 0 : d_.chain->n_steps;
    for (int64_t i = 0; i < n_steps; ++i)
      for (int64_t l = 0; l < n_layers; ++l) {
        const bool own = i > 0 && l == 0;
        sums.push_back(places[static_cast<std::size_t>(own ? n_layers + i - 1 : l)]);
      }
    if (d_.cnn != nullptr) sums.insert(sums.end(), places.end() - 4, places.end());
    return sums;
  }

  // Where the network's layers begin in what `in` returns.
  int64_t cnn_at() const {
    return d_.chain == nullptr ? 0 : d_.chain->n_steps * d_.chain->mlp.n_layers;
  }

 private:
  const Defence<T>& d_;
  SumsLayout layout_;
};

// Memory for the largest input of a layer, transposed.
template <class T>
int64_t transposed_size(const Defence<T>& d) {
  int64_t widest = 0;
  if (d.chain != nullptr)
    for (int64_t l = 0; l < d.chain->mlp.n_layers; ++l)
      widest = std::max(widest, d.chain->mlp.layers[l].inputs);
  if (d.cnn != nullptr) {
    const CnnShape& s = d.cnn->shape;
    widest = std::max({widest, (s.n_features + 2) * s.first, s.second * s.n_pooled(), s.hidden});
  }
  return kBlockRows * (padded(widest) + 32);
}

// sums = those of the blocks of one task, at `memory`.
template <class T>
void sum_task(const Defence<T>& d, const DefenceLayout<T>& layout, int64_t task,
              const Gradients<T>& gradients, T* memory) {
  std::fill_n(memory, layout.size(), T{0});
  const std::vector<LayerSums<T>> layers = layout.in(memory);
  const DefenceSums<T> sums{layers.data(), layers.data() + layout.cnn_at()};
  const int64_t n_steps = d.chain == nullptr ? 1 : d.chain->n_steps;
  const Scratch<T> work(NNMF_CUDA_CHOOSE(forward_memory<T>)(d, n_steps) +
                        NNMF_CUDA_CHOOSE(backward_memory<T>)(d) + transposed_size(d));
  const Scratch<uint32_t> signs(d.n_words());
  const auto block = NNMF_CUDA_CHOOSE(backward_block_with_sums<T>);
  const int64_t end = std::min((task + 1) * kBlocksPerTask, n_blocks(d.n_rows()));
  for (int64_t b = task * kBlocksPerTask; b < end; ++b)
    block(d, b, work.data(), signs.data(), gradients, sums);
}

// The gradients of the chain's weights as one vector: the embedding of each step is part of the
// first layer's input, and the same for all rows.
template <class T>
void write_chain(const Defence<T>& d, const ChainArguments<T>& chain, const LayerSums<double>* sums,
                 T* to) {
  const Mlp<T>& mlp = d.chain->mlp;
  const Dense<T>& first = mlp.layers[0];
  const auto bias = [&](int64_t step, int64_t o) { return sums[step * mlp.n_layers].bias[o]; };
  for (int64_t o = 0; o < first.outputs; ++o) {
    for (int64_t i = 0; i < first.inputs; ++i)
      *to++ = static_cast<T>(sums[0].weight[o * padded(first.inputs) + i]);
    for (int64_t e = 0; e < chain.embedding_dim(); ++e) {
      double sum = 0;
      for (int64_t step = 0; step < d.chain->n_steps; ++step)
        sum += bias(step, o) * chain.embedding(step)[e];
      *to++ = static_cast<T>(sum);
    }
  }
  for (int64_t o = 0; o < first.outputs; ++o) {
    double sum = 0;
    for (int64_t step = 0; step < d.chain->n_steps; ++step) sum += bias(step, o);
    *to++ = static_cast<T>(sum);
  }
  for (int64_t l = 1; l < mlp.n_layers; ++l)
    to = write_dense(sums[l], mlp.layers[l].outputs, mlp.layers[l].inputs, to);
}

template <class T>
int64_t n_weights(const Mlp<T>& mlp) {
  int64_t n = 0;
  for (int64_t l = 0; l < mlp.n_layers; ++l)
    n += mlp.layers[l].outputs * (mlp.layers[l].stride + 1);
  return n;
}

// Fills in the gradients of rows and noise, and makes those of the weights. Tasks are cut by the
// number of rows alone, and their sums added in their order: results do not depend on threads.
template <class T>
void sum_weights(const Defence<T>& d, const ChainArguments<T>* chain, const Gradients<T>& gradients,
                 Tensor& of_denoiser, Tensor& of_classifier) {
  const DefenceLayout<T> layout(d);
  const int64_t n_tasks = (n_blocks(d.n_rows()) + kBlocksPerTask - 1) / kBlocksPerTask;
  std::vector<double> total(static_cast<std::size_t>(layout.size()), 0.0);
  const Scratch<T> parts(std::min(n_tasks, kTasksAtOnce) * layout.size());
  for (int64_t begin = 0; begin < n_tasks; begin += kTasksAtOnce) {
    const int64_t n = std::min(kTasksAtOnce, n_tasks - begin);
    parallel_for_each(n, [&](int64_t i) {
      sum_task(d, layout, begin + i, gradients, parts.data() + i * layout.size());
    });
    for (int64_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < total.size(); ++j)
        total[j] += static_cast<double>(parts.data()[i * layout.size() + static_cast<int64_t>(j)]);
  }
  const std::vector<LayerSums<double>> sums = layout.in(total.data());
  const Tensor& like = of_denoiser;
  if (d.chain != nullptr) {
    of_denoiser = torch::stable::new_empty(like, {n_weights(d.chain->mlp)});
    write_chain(d, *chain, sums.data(), of_denoiser.template mutable_data_ptr<T>());
  }
  if (d.cnn != nullptr) {
    of_classifier = torch::stable::new_empty(like, {d.cnn->shape.n_weights()});
    write_cnn(d.cnn->shape, sums.data() + layout.cnn_at(),
              of_classifier.template mutable_data_ptr<T>());
  }
}

}  // namespace
}  // namespace nnmf_cuda
