// Layers, and the classifier, on the rows of a block, forwards and backwards. Of the classifier,
// units of the first convolution lie position by position, pooled ones channel by channel.
#pragma once

#include <cstdint>
#include <type_traits>

#include "tiles.cuh"

namespace nnmf_cuda {

template <class T>
__device__ __forceinline__ T relu(T value) {
  return value < 0 ? T{0} : value;  // NaN stays
}

// Bits of the lane's four rows.
template <class T>
__device__ __forceinline__ unsigned positive(const T (&values)[4]) {
  unsigned bits = 0;
#pragma unroll
  for (int r = 0; r < 4; ++r) bits |= values[r] > 0 ? 1u << r : 0u;
  return bits;
}

// Signs of a block's rows, a word a unit; the words of 32 rows are one where they are two blocks'.
// Word: uint32_t or uint16_t, or these constant.
template <class Word>
struct SignWords {
  static constexpr int kStride = 4 / static_cast<int>(sizeof(Word));
  Word* at;  // may be null

  __device__ __forceinline__ bool wanted() const { return at != nullptr; }
  __device__ __forceinline__ uint32_t operator[](int unit) const { return at[unit * kStride]; }
  __device__ __forceinline__ void store(int unit, uint32_t word) const {
    at[unit * kStride] = static_cast<Word>(word);
  }
  __device__ __forceinline__ SignWords behind(int units) const {
    return {at == nullptr ? nullptr : at + units * kStride};
  }
};

template <int kRows>
using RowsWord = std::conditional_t<kRows == kBlockRows, uint32_t, uint16_t>;

// Every lane's four bits in their place of a unit's word, which all lanes of the unit get.
template <int kRows>
__device__ __forceinline__ unsigned join_rows(unsigned bits) {
  constexpr int kQuads = TilePlace<kRows>::kQuads;
  unsigned word = bits << (lane_of_thread() % kQuads * 4);
#pragma unroll
  for (int step = 1; step < kQuads; step *= 2) word |= __shfl_xor_sync(kAllLanes, word, step);
  return word;
}

// All lanes arrive; `exists` says whether the word of their unit is to be written.
template <int kRows, class Word>
__device__ __forceinline__ void store_word(const SignWords<Word>& words, int unit, unsigned bits,
                                           unsigned rows, bool exists) {
  const unsigned word = join_rows<kRows>(bits) & rows;
  if (exists && lane_of_thread() % TilePlace<kRows>::kQuads == 0) words.store(unit, word);
}

// Zero where the bit of a row is not set.
template <class T>
__device__ __forceinline__ void keep_rows(uint32_t word, int first_row, T (&values)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r)
    if ((word >> (first_row + r) & 1) == 0) values[r] = 0;
}

// out = the layer's outputs, after ReLU if `hidden`; `words` receive their signs.
template <class T, int kRows, class Word>
__device__ __forceinline__ void dense_forward(Multiplier<T, kRows>& layers, int index, int next,
                                              const T* bias, bool hidden, const T* in, T* out,
                                              const SignWords<Word>& words, unsigned rows) {
  const TilePlace<kRows> place;
  const int outputs = layers[index].outputs;
  layers.for_each_unit(
      index, next, in, [&](int unit) { return unit < outputs ? bias[unit] : T{0}; },
      [&](int unit, T(&sums)[4], T offset) {
        const bool exists = unit < outputs;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          sums[r] += offset;
          if (hidden) sums[r] = relu(sums[r]);
        }
        if (words.wanted()) store_word<kRows>(words, unit, positive(sums), rows, exists);
        if (exists) store_four(out + unit * kRows + place.row, sums);
      });
}

// out = the gradient to what the layer is given, by that to its outputs; its weights are packed the
// other way round. `words`: the signs of the units that the gradient reaches.
template <class T, int kRows, class Word>
__device__ __forceinline__ void dense_backward(Multiplier<T, kRows>& layers, int index, int next,
                                               const SignWords<Word>& words, const T* grad,
                                               T* out) {
  const TilePlace<kRows> place;
  const int outputs = layers[index].outputs;
  layers.for_each_unit(
      index, next, grad, [&](int unit) { return unit < outputs ? words[unit] : uint32_t{0}; },
      [&](int unit, T(&sums)[4], uint32_t word) {
        if (unit >= outputs) return;
        keep_rows(word, place.row, sums);
        store_four(out + unit * kRows + place.row, sums);
      });
}

