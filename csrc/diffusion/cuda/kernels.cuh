// purify, feature_cnn and defended_logits for blocks of 32 or 16 rows, forwards, and backwards from
// the signs of the units: everything between the first load and the last store stays on chip. Then
// gradients to the weights: every block computes its rows' activations again, goes backwards and
// adds up the products of gradients and activations, 32 rows at a time in T, then in float64.
#pragma once

#include <cstdint>

#include "defence.cuh"

namespace nnmf_cuda {

// The block's activations: in shared memory behind what its multiplier needs, or, where that is too
// small, in memory.
template <int kRows, bool kShared, class T>
__device__ __forceinline__ T* memory_of_block(T* shared, T* workspace, int64_t units) {
  return kShared ? shared + kMultiplierSize<T, kRows>
                 : workspace + int64_t{blockIdx.x} * (units * kRows);
}

// to[sample] = the sum over a sample's draws of number(row, unit), over `divisor`, where they are
// rows of this block; in the order of sum_draws_kernel.
template <class T, int kRows, class F>
__device__ __forceinline__ void sum_draws_of_block(const DeviceRows<kRows>& rows,
                                                   const RowNumbers<T>& to, double divisor,
                                                   const F& number) {
  const int size = rows.count / to.draws * to.width;
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kDefenceThreads) {
    const int sample = i / to.width, unit = i - sample * to.width;
    double sum = 0;
    for (int draw = 0; draw < to.draws; ++draw)
      sum += static_cast<double>(number(sample * to.draws + draw, unit));
    to.values[rows.first / to.draws * to.width + i] = static_cast<T>(sum / divisor);
  }
}

template <class T>
struct ForwardTask {
  DeviceDefence<T> d;
  RowNumbers<T> out;
  uint32_t* signs;  // [blocks of 32 rows][n_words]; may be null
  int64_t n_words, n_blocks, units;
};

template <class T, int kRows, bool kShared>
__global__ void __launch_bounds__(kDefenceThreads, kDefenceBlocks<T, kRows, kShared>)
    defence_forward_kernel(const __grid_constant__ ForwardTask<T> task) {
  NNMF_CUDA_DYNAMIC_SHARED(T, shared);
  const DeviceDefence<T>& d = task.d;
  const Work<T, kRows> work(memory_of_block<kRows, kShared>(shared, d.workspace, task.units),
                            d.n_features, d.width);
  Multiplier<T, kRows> layers(d.layers, shared);
  for (int64_t block = blockIdx.x; block < task.n_blocks; block += gridDim.x) {
    const DeviceRows<kRows> rows(block, d.n_rows);
    const LaneRow<kRows> row(rows, d.n_draws);
    auto* const signs = reinterpret_cast<RowsWord<kRows>*>(task.signs);
    const auto words = rows.words(signs, task.n_words);
    layers.queue.announce(d.forward_begins());
    start_rows<T>(d, row, work.x, nullptr);
    if (d.has_chain) chain_forward<T>(layers, d, rows.mask, row, work, words, nullptr);
    if (d.has_cnn) {
      cnn_forward(layers, d.cnn, d.cnn.last, d.n_features, rows.mask, work.x, work.one, work.two,
                  work.one, words.behind(d.chain_words()));
      const bool summed = task.out.draws > 0;
      store_logits(layers, d.cnn, rows, work.one, [&](int row, int unit) -> T& {
        return summed ? work.two[unit * kRows + row] : task.out.at(rows.first + row, unit);
      });
      if (summed) {
        __syncthreads();
        sum_draws_of_block(rows, task.out, task.out.draws,
                           [&](int row, int unit) { return work.two[unit * kRows + row]; });
      }
    } else {
      for_each_row_unit<kRows>(d.n_features, [&](int j) {
        if (row.exists) task.out.at(row.flat, j) = work.x[j * kRows + row.row];
      });
    }
  }
}

