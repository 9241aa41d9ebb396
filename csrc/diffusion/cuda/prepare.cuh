// What a call computes once, before the rows: packed weights, and for each step of the chain its
// coefficients, the embedding of t and the first layer's bias with what the embedding adds. A
// forward pass that a backward pass will follow computes that pass's share too, in the same launch.
#pragma once

#include <cmath>
#include <cstdint>

#include "../params.h"
#include "defence.cuh"

namespace nnmf_cuda {

// A matrix as tiles: entry (o, i) is at from[o * of_output + i / inner * of_outer + i % inner *
// of_inner].
template <class T>
struct PackTask {
  const T* from;
  T* to;
  int64_t first;  // entry among those of all tasks
  int64_t outputs, inputs, inner;
  int64_t of_output, of_outer, of_inner;

  NNMF_CUDA_INLINE int64_t size() const {
    return (outputs + kTileUnits - 1) / kTileUnits * kTileUnits * inputs;
  }
};

// Of a chain's steps: coefficients, and, where there are outputs, embeddings and biases.
template <class T>
struct ChainTask {
  const int64_t* timesteps;
  const double* alphas_cumprod;
  int64_t n_alphas, n_features, embedding_dim, outputs;
  double eta;
  const T *weight, *bias;  // of the first layer, [outputs][n_features + embedding_dim]
  ChainStep<T>* steps;
  T *embeddings, *biases;
};

template <class T>
struct Preparation {
  static constexpr int kMostTasks = kMostLayers + 3;  // of a direction
  PackTask<T> packs[2 * kMostTasks];
  int n_packs;
  int64_t n_entries;
  int n_steps;
  ChainTask<T> chain;
};

// A timestep that does not exist makes NaN.
template <class T>
__device__ inline ChainStep<T> step_of(const ChainTask<T>& task, int step, int n_steps) {
  const auto kept = [&](int i) {
    const int64_t t = task.timesteps[i];
    return t >= 0 && t < task.n_alphas ? task.alphas_cumprod[t] : NAN;
  };
  return chain_step<T>(kept(step), step + 1 < n_steps ? kept(step + 1) : 1.0, task.eta);
}

// Biases with what the embedding adds: some lanes share an output, so that they read side by side.
template <class T>
__device__ inline void fold_embeddings(const ChainTask<T>& task, const T* embedding, T* biases) {
  constexpr int kShare = 8;
  const int64_t dim = task.embedding_dim, together = blockDim.x / kShare;
  const int lane = static_cast<int>(threadIdx.x) % kShare;
  for (int64_t first = 0; first < task.outputs; first += together) {
    const int64_t o = first + threadIdx.x / kShare;
    const bool exists = o < task.outputs;
    const T* weight = task.weight + o * (task.n_features + dim) + task.n_features;
    double sum = 0;
    if (exists) {
#pragma unroll 4
      for (int64_t i = lane; i < dim; i += kShare)
        sum += static_cast<double>(weight[i]) * static_cast<double>(embedding[i]);
    }
#pragma unroll
    for (int step = kShare / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    if (exists && lane == 0) biases[o] = static_cast<T>(static_cast<double>(task.bias[o]) + sum);
  }
}

template <class T>
__device__ inline void prepare_step(const ChainTask<T>& task, int step, int n_steps) {
  if (threadIdx.x == 0) task.steps[step] = step_of(task, step, n_steps);
  if (task.outputs == 0) return;
  T* embedding = task.embeddings + step * task.embedding_dim;
  embed(task.timesteps[step], task.embedding_dim, threadIdx.x, blockDim.x, embedding);
  __syncthreads();
  fold_embeddings(task, embedding, task.biases + step * task.outputs);
}

template <class T>
__device__ inline void pack_entry(const Preparation<T>& p, int64_t entry) {
  if (entry >= p.n_entries) return;
  int at = 0;
  while (at + 1 < p.n_packs && entry >= p.packs[at + 1].first) ++at;
  const PackTask<T>& task = p.packs[at];
  entry -= task.first;
  // Divided in 32 bits: sizes of a layer are ints, and a tile's row is one of 2^32.
  const auto row = static_cast<uint32_t>(entry / kTileUnits);
  const auto inputs = static_cast<uint32_t>(task.inputs), inner = static_cast<uint32_t>(task.inner);
  const uint32_t tile = row / inputs, i = row - tile * inputs, outer = i / inner;
  const int64_t o = int64_t{tile} * kTileUnits + entry % kTileUnits;
  const bool exists = o < task.outputs;
  task.to[entry] = exists ? task.from[o * task.of_output + outer * task.of_outer +
                                      (i - outer * inner) * task.of_inner]
                          : T{0};
}

// A block for each step, then one for every kDefenceThreads packed entries.
template <class T>
__global__ void __launch_bounds__(kDefenceThreads)
    prepare_defence_kernel(const __grid_constant__ Preparation<T> p) {
  if (static_cast<int64_t>(blockIdx.x) < p.n_steps)
    prepare_step(p.chain, static_cast<int>(blockIdx.x), p.n_steps);
  else
    pack_entry(p, (int64_t{blockIdx.x} - p.n_steps) * kDefenceThreads + threadIdx.x);
}

template <class T>
void launch_prepare_defence(const Preparation<T>& p, cudaStream_t stream) {
  const int64_t blocks = p.n_steps + (p.n_entries + kDefenceThreads - 1) / kDefenceThreads;
  if (blocks == 0) return;
  NNMF_CUDA_LAUNCH(prepare_defence_kernel<T>, grid_of(blocks), kDefenceThreads, 0, stream, p);
}

enum class Direction { kForward, kBackward };

// A defence with packed weights, and the launch that packs them. What is packed lies in memory of
// which the caller has `size()` numbers to give, 16-byte aligned.
template <class T>
class DefencePreparation {
 public:
  DefencePreparation(const DefenceParams<T>& in, Direction direction)
      : in_(in), forward_(direction == Direction::kForward) {
    d_.x = in.x;
    d_.n_rows = in.n_rows();
    d_.n_draws = in.n_draws;
    d_.n_features = static_cast<int>(in.n_features);
    d_.width = static_cast<int>(in.width());
    d_.has_chain = !in.denoiser.empty();
    d_.has_cnn = !in.classifier.empty();
    if (d_.has_chain) add_chain();
    if (d_.has_cnn) add_cnn();
  }

  int64_t size() const { return packed_at() + preparation_.n_entries; }

  void place(T* memory) {
    DeviceChain<T>& chain = d_.chain;
    if (d_.has_chain) {
      ChainTask<T>& task = preparation_.chain;
      chain.steps = task.steps = reinterpret_cast<ChainStep<T>*>(memory);
      if (forward_) {
        chain.embeddings = task.embeddings = memory + steps_size();
        chain.biases = task.biases = chain.embeddings + chain.n_steps * task.embedding_dim;
      }
    }
    for (int i = 0; i < preparation_.n_packs; ++i) {
      PackTask<T>& pack = preparation_.packs[i];
      d_.layers[layers_[i]].weight = pack.to = memory + packed_at() + pack.first;
    }
  }

  // Has its launch compute what `other`, the same defence backwards, has a place for; after both
  // are placed, since size() counts the other's entries from here on.
  void join(const DefencePreparation& other) {
    for (int i = 0; i < other.preparation_.n_packs; ++i) {
      PackTask<T>& pack = preparation_.packs[preparation_.n_packs++];
      pack = other.preparation_.packs[i];
      pack.first += preparation_.n_entries;
    }
    preparation_.n_entries += other.preparation_.n_entries;
    d_.chain.steps = preparation_.chain.steps = other.d_.chain.steps;
  }

  void launch(cudaStream_t stream) const { launch_prepare_defence(preparation_, stream); }

  const DeviceDefence<T>& defence() const { return d_; }

 private:
  // Inputs beyond the first `inputs` are left out.
  void add_layer(const LayerParams<T>& layer, int64_t inputs, int to) {
    if (forward_)
      add_pack({layer.weight, nullptr, 0, layer.outputs, inputs, 1, layer.inputs, 1, 0}, to);
    else
      add_pack({layer.weight, nullptr, 0, inputs, layer.outputs, 1, 1, layer.inputs, 0}, to);
    d_.layers[to].bias = layer.bias;
    d_.layers[to].cut_inputs();
  }

  // Backwards its outputs are channels before it, its inputs [channels][3].
  void add_convolution(const LayerParams<T>& layer, int to) {
    if (forward_) {
      add_layer(layer, layer.inputs, to);
    } else {
      const int64_t before = layer.inputs / 3;
      add_pack({layer.weight, nullptr, 0, before, layer.outputs * 3, 3, 3, layer.inputs, 1}, to);
      d_.layers[to].bias = layer.bias;
    }
    d_.layers[to].cut_pairs(forward_ ? in_.n_features / 2 : (in_.n_features + 1) / 2);
  }

  void add_pack(PackTask<T> task, int to) {
    d_.layers[to].outputs = static_cast<int>(task.outputs);
    d_.layers[to].inputs = static_cast<int>(task.inputs);
    task.first = preparation_.n_entries;
    preparation_.n_entries += task.size();
    layers_[preparation_.n_packs] = to;
    preparation_.packs[preparation_.n_packs++] = task;
  }

  void add_chain() {
    DeviceChain<T>& chain = d_.chain;
    const LayerParams<T>& first = in_.denoiser[0];
    const int64_t dim = first.inputs - in_.n_features, outputs = forward_ ? first.outputs : 0;
    chain.noise = in_.noise;
    chain.seed = static_cast<uint64_t>(in_.seed);
    chain.n_steps = preparation_.n_steps = static_cast<int>(in_.n_steps);
    chain.n_noised = static_cast<int>(in_.n_noised());
    chain.n_layers = static_cast<int>(in_.denoiser.size());
    chain.words_per_step = static_cast<int>(in_.words_per_step());
    chain.embedding_dim = static_cast<int>(dim);
    preparation_.chain = {
        in_.timesteps, in_.alphas_cumprod, in_.n_alphas, in_.n_features, dim,     outputs,
        in_.eta,       first.weight,       first.bias,   nullptr,        nullptr, nullptr};
    for (std::size_t l = 0; l < in_.denoiser.size(); ++l)
      add_layer(in_.denoiser[l], l == 0 ? in_.n_features : in_.denoiser[l].inputs,
                static_cast<int>(l));
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
    cnn.second = static_cast<int>(in_.denoiser.size());
    cnn.hidden = cnn.second + 1;
    cnn.last = cnn.hidden + 1;
    add_convolution(in_.classifier[1], cnn.second);
    add_layer(in_.classifier[2], in_.classifier[2].inputs, cnn.hidden);
    add_layer(in_.classifier[3], in_.classifier[3].inputs, cnn.last);
  }

  // Numbers of the steps' coefficients; and of all that lies before packed weights.
  int64_t steps_size() const {
    return preparation_.n_steps * static_cast<int64_t>(sizeof(ChainStep<T>) / sizeof(T));
  }
  int64_t packed_at() const {
    const int64_t of_forward = preparation_.chain.embedding_dim + preparation_.chain.outputs;
    const int64_t numbers = steps_size() + (forward_ ? preparation_.n_steps * of_forward : 0);
    return blocks_of(numbers, 4) * 4;
  }

  const DefenceParams<T>& in_;
  bool forward_;
  DeviceDefence<T> d_{};
  Preparation<T> preparation_{};
  int layers_[Preparation<T>::kMostTasks];  // of each pack
};

// Numbers that a backward pass needs prepared.
template <class T>
int64_t backward_preparation_size(const DefenceParams<T>& in) {
  return DefencePreparation<T>(in, Direction::kBackward).size();
}

}  // namespace nnmf_cuda