// The rows of a block: of the last one of 32 both halves are blocks, even where one is empty.
template <int kRows>
struct DeviceRows {
  int64_t block, first;
  int count;
  unsigned mask;

  __device__ __forceinline__ DeviceRows(int64_t block, int64_t n_rows)
      : block(block), first(block * kRows) {
    const int64_t left = n_rows - first;
    count = left >= kRows ? kRows : left > 0 ? static_cast<int>(left) : 0;
    mask = count > 0 ? kAllLanes >> (kWarp - count) : 0;
  }

  // Of `width` words for every 32 rows.
  template <class Word>
  __device__ __forceinline__ SignWords<Word> words(Word* signs, int64_t width) const {
    constexpr int kStride = SignWords<Word>::kStride;
    if (signs == nullptr) return {nullptr};
    return {signs + block / kStride * width * kStride + block % kStride};
  }
};

// The row of a lane, where some lanes take a unit at a time, a row each.
template <int kRows>
struct LaneRow {
  int row;
  int64_t flat, sample;
  uint32_t draw;
  bool exists;

  __device__ __forceinline__ LaneRow(const DeviceRows<kRows>& rows, int64_t n_draws)
      : row(lane_of_thread() % kRows), flat(rows.first + row), exists(row < rows.count) {
    sample = flat / n_draws;
    draw = static_cast<uint32_t>(flat - sample * n_draws);
  }
};

// Numbers of every row: [rows][width], or, where they are yet to be summed over draws,
// [blocks][width][32]. Where all draws of a sample are rows of one block, the block sums them:
// [samples][width].
template <class T>
struct RowNumbers {
  T* values;
  int width;
  bool by_block;
  int draws;  // that a block sums, else 0

  __device__ __forceinline__ T& at(int64_t flat, int unit) const {
    return by_block ? values[(flat / kBlockRows * width + unit) * kBlockRows + flat % kBlockRows]
                    : values[flat * width + unit];
  }
};

// Memory of a block: features, and activations before and after a layer, [unit][row].
template <class T, int kRows>
struct Work {
  T *x, *one, *two;

  __device__ __forceinline__ Work(T* memory, int n_features, int width)
      : x(memory), one(x + n_features * kRows), two(one + width * kRows) {}
};

// Units of a block's Work.
inline int64_t work_units(int64_t n_features, int64_t width) {
  return n_features + 2 * width;
}

// Calls f(unit) with kRows lanes for each of its units, a row each.
template <int kRows, class F>
__device__ __forceinline__ void for_each_row_unit(int n_units, const F& f) {
  constexpr int kStep = kDefenceThreads / kRows;
  for (int unit = static_cast<int>(threadIdx.x) / kRows; unit < n_units; unit += kStep) f(unit);
}

// Words of signs as in CnnShape.
template <class T>
struct DeviceCnn {
  int first_channels, second_channels, n_pooled;
  int pooled_at, pairs_at, hidden_at;
  const T *first_weight, *first_bias;  // [channels][3]
  int second, hidden, last;            // layers
};

template <class T, int kRows, class Word>
__device__ __forceinline__ void first_convolution(const DeviceCnn<T>& cnn, int n_features,
                                                  const T* x, T* out, const SignWords<Word>& words,
                                                  unsigned rows) {
  constexpr int kTeams = kWarp / kRows;  // each has a channel
  const int row = lane_of_thread() % kRows, team = lane_of_thread() / kRows;
  for (int first = warp_of_thread() * kTeams; first < cnn.first_channels;
       first += kDefenceWarps * kTeams) {
    const int channel = first + team;
    const bool exists = channel < cnn.first_channels;
    const T* weight = cnn.first_weight + (exists ? channel : first) * 3;
    const T w0 = weight[0], w1 = weight[1], w2 = weight[2],
            bias = cnn.first_bias[exists ? channel : first];
    T before = 0, here = x[row];
#pragma unroll 4
    for (int position = 0; position < n_features; ++position) {
      const T after = position + 1 < n_features ? x[(position + 1) * kRows + row] : T{0};
      const T value = relu(bias + w0 * before + w1 * here + w2 * after);
      const int unit = position * cnn.first_channels + channel;
      if (exists) out[unit * kRows + row] = value;
      if (words.wanted()) {
        const unsigned word = __ballot_sync(kAllLanes, value > 0) >> (team * kRows) & rows;
        if (exists && row == 0) words.store(unit, word);
      }
      before = here;
      here = after;
    }
  }
}