template <class T>
struct BackwardTask {
  DeviceDefence<T> d;  // layers from outputs to inputs
  const T* grad;       // [n_samples][n_classes] with a network, else [rows][n_features]
  int n_classes;
  const uint32_t* signs;
  RowNumbers<T> of_x;
  T* of_noise;  // like the noise; may be null
  int64_t n_words, n_blocks, units;
};

// The gradient to the outputs: where cnn_backward or chain_backward expects it.
template <class T, int kRows>
__device__ __forceinline__ void load_gradient(const DeviceDefence<T>& d, const LaneRow<kRows>& row,
                                              const T* grad, int n_classes,
                                              const Work<T, kRows>& work) {
  if (d.has_cnn) {
    for_each_row_unit<kRows>(n_classes, [&](int c) {
      work.one[c * kRows + row.row] =
          row.exists ? grad[row.sample * n_classes + c] / static_cast<T>(d.n_draws) : T{0};
    });
    __syncthreads();
  } else {  // every thread goes on with what it has loaded
    for_each_row_unit<kRows>(d.n_features, [&](int j) {
      work.x[j * kRows + row.row] = row.exists ? grad[row.flat * d.n_features + j] : T{0};
    });
  }
}

// A second block on a multiprocessor would cost it spills.
template <class T, int kRows, bool kShared>
__global__ void __launch_bounds__(kDefenceThreads, 1)
    defence_backward_kernel(const __grid_constant__ BackwardTask<T> task) {
  NNMF_CUDA_DYNAMIC_SHARED(T, shared);
  const DeviceDefence<T>& d = task.d;
  const Work<T, kRows> work(memory_of_block<kRows, kShared>(shared, d.workspace, task.units),
                            d.n_features, d.width);
  Multiplier<T, kRows> layers(d.layers, shared);
  for (int64_t block = blockIdx.x; block < task.n_blocks; block += gridDim.x) {
    const DeviceRows<kRows> rows(block, d.n_rows);
    const LaneRow<kRows> row(rows, d.n_draws);
    auto* const signs = reinterpret_cast<const RowsWord<kRows>*>(task.signs);
    const auto words = rows.words(signs, task.n_words);
    layers.queue.announce(d.backward_begins());
    load_gradient(d, row, task.grad, task.n_classes, work);
    if (d.has_cnn)
      cnn_backward(layers, d.cnn, d.chain_backward_begins(), d.n_features,
                   words.behind(d.chain_words()), work, NoWeights{});
    if (d.has_chain) chain_backward(layers, d, row, words, work, task.of_noise, NoWeights{});
    const T keep = d.has_chain ? d.chain.steps[0].keep : T{1};
    const bool summed = task.of_x.draws > 0;
    if (summed) {
      sum_draws_of_block(rows, task.of_x, 1.0,
                         [&](int row, int unit) { return keep * work.x[unit * kRows + row]; });
      __syncthreads();  // before the next rows' gradients take their place
    }
    for_each_row_unit<kRows>(d.n_features, [&](int j) {
      const T grad = work.x[j * kRows + row.row];
      if (!row.exists) return;
      if (!summed) task.of_x.at(row.flat, j) = keep * grad;
      if (task.of_noise != nullptr)
        task.of_noise[row.flat * d.n_features + j] = d.chain.steps[0].spread * grad;
    });
  }
}

// to[sample] = the sum over draws of numbers that lie by block, over `divisor`.
template <class T>
__global__ void __launch_bounds__(kDefenceThreads)
    sum_draws_kernel(const T* from, T* to, int64_t n_samples, int64_t n_draws, int width,
                     double divisor) {
  const int64_t at = int64_t{blockIdx.x} * kDefenceThreads + threadIdx.x;
  if (at >= n_samples * width) return;
  const int64_t sample = at / width, unit = at - sample * width;
  double sum = 0;
  for (int64_t draw = 0; draw < n_draws; ++draw) {
    const int64_t row = sample * n_draws + draw;
    sum += static_cast<double>(
        from[(row / kBlockRows * width + unit) * kBlockRows + row % kBlockRows]);
  }
  to[at] = static_cast<T>(sum / divisor);
}

