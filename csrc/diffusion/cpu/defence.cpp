// purify, feature_cnn, defended_logits and their gradients on the CPU, on blocks of 32 rows; and
// philox_normal.
#include "defence.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "../../common/cpu/threads.h"
#include "../ops.h"

#define NNMF_CUDA_ISA_SOURCE "../../diffusion/cpu/blocks.h"
#include "../../common/cpu/isa.h"

namespace nnmf_cuda {
namespace {

template <class T>
void forward_rows(const Defence<T>& d, T* out, uint32_t* signs) {
  const auto block = NNMF_CUDA_CHOOSE(forward_block<T>);
  const int64_t size = NNMF_CUDA_CHOOSE(forward_memory<T>)(d, 1);
  parallel_for_each(n_blocks(d.n_rows()), [&](int64_t b) {
    const Scratch<T> memory(size);
    block(d, b, memory.data(), out, signs);
  });
}

// to[sample] = factor * the sum of its rows, [n_samples][n_draws][n].
template <class T>
void sum_draws(const T* rows, const Defence<T>& d, int64_t n, T factor, T* to) {
  for (int64_t sample = 0; sample < d.n_samples; ++sample, to += n) {
    std::fill_n(to, n, T{0});
    for (int64_t draw = 0; draw < d.n_draws; ++draw, rows += n)
      for (int64_t i = 0; i < n; ++i) to[i] += rows[i];
    for (int64_t i = 0; i < n; ++i) to[i] *= factor;
  }
}

template <class T>
void backward_rows(const Defence<T>& d, const RowGradients<T>& gradients) {
  const auto block = NNMF_CUDA_CHOOSE(backward_block<T>);
  const int64_t size = NNMF_CUDA_CHOOSE(backward_memory<T>)(d);
  parallel_for_each(n_blocks(d.n_rows()), [&](int64_t b) {
    const Scratch<T> memory(size);
    block(d, b, memory.data(), gradients);
  });
}

// Gradients of all weights.

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
              const RowGradients<T>& gradients, T* memory) {
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
void write_chain(const PreparedDefence<T>& prepared, const LayerSums<double>* sums, T* to) {
  const Defence<T>& d = prepared.defence;
  const Mlp<T>& mlp = d.chain->mlp;
  const Dense<T>& first = mlp.layers[0];
  const auto bias = [&](int64_t step, int64_t o) { return sums[step * mlp.n_layers].bias[o]; };
  for (int64_t o = 0; o < first.outputs; ++o) {
    for (int64_t i = 0; i < first.inputs; ++i)
      *to++ = static_cast<T>(sums[0].weight[o * padded(first.inputs) + i]);
    for (int64_t e = 0; e < prepared.embedding_dim(); ++e) {
      double sum = 0;
      for (int64_t step = 0; step < d.chain->n_steps; ++step)
        sum += bias(step, o) * prepared.embedding(step)[e];
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

// Fills in the gradients of rows and noise, and makes those of the weights. Tasks are cut by the
// number of rows alone, and their sums added in their order: results do not depend on threads.
template <class T>
void sum_weights(const PreparedDefence<T>& prepared, const RowGradients<T>& gradients,
                 T* of_denoiser, T* of_classifier) {
  const Defence<T>& d = prepared.defence;
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
  if (d.chain != nullptr) write_chain(prepared, sums.data(), of_denoiser);
  if (d.cnn != nullptr) write_cnn(d.cnn->shape, sums.data() + layout.cnn_at(), of_classifier);
}

constexpr int64_t kBlockFeatures = 256;  // of a task that draws normals

// A task is a block of one step: its rows (samples and draws) and features, all entries being
// independent of how they are cut.
template <class T>
void fill_with_normals(T* out, const DrawsShape& s, uint64_t seed) {
  const auto draw = NNMF_CUDA_CHOOSE(draw_normals<T>);
  const int64_t n_rows = s.n_rows * s.n_draws, row_blocks = blocks_of(n_rows, kBlockRows),
                feature_blocks = blocks_of(s.n_features, kBlockFeatures);
  parallel_for_each(s.n_steps * row_blocks * feature_blocks, [&](int64_t task) {
    const int64_t first_feature = task % feature_blocks * kBlockFeatures,
                  first_row = task / feature_blocks % row_blocks * kBlockRows,
                  step = task / feature_blocks / row_blocks;
    const int64_t rows = std::min<int64_t>(kBlockRows, n_rows - first_row),
                  features = std::min(kBlockFeatures, s.n_features - first_feature);
    const Scratch<T> block(kBlockRows * features);
    draw(seed, static_cast<uint32_t>(step), first_row, rows, s.n_draws, features, block.data(),
         first_feature);
    T* const to = out + (step * n_rows + first_row) * s.n_features + first_feature;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < features; ++j)
        to[i * s.n_features + j] = block.data()[j * kBlockRows + i];
  });
}

struct DiffusionOnCpu {
  // Gradients of weights come from another forward pass.
  static constexpr bool kWeightsNeedSigns = false;

  explicit DiffusionOnCpu(const Tensor&) {}

  // A backward pass prepares weights itself.
  template <class T>
  static int64_t prepared_size(const DefenceParams<T>&) {
    return 0;
  }

  template <class T>
  void forward(const DefenceParams<T>& p, T* out, uint32_t* signs, T*) const {
    const PreparedDefence<T> prepared(p);
    const Defence<T>& d = prepared.defence;
    if (d.cnn == nullptr) return forward_rows(d, out, signs);
    const Scratch<T> rows(d.n_rows() * d.n_outputs());
    forward_rows(d, rows.data(), signs);
    sum_draws(rows.data(), d, d.n_outputs(), T{1} / static_cast<T>(d.n_draws), out);
  }

  template <class T>
  void backward(const DefenceParams<T>& p, const T* grad, const uint32_t* signs, const T*, T* of_x,
                T* of_noise) const {
    const PreparedDefence<T> prepared(p);
    to_samples(prepared, of_x, [&](T* of_rows) {
      backward_rows(prepared.defence, RowGradients<T>{grad, signs, of_rows, of_noise});
    });
  }

  template <class T>
  void backward_with_weights(const DefenceParams<T>& p, const T* grad, const uint32_t*, const T*,
                             T* of_x, T* of_noise, T* of_denoiser, T* of_classifier) const {
    const PreparedDefence<T> prepared(p);
    to_samples(prepared, of_x, [&](T* of_rows) {
      const RowGradients<T> gradients{grad, nullptr, of_rows, of_noise};
      sum_weights(prepared, gradients, of_denoiser, of_classifier);
    });
  }

  template <class T>
  void draw_normals(T* out, const DrawsShape& s, uint64_t seed) const {
    fill_with_normals(out, s, seed);
  }

 private:
  // of_x = the sums over draws of what f(of_rows) writes.
  template <class T, class F>
  static void to_samples(const PreparedDefence<T>& prepared, T* of_x, const F& f) {
    const Defence<T>& d = prepared.defence;
    const Scratch<T> of_rows(d.n_rows() * d.n_features);
    f(of_rows.data());
    sum_draws(of_rows.data(), d, d.n_features, d.chain == nullptr ? T{1} : d.chain->steps[0].keep,
              of_x);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  implement_diffusion<DiffusionOnCpu>(m);
}

}  // namespace nnmf_cuda