// Four rows of a unit, zeros where it does not exist.
template <class T>
__device__ __forceinline__ Four<T> load_four_if(bool exists, const T* from) {
  return exists ? load_four(from) : Four<T>{};
}

// The second convolution of pairs of positions, ReLU, and the larger one of each pair.
template <class T, int kRows, class Word>
__device__ __forceinline__ void second_convolution(Multiplier<T, kRows>& layers,
                                                   const DeviceCnn<T>& cnn, int n_features,
                                                   const T* in, T* pooled,
                                                   const SignWords<Word>& words, unsigned rows) {
  const TilePlace<kRows> place;
  const int channels = cnn.first_channels;
  const T* const bias = layers[cnn.second].bias;
  layers.for_each_pair(
      cnn.second, cnn.hidden,
      [&](int first, int) {
        Four<T> biases;
#pragma unroll
        for (int u = 0; u < 4; ++u)
          biases.values[u] = first + u < cnn.second_channels ? bias[first + u] : T{0};
        return biases;
      },
      [&](int c, int pair, Four<T>(&given)[4]) {
        const T* here = in + (2 * pair * channels + c) * kRows + place.row;
        const int next = channels * kRows;
        given[0] = load_four_if(pair > 0, here - next);
        given[1] = load_four(here);
        given[2] = load_four(here + next);
        given[3] = load_four_if(2 * pair + 2 < n_features, here + 2 * next);
      },
      [&](int first, int pair, bool pair_exists, T(&sums)[2][4][4], const Four<T>& biases) {
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          const int channel = first + u;
          const bool exists = pair_exists && channel < cnn.second_channels;
          const int unit = channel * cnn.n_pooled + pair;
          unsigned from_second = 0;
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const T one = relu(sums[0][u][r] + biases.values[u]),
                    two = relu(sums[1][u][r] + biases.values[u]);
            const bool second = two > one || two != two;  // NaN is the largest
            from_second |= static_cast<unsigned>(second) << r;
            sums[0][u][r] = second ? two : one;
          }
          if (words.wanted()) {
            store_word<kRows>(words, cnn.pooled_at + unit, positive(sums[0][u]), rows, exists);
            store_word<kRows>(words, cnn.pairs_at + unit, from_second, rows, exists);
          }
          if (exists) store_four(pooled + unit * kRows + place.row, sums[0][u]);
        }
      });
}

// Everything but the last layer. `next`: what is computed after it, kNoLayer if that is not known.
template <class T, int kRows, class Word>
__device__ __forceinline__ void cnn_forward(Multiplier<T, kRows>& layers, const DeviceCnn<T>& cnn,
                                            int next, int n_features, unsigned rows, const T* x,
                                            T* first, T* pooled, T* hidden,
                                            const SignWords<Word>& words) {
  first_convolution<T, kRows>(cnn, n_features, x, first, words, rows);
  __syncthreads();
  second_convolution(layers, cnn, n_features, first, pooled, words, rows);
  __syncthreads();
  dense_forward(layers, cnn.hidden, next, layers[cnn.hidden].bias, true, pooled, hidden,
                words.behind(cnn.hidden_at), rows);
  __syncthreads();
}

// out(row, class) is where a logit goes.
template <class T, int kRows, class Out>
__device__ __forceinline__ void store_logits(Multiplier<T, kRows>& layers, const DeviceCnn<T>& cnn,
                                             const DeviceRows<kRows>& rows, const T* hidden,
                                             const Out& out) {
  const TilePlace<kRows> place;
  const DeviceDense<T>& last = layers[cnn.last];
  layers.for_each_unit(
      cnn.last, kNoLayer, hidden,
      [&](int unit) { return unit < last.outputs ? last.bias[unit] : T{0}; },
      [&](int unit, T(&sums)[4], T bias) {
        if (unit >= last.outputs) return;
#pragma unroll
        for (int r = 0; r < 4; ++r)
          if (place.row + r < rows.count) out(place.row + r, unit) = sums[r] + bias;
      });
}

// Four rows of a pooled unit's gradient, where the pair's first (or second) position has given it.
template <int kRows, class T, class Word>
__device__ __forceinline__ Four<T> load_position(const SignWords<Word>& pairs, const T* pooled,
                                                 int unit, bool second, int row) {
  Four<T> grad = load_four(pooled + unit * kRows + row);
  const uint32_t word = pairs[unit];
  keep_rows(second ? word : ~word, row, grad.values);
  return grad;
}