template <class T>
struct WeightsTask {
  DeviceDefence<T> d, back;  // `back`: layers from outputs to inputs
  const T* grad;
  const uint32_t* signs;
  int64_t n_words, n_blocks, units;
  double* sums;  // [groups][n_weights]
  int64_t n_weights;
  int64_t chain_at[kMostLayers], cnn_at[4];  // where a layer's weights are, its bias behind them
};

// Activations of a block that are kept until its gradients are known.
template <class T>
struct Kept {
  T *x, *hidden, *first, *pooled, *last, *work;

  __device__ __forceinline__ Kept(T* memory, const DeviceDefence<T>& d) : x(memory) {
    const int steps = d.has_chain ? d.chain.n_steps : 0;
    hidden = x + (steps + 1) * d.n_features * kBlockRows;  // of one step
    first = hidden + (d.has_chain ? d.chain.words_per_step : 0) * kBlockRows;
    pooled = first + (d.has_cnn ? d.n_features * d.cnn.first_channels : 0) * kBlockRows;
    last = pooled + (d.has_cnn ? d.cnn.n_pooled * d.cnn.second_channels : 0) * kBlockRows;
    work = last + (d.has_cnn ? d.layers[d.cnn.hidden].outputs : 0) * kBlockRows;
  }
};

// to[o * inputs + i] += the sum over terms and rows of grad(term, o, row) * in(term, i, row), which
// return four rows each. Lanes begin at different rows: no two read the same bank.
template <class T, class Grad, class In>
__device__ __forceinline__ void add_products(int outputs, int inputs, int terms, const Grad& grad,
                                             const In& in, double* to) {
  const int lane = lane_of_thread(), across = (inputs + kTileUnits - 1) / kTileUnits;
  const int tiles = (outputs + kTileUnits - 1) / kTileUnits * across;
  for (int tile = warp_of_thread(); tile < tiles; tile += kDefenceWarps) {
    const int first_o = tile / across * kTileUnits + lane / 8,
              first_i = tile % across * kTileUnits + lane % 8;
    double sums[4][2] = {};
    for (int term = 0; term < terms; ++term) {
      T part[4][2] = {};
      for (int q = 0; q < kBlockRows / 4; ++q) {
        const int row = (lane + q) % 8 * 4;
        Four<T> given[2];
#pragma unroll
        for (int b = 0; b < 2; ++b)
          given[b] = first_i + 8 * b < inputs ? in(term, first_i + 8 * b, row) : Four<T>{};
#pragma unroll
        for (int a = 0; a < 4; ++a) {
          if (first_o + 4 * a >= outputs) continue;
          const Four<T> g = grad(term, first_o + 4 * a, row);
#pragma unroll
          for (int b = 0; b < 2; ++b)
#pragma unroll
            for (int r = 0; r < 4; ++r) part[a][b] += g.values[r] * given[b].values[r];
        }
      }
#pragma unroll
      for (int a = 0; a < 4; ++a)
#pragma unroll
        for (int b = 0; b < 2; ++b) sums[a][b] += static_cast<double>(part[a][b]);
    }
#pragma unroll
    for (int a = 0; a < 4; ++a)
#pragma unroll
      for (int b = 0; b < 2; ++b)
        if (first_o + 4 * a < outputs && first_i + 8 * b < inputs)
          to[static_cast<int64_t>(first_o + 4 * a) * inputs + first_i + 8 * b] += sums[a][b];
  }
}

// to[o] += the sum over terms and rows of grad(term, o, row).
template <class T, class Grad>
__device__ __forceinline__ void add_rows(int outputs, int terms, const Grad& grad, double* to) {
  for (int o = static_cast<int>(threadIdx.x); o < outputs; o += kDefenceThreads) {
    double sum = 0;
    for (int term = 0; term < terms; ++term)
      for (int q = 0; q < kBlockRows / 4; ++q) {
        const Four<T> g = grad(term, o, (o + q) % 8 * 4);
        sum += static_cast<double>(g.values[0]) + static_cast<double>(g.values[1]) +
               static_cast<double>(g.values[2]) + static_cast<double>(g.values[3]);
      }
    to[o] += sum;
  }
}

