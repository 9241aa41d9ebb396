// What a call computes once, before the rows: packed weights, and for each step of the chain its
// coefficients, the embedding of t and the first layer's bias with what the embedding adds.
#pragma once

#include <cmath>
#include <cstdint>

#include "device_defence.cuh"

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

  NNMF_CUDA_INLINE int64_t size() const { return (outputs + kTile - 1) / kTile * kTile * inputs; }
};

template <class T>
struct ChainTask {
  const int64_t* timesteps;
  const double* alphas_cumprod;
  int64_t n_alphas, n_features, embedding_dim, outputs;
  double eta;
  const T *weight, *bias;  // of the first layer, [outputs][n_features + embedding_dim]
  T *coefficients, *embeddings, *biases;
};

template <class T>
struct Preparation {
  static constexpr int kMostTasks = kMostLayers + 3;
  PackTask<T> packs[kMostTasks];
  int n_packs;
  int64_t n_entries;
  int n_steps;
  ChainTask<T> chain;
};

// By Song et al. (2021), equation 12; see the reference. A timestep that does not exist makes NaN.
template <class T>
__device__ inline void compute_coefficients(const ChainTask<T>& task, int step, int n_steps) {
  const auto kept = [&](int i) {
    const int64_t t = task.timesteps[i];
    return t >= 0 && t < task.n_alphas ? task.alphas_cumprod[t] : NAN;
  };
  const double now = kept(step), prev = step + 1 < n_steps ? kept(step + 1) : 1.0;
  const double variance = (1 - prev) / (1 - now) * (1 - now / prev);
  const double sigma = task.eta * sqrt(variance < 0 ? 0 : variance);
  const double rest = 1 - prev - sigma * sigma;
  const double direction = sqrt(rest < 0 ? 0 : rest) / sqrt(1 - now);
  T* to = task.coefficients + step * kCoefficients;
  to[kKeep] = static_cast<T>(sqrt(now));
  to[kSpread] = static_cast<T>(sqrt(1 - now));
  to[kOfPrediction] = static_cast<T>(sqrt(prev) - direction * sqrt(now));
  to[kOfXt] = static_cast<T>(direction);
  to[kOfNoise] = static_cast<T>(sigma);
}

// Sines, then cosines, of t * 10000^(-i / half); an odd width ends in a zero.
__device__ inline double embed(int64_t t, int64_t at, int64_t dim) {
  const int64_t half = dim / 2;
  if (at >= 2 * half) return 0;
  const double exponent = static_cast<double>(at % half) / static_cast<double>(half);
  const double angle = static_cast<double>(t) * exp(-9.210340371976184 * exponent);  // log 10000
  return at < half ? sin(angle) : cos(angle);
}

template <class T>
__device__ inline void prepare_step(const ChainTask<T>& task, int step, int n_steps) {
  if (threadIdx.x == 0) compute_coefficients(task, step, n_steps);
  T* embedding = task.embeddings + step * task.embedding_dim;
  for (int64_t i = threadIdx.x; i < task.embedding_dim; i += blockDim.x)
    embedding[i] = static_cast<T>(embed(task.timesteps[step], i, task.embedding_dim));
  __syncthreads();
  for (int64_t o = threadIdx.x; o < task.outputs; o += blockDim.x) {
    const T* weight = task.weight + o * (task.n_features + task.embedding_dim) + task.n_features;
    double sum = task.bias[o];
    for (int64_t i = 0; i < task.embedding_dim; ++i)
      sum += static_cast<double>(weight[i]) * static_cast<double>(embedding[i]);
    task.biases[step * task.outputs + o] = static_cast<T>(sum);
  }
}

template <class T>
__device__ inline void pack_entry(const Preparation<T>& p, int64_t entry) {
  if (entry >= p.n_entries) return;
  int at = 0;
  while (at + 1 < p.n_packs && entry >= p.packs[at + 1].first) ++at;
  const PackTask<T>& task = p.packs[at];
  entry -= task.first;
  const int64_t row = entry / kTile, tile = row / task.inputs, i = row % task.inputs;
  const int64_t o = tile * kTile + entry % kTile;
  const bool exists = o < task.outputs;
  task.to[entry] = exists ? task.from[o * task.of_output + i / task.inner * task.of_outer +
                                      i % task.inner * task.of_inner]
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

}  // namespace nnmf_cuda