// out = the gradient to the first convolution's units, by that to the pooled ones. A convolution
// backwards is one with positions the other way round.
template <class T, int kRows, class Word>
__device__ __forceinline__ void second_backward(Multiplier<T, kRows>& layers,
                                                const DeviceCnn<T>& cnn, int next, int n_features,
                                                const SignWords<Word>& words, const T* grad,
                                                T* out) {
  const TilePlace<kRows> place;
  const int n_pooled = cnn.n_pooled, channels = cnn.first_channels;
  const SignWords<Word> pairs = words.behind(cnn.pairs_at);
  const auto unit_of = [&](int first, int u, int position) {
    const bool exists = position < n_features && first + u < channels;
    return exists ? position * channels + first + u : -1;
  };
  layers.for_each_pair(
      cnn.second, next,
      [&](int first, int pair) {
        uint32_t signs = 0;  // of eight units, of the lane's rows
#pragma unroll
        for (int p = 0; p < 2; ++p)
#pragma unroll
          for (int u = 0; u < 4; ++u) {
            const int unit = unit_of(first, u, 2 * pair + p);
            const uint32_t word = unit >= 0 ? words[unit] : 0;
            signs |= (word >> place.row & 0xf) << (p * 16 + u * 4);
          }
        return signs;
      },
      [&](int c, int pair, Four<T>(&given)[4]) {
        // To the positions from one behind the pair to one before it.
        const int unit = c * n_pooled + pair;
#pragma unroll
        for (int i = 0; i < 4; ++i) given[i] = Four<T>{};
        if (pair + 1 < n_pooled)
          given[0] = load_position<kRows>(pairs, grad, unit + 1, false, place.row);
        if (pair < n_pooled) {
          given[1] = load_position<kRows>(pairs, grad, unit, true, place.row);
          given[2] = load_position<kRows>(pairs, grad, unit, false, place.row);
        }
        if (pair > 0) given[3] = load_position<kRows>(pairs, grad, unit - 1, true, place.row);
      },
      [&](int first, int pair, bool pair_exists, T(&sums)[2][4][4], uint32_t signs) {
#pragma unroll
        for (int p = 0; p < 2; ++p)
#pragma unroll
          for (int u = 0; u < 4; ++u) {
            const int unit = unit_of(first, u, 2 * pair + p);
            if (unit < 0 || !pair_exists) continue;
            keep_rows(signs >> (p * 16 + u * 4), 0, sums[1 - p][u]);
            store_four(out + unit * kRows + place.row, sums[1 - p][u]);
          }
      });
}

template <class T, int kRows>
__device__ __forceinline__ void first_backward(const DeviceCnn<T>& cnn, int n_features,
                                               const T* grad, T* x) {
  const int row = lane_of_thread() % kRows, channels = cnn.first_channels;
  for_each_row_unit<kRows>(n_features, [&](int position) {
    T sum = 0;
#pragma unroll
    for (int tap = 0; tap < 3; ++tap) {
      const int from = position + 1 - tap;
      if (from < 0 || from >= n_features) continue;
#pragma unroll 8
      for (int c = 0; c < channels; ++c)
        sum += cnn.first_weight[c * 3 + tap] * grad[(from * channels + c) * kRows + row];
    }
    x[position * kRows + row] = sum;
  });
}

// work.x = the gradient to the features, from that to the logits, which stands in work.one.
// Calls weights.of_cnn(layer, gradient to its outputs), that of the second convolution being to the
// pooled units. `next`: what is computed after it, kNoLayer if that is not known.
template <class T, int kRows, class Word, class Weights>
__device__ __forceinline__ void cnn_backward(Multiplier<T, kRows>& layers, const DeviceCnn<T>& cnn,
                                             int next, int n_features, const SignWords<Word>& words,
                                             const Work<T, kRows>& work, const Weights& weights) {
  weights.of_cnn(3, work.one);
  dense_backward(layers, cnn.last, cnn.hidden, words.behind(cnn.hidden_at), work.one, work.two);
  __syncthreads();
  weights.of_cnn(2, work.two);
  dense_backward(layers, cnn.hidden, cnn.second, words.behind(cnn.pooled_at), work.two, work.one);
  __syncthreads();
  weights.of_cnn(1, work.one);
  second_backward(layers, cnn, next, n_features, words, work.one, work.two);
  __syncthreads();
  weights.of_cnn(0, work.two);
  first_backward<T, kRows>(cnn, n_features, work.two, work.x);
  __syncthreads();
}

}  // namespace nnmf_cuda