// What the backward pass calls for a block.
template <class T>
struct BlockWeights {
  static constexpr bool kComputesLayers = true;

  const WeightsTask<T>& task;
  Multiplier<T, kBlockRows>& layers;  // forwards
  unsigned rows;
  SignWords<const uint32_t> words;
  const Kept<T>& kept;
  double* sums;
  mutable int step = 0;

  // A layer, or a convolution as one: a sum over its positions.
  template <class Grad, class In>
  __device__ __forceinline__ void add_layer(int outputs, int inputs, int terms, const Grad& grad,
                                            const In& in, int64_t at) const {
    add_products<T>(outputs, inputs, terms, grad, in, sums + at);
    add_rows<T>(outputs, terms, grad, sums + at + static_cast<int64_t>(outputs) * inputs);
  }

  template <class In>
  __device__ __forceinline__ void add_dense(const DeviceDense<T>& layer, int inputs, const T* grad,
                                            const In& in, int64_t at) const {
    add_layer(
        layer.outputs, inputs, 1,
        [&](int, int o, int row) { return load_four(grad + o * kBlockRows + row); },
        [&](int, int i, int row) { return in(i, row); }, at);
  }

  // The hidden layers' outputs once more.
  __device__ __forceinline__ void begin_step(int at) const {
    const DeviceChain<T>& chain = task.d.chain;
    step = at;
    const T* in = kept.x + step * task.d.n_features * kBlockRows;
    T* out = kept.hidden;
    for (int l = 0; l + 1 < chain.n_layers; ++l) {
      const DeviceDense<T>& layer = layers[l];
      const int next = l + 2 < chain.n_layers ? l + 1 : kNoLayer;
      const T* bias = l == 0 ? chain.biases + step * layer.outputs : layer.bias;
      dense_forward<T>(layers, l, next, bias, true, in, out, SignWords<uint32_t>{nullptr}, rows);
      __syncthreads();
      in = out;
      out += layer.outputs * kBlockRows;
    }
  }

  __device__ __forceinline__ void of_chain(int l, const T* grad) const {
    const DeviceChain<T>& chain = task.d.chain;
    const int n_features = task.d.n_features;
    if (l == 0) {  // x_t, then the embedding
      const T* x_t = kept.x + step * n_features * kBlockRows;
      const T* embedding = chain.embeddings + step * chain.embedding_dim;
      add_dense(
          layers[0], n_features + chain.embedding_dim, grad,
          [&](int i, int row) {
            if (i < n_features) return load_four(x_t + i * kBlockRows + row);
            const T e = embedding[i - n_features];
            return Four<T>{{e, e, e, e}};
          },
          task.chain_at[0]);
      return;
    }
    const T* given = kept.hidden;
    for (int before = 0; before + 1 < l; ++before) given += layers[before].outputs * kBlockRows;
    add_dense(
        layers[l], layers[l].inputs, grad,
        [&](int i, int row) { return load_four(given + i * kBlockRows + row); }, task.chain_at[l]);
  }

  __device__ __forceinline__ void of_cnn(int l, const T* grad) const {
    if (l == 0)
      of_first(grad);
    else if (l == 1)
      of_second(grad);
    else
      add_dense(
          layers[l == 2 ? task.d.cnn.hidden : task.d.cnn.last],
          layers[l == 2 ? task.d.cnn.hidden : task.d.cnn.last].inputs, grad,
          [&](int i, int row) {
            return load_four((l == 2 ? kept.pooled : kept.last) + i * kBlockRows + row);
          },
          task.cnn_at[l]);
  }

  __device__ __forceinline__ void of_first(const T* grad) const {
    const int n_features = task.d.n_features, channels = task.d.cnn.first_channels;
    const T* x = kept.x + (task.d.has_chain ? task.d.chain.n_steps : 0) * n_features * kBlockRows;
    add_layer(
        channels, 3, n_features,
        [&](int position, int o, int row) {
          return load_four(grad + (position * channels + o) * kBlockRows + row);
        },
        [&](int position, int tap, int row) {
          const int from = position + tap - 1;
          return load_four_if(from >= 0 && from < n_features, x + from * kBlockRows + row);
        },
        task.cnn_at[0]);
  }

  __device__ __forceinline__ void of_second(const T* grad) const {
    const DeviceCnn<T>& cnn = task.d.cnn;
    const int n_features = task.d.n_features, channels = cnn.first_channels;
    const auto pairs = words.behind(task.d.chain_words() + cnn.pairs_at);
    add_layer(
        cnn.second_channels, channels * 3, 2 * cnn.n_pooled,
        [&](int position, int o, int row) {
          return load_position<kBlockRows>(pairs, grad, o * cnn.n_pooled + position / 2,
                                           position % 2 == 1, row);
        },
        [&](int position, int i, int row) {
          const int from = position + i % 3 - 1;
          return load_four_if(from >= 0 && from < n_features,
                              kept.first + (from * channels + i / 3) * kBlockRows + row);
        },
        task.cnn_at[1]);
  }
};

// A block of threads for each group of blocks of rows. Its activations leave a multiprocessor room
// for no second one, so it may have all registers.
template <class T, bool kShared>
__global__ void __launch_bounds__(kDefenceThreads, 1)
    defence_weights_kernel(const __grid_constant__ WeightsTask<T> task) {
  NNMF_CUDA_DYNAMIC_SHARED(T, shared);
  const DeviceDefence<T>& d = task.d;
  const Kept<T> kept(memory_of_block<kBlockRows, kShared>(shared, d.workspace, task.units), d);
  const Work<T, kBlockRows> work(kept.work, d.n_features, d.width);
  Multiplier<T, kBlockRows> layers(d.layers, shared), back(task.back.layers, shared);
  double* sums = task.sums + int64_t{blockIdx.x} * task.n_weights;
  for (int64_t i = threadIdx.x; i < task.n_weights; i += kDefenceThreads) sums[i] = 0;
  for (int64_t block = blockIdx.x; block < task.n_blocks; block += gridDim.x) {
    const DeviceRows<kBlockRows> rows(block, d.n_rows);
    const LaneRow<kBlockRows> row(rows, d.n_draws);
    const auto words = rows.words(task.signs, task.n_words);
    const BlockWeights<T> weights{task, layers, rows.mask, words, kept, sums};
    const SignWords<uint32_t> unwanted{nullptr};
    start_rows(d, row, work.x, kept.x);
    if (d.has_chain) chain_forward<T>(layers, d, rows.mask, row, work, unwanted, kept.x);
    if (d.has_cnn) {
      const T* x = kept.x + (d.has_chain ? d.chain.n_steps : 0) * d.n_features * kBlockRows;
      cnn_forward<T>(layers, d.cnn, kNoLayer, d.n_features, rows.mask, x, kept.first, kept.pooled,
                     kept.last, unwanted);
    }
    load_gradient(d, row, task.grad, d.has_cnn ? layers[d.cnn.last].outputs : 0, work);
    if (d.has_cnn)
      cnn_backward(back, task.back.cnn, kNoLayer, d.n_features, words.behind(d.chain_words()), work,
                   weights);
    if (d.has_chain) chain_backward<T>(back, task.back, row, words, work, nullptr, weights);
  }
}

// to[i] = the sum over groups.
template <class T>
__global__ void __launch_bounds__(kDefenceThreads)
    sum_groups_kernel(const double* from, T* to, int64_t groups, int64_t stride, int64_t size) {
  const int64_t at = int64_t{blockIdx.x} * kDefenceThreads + threadIdx.x;
  if (at >= size) return;
  double sum = 0;
  for (int64_t group = 0; group < groups; ++group) sum += from[group * stride + at];
  to[at] = static_cast<T>(sum);
}

}  // namespace nnmf_cuda
