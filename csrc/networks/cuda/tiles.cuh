// How a block multiplies a layer's weights with the activations of its rows, 32 or 16 of them.
//
// Activations lie as [unit][row], weights as [tile][input][16]. A warp computes a tile, 16 units of
// all rows, and a lane four rows of four of them, even and odd inputs apart: of 32 rows every lane
// has both, of 16 rows one half of the warp has the even inputs, the other half the odd ones. The
// sums are the same to the last bit. Layers of few tiles are cut along their inputs besides, so
// that all warps have work; their sums are added in order.
//
// Weights come from far away, and every one is used once: a warp copies those of its tiles to one
// of two slots in shared memory while it computes with the other, across the ends of layers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../common/cuda/async_copy.cuh"
#include "../../common/cuda/launch.h"
#include "../../common/inline.h"
#include "../network.h"

namespace nnmf_cuda {

constexpr int kTileUnits = 16;  // that a warp computes at a time
constexpr int kDefenceThreads = 256, kDefenceWarps = kDefenceThreads / kWarp;
constexpr int kSlots = 2;  // of a warp's weights
constexpr int kSlotBytes = 2048;
constexpr int kUnrolled = 16;     // inputs
constexpr int kFewestInputs = 8;  // of a part
constexpr int kNoLayer = -1;

// Inputs of a tile that a slot has room for.
template <class T>
constexpr int kSlotInputs = kSlotBytes / (kTileUnits * static_cast<int>(sizeof(T)));

// Blocks that a multiprocessor has registers for: more would cost spills, as would two whose
// activations are not in shared memory. Of blocks of 16 rows there is one for a multiprocessor.
template <class T, int kRows, bool kShared>
constexpr int kDefenceBlocks = sizeof(T) == 4 && kRows == kBlockRows && kShared ? 2 : 1;

// Shared memory, in T, that a block of kRows rows needs beside its activations: the warps' slots,
// and sums over parts of inputs.
template <class T>
constexpr int kSlotsSize = kDefenceWarps * kSlots * kSlotInputs<T> * kTileUnits;

template <class T, int kRows>
constexpr int kMultiplierSize = kSlotsSize<T> + kDefenceWarps * kTileUnits * kRows;

// Neighbouring rows of a unit, or units of an input: loaded and stored at once.
template <class T>
struct alignas(16) Four {
  T values[4];
};

template <class T>
__device__ __forceinline__ Four<T> load_four(const T* from) {
  return *reinterpret_cast<const Four<T>*>(from);
}

template <class T>
__device__ __forceinline__ void store_four(T* to, const T (&values)[4]) {
  *reinterpret_cast<Four<T>*>(to) = {{values[0], values[1], values[2], values[3]}};
}

// out[o] = bias[o] + sum_i weight[o, i] in[i], `weight` being packed. An item is what a warp
// computes at a time: a tile's sums over some chunks of its inputs, or, of a convolution, over all
// of them at a pair of positions, or at two where the warp has two teams.
template <class T>
struct DeviceDense {
  const T *weight, *bias;
  int inputs, outputs;
  int chunk;        // inputs that are copied at once: as many, or fewer at the end
  int item_inputs;  // of an item: as many, or fewer at the end
  int parts;        // of a tile's inputs
  int pairs;        // of positions of a convolution, else 0

  NNMF_CUDA_INLINE int tiles() const { return (outputs + kTileUnits - 1) / kTileUnits; }
  NNMF_CUDA_INLINE int items_of_tile(int teams) const {
    return pairs > 0 ? (pairs + teams - 1) / teams : parts;
  }
  NNMF_CUDA_INLINE bool split() const { return parts > 1; }
  NNMF_CUDA_INLINE int first_input(int item) const { return split() ? item * item_inputs : 0; }
  NNMF_CUDA_INLINE int end_input(int item) const {
    const int end = first_input(item) + item_inputs;
    return end < inputs ? end : inputs;
  }
  // From one of them on, in one chunk.
  NNMF_CUDA_INLINE int inputs_from(int at, int end) const {
    return end - at < chunk ? end - at : chunk;
  }

  // As many parts as there are warps for, of an even number of inputs each, none of them empty.
  void cut_inputs() {
    pairs = 0;
    const int most = std::max(1, std::min(kDefenceWarps / tiles(), inputs / kFewestInputs));
    item_inputs = (inputs + 2 * most - 1) / (2 * most) * 2;
    parts = (inputs + item_inputs - 1) / item_inputs;
    chunk = kSlotInputs<T>;
  }

  // Inputs are [channels][3], and a chunk has whole channels.
  void cut_pairs(int64_t n_pairs) {
    chunk = kSlotInputs<T> / 3 * 3;
    item_inputs = inputs;
    parts = 1;
    pairs = static_cast<int>(n_pairs);
  }
};

__device__ __forceinline__ int lane_of_thread() {
  return static_cast<int>(threadIdx.x) % kWarp;
}

__device__ __forceinline__ int warp_of_thread() {
  return static_cast<int>(threadIdx.x) / kWarp;
}

// A lane's place in a tile: the first of its four rows and of its four units; and of the units
// whose sums it has in the end.
template <int kRows>
struct TilePlace {
  static constexpr int kQuads = kRows / 4;         // of rows
  static constexpr int kTeams = kWarp / kRows;     // of lanes, which share the inputs
  static constexpr int kSets = 2 / kTeams;         // of sums, over even or odd inputs
  static constexpr int kUnits = 4 / kTeams;        // of a lane in the end
  static constexpr int kReduced = kWarp / kQuads;  // units of a warp, where each lane has one
  int row, unit, team, own;

  __device__ __forceinline__ TilePlace()
      : row(lane_of_thread() % kQuads * 4),
        unit(lane_of_thread() / kQuads % 4 * 4),
        team(lane_of_thread() / kRows),
        own(unit + team * kUnits) {}
};

// A lane's sums over even and odd inputs, or over those of its team.
template <class T, int kRows>
using TileSums = T[TilePlace<kRows>::kSets][4][4];

template <class T>
__device__ __forceinline__ void multiply_add(const Four<T>& weight, const Four<T>& in,
                                             T (&sums)[4][4]) {
#pragma unroll
  for (int u = 0; u < 4; ++u)
#pragma unroll
    for (int r = 0; r < 4; ++r) sums[u][r] += weight.values[u] * in.values[r];
}

// Sums over all inputs; of two teams each gets those of half of the units. All lanes arrive.
template <class T, int kRows>
__device__ __forceinline__ void add_teams(const TilePlace<kRows>& place,
                                          const TileSums<T, kRows>& sums,
                                          T (&out)[TilePlace<kRows>::kUnits][4]) {
  using Place = TilePlace<kRows>;
#pragma unroll
  for (int u = 0; u < Place::kUnits; ++u)
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      if constexpr (Place::kTeams == 1) {
        out[u][r] = sums[0][u][r] + sums[1][u][r];
      } else {
        const T low = sums[0][u][r], high = sums[0][u + Place::kUnits][r];
        const T given = __shfl_xor_sync(kAllLanes, place.team == 0 ? high : low, kRows);
        out[u][r] = (place.team == 0 ? low : high) + given;
      }
    }
}

// Weights of a warp's items, in the order in which it computes them: a chunk of them while the one
// before it is used. All lanes call alike.
template <class T, int kTeams>
class WeightQueue {
 public:
  __device__ __forceinline__ WeightQueue(const DeviceDense<T>* layers, int warp, T* slots)
      : layers_(layers), warp_(warp), slots_(slots + warp * (kSlots * kSlotSize)) {}

  // Before a layer's items are taken; `next` is the layer that follows, kNoLayer where that is not
  // known.
  __device__ __forceinline__ void begin(int layer, int next) {
    if (promised_ != layer) start(layer);
    promised_ = kNoLayer;
    next_ = next;
    if (!copied_) copy_next();
  }

  // Starts to copy weights of a layer that is computed next.
  __device__ __forceinline__ void announce(int layer) {
    start(layer);
    promised_ = layer;
    copy_next();
  }

  // The next chunk's weights, [input][16], until the one after it is taken.
  __device__ __forceinline__ const T* take() {
    wait_for_copies<0>();
    __syncwarp();  // what other lanes have copied, and what they still read of the slot before
    const T* const taken = slots_ + slot_;
    slot_ ^= kSlotSize;
    copied_ = false;
    copy_next();
    return taken;
  }

 private:
  static constexpr int kSlotSize = kSlotInputs<T> * kTileUnits;
  static constexpr int kAtOnce = 16 / static_cast<int>(sizeof(T));
  static_assert(kSlots == 2);

  __device__ __forceinline__ void copy_next() {
    if (layer_ == kNoLayer && next_ != kNoLayer) {
      promised_ = next_;
      next_ = kNoLayer;
      start(promised_);
    }
    if (layer_ != kNoLayer) copy_chunk();
  }

  __device__ __forceinline__ void start(int layer) {
    layer_ = layer;
    item_ = warp_;
    start_item();
  }

  __device__ __forceinline__ void start_item() {
    const DeviceDense<T>& layer = layers_[layer_];
    const int of_tile = layer.items_of_tile(kTeams), tile = item_ / of_tile;
    if (tile >= layer.tiles()) {
      layer_ = kNoLayer;
      return;
    }
    const int part = item_ - tile * of_tile, first = layer.first_input(part);
    const int64_t input = int64_t{tile} * layer.inputs + first;
    from_ = layer.weight + input * kTileUnits + lane_of_thread() * kAtOnce;
    step_ = layer.chunk * kTileUnits;
    left_ = (layer.end_input(part) - first) * kTileUnits;
  }

  __device__ __forceinline__ void copy_chunk() {
    T* const to = slots_ + slot_ + lane_of_thread() * kAtOnce;
    const int size = left_ < step_ ? left_ : step_;
#pragma unroll
    for (int at = 0; at < kSlotSize; at += kWarp * kAtOnce)
      if (at + lane_of_thread() * kAtOnce < size) copy_async<16>(to + at, from_ + at);
    commit_copies();
    copied_ = true;
    from_ += step_;
    left_ -= step_;
    if (left_ > 0) return;
    item_ += kDefenceWarps;
    start_item();
  }

  const DeviceDense<T>* layers_;
  int warp_;
  T* slots_;
  const T* from_ = nullptr;          // what the lane copies next
  int step_ = 0, left_ = 0;          // values from chunk to chunk, and to the end of the item
  int item_ = 0, layer_ = kNoLayer;  // of the next copy
  int next_ = kNoLayer, promised_ = kNoLayer;
  int slot_ = 0;         // that is copied to, or taken, next
  bool copied_ = false;  // whether a chunk has not been taken yet
};

// What a block of kRows rows computes layers with.
template <class T, int kRows>
class Multiplier {
 public:
  using Place = TilePlace<kRows>;
  static constexpr int kUnits = Place::kUnits;

  // `memory`: kMultiplierSize<T, kRows>, in shared memory.
  __device__ __forceinline__ Multiplier(const DeviceDense<T>* layers, T* memory)
      : queue(layers, same_warp(), memory),
        layers_(layers),
        warp_(same_warp()),
        sums_(memory + kSlotsSize<T>) {}

  WeightQueue<T, Place::kTeams> queue;

  __device__ __forceinline__ const DeviceDense<T>& operator[](int layer) const {
    return layers_[layer];
  }

  // Calls f(unit, sums of four rows, begin(unit)) with all lanes of a warp for each of its units,
  // those of the last tile that do not exist included; `begin` loads early what f needs late.
  template <class Begin, class F>
  __device__ __forceinline__ void for_each_unit(int index, int next, const T* in,
                                                const Begin& begin, const F& f) {
    const DeviceDense<T>& layer = layers_[index];
    const Place place;
    const bool split = layer.split();
    queue.begin(index, next);
    for (int item = warp_; item < layer.tiles() * layer.parts; item += kDefenceWarps) {
      const int tile = item / layer.parts, part = item - tile * layer.parts;
      const int first = tile * kTileUnits + place.own;
      decltype(begin(0)) known[kUnits] = {};
      if (!split) {
#pragma unroll
        for (int u = 0; u < kUnits; ++u) known[u] = begin(first + u);
      }
      TileSums<T, kRows> sums = {};
#pragma unroll 1
      for (int at = layer.first_input(part); at < layer.end_input(part); at += layer.chunk)
        add_chunk(layer.inputs_from(at, layer.end_input(part)), queue.take() + place.unit,
                  in + at * kRows + place.row, place, sums);
      T all[kUnits][4];
      add_teams<T, kRows>(place, sums, all);
#pragma unroll
      for (int u = 0; u < kUnits; ++u)
        if (split)
          store_four(sums_ + (item * kTileUnits + place.own + u) * kRows + place.row, all[u]);
        else
          f(first + u, all[u], known[u]);
    }
    if (split) add_parts(layer, begin, f);
  }

  // For a convolution of kernel 3 at pairs of positions, of which each team has one: load(channel,
  // pair, given) loads four rows of what the four positions from one before the pair to one behind
  // it are given, and f(first unit, pair, whether it exists, sums[2][4 units][4 rows], begin(first
  // unit, pair)) gets those of both positions, with all lanes of a warp.
  template <class Begin, class Load, class F>
  __device__ __forceinline__ void for_each_pair(int index, int next, const Begin& begin,
                                                const Load& load, const F& f) {
    const DeviceDense<T>& layer = layers_[index];
    const Place place;
    const int of_tile = layer.items_of_tile(Place::kTeams);
    queue.begin(index, next);
    for (int item = warp_; item < layer.tiles() * of_tile; item += kDefenceWarps) {
      const int tile = item / of_tile, first = tile * kTileUnits + place.unit;
      const int wanted = (item - tile * of_tile) * Place::kTeams + place.team;
      const bool exists = wanted < layer.pairs;
      const int pair = exists ? wanted : layer.pairs - 1;
      const auto known = begin(first, pair);
      T sums[2][4][4] = {};
#pragma unroll 1
      for (int at = 0; at < layer.inputs; at += layer.chunk) {
        const T* const weight = queue.take() + place.unit;
        const int channels = layer.inputs_from(at, layer.inputs) / 3, before = at / 3;
#pragma unroll 2
        for (int c = 0; c < channels; ++c) {
          Four<T> given[4];
          load(before + c, pair, given);
#pragma unroll
          for (int tap = 0; tap < 3; ++tap) {
            const Four<T> w = load_four(weight + (c * 3 + tap) * kTileUnits);
            multiply_add(w, given[tap], sums[0]);
            multiply_add(w, given[tap + 1], sums[1]);
          }
        }
      }
      f(first, pair, exists, sums, known);
    }
  }

 private:
  // sums += what some inputs contribute.
  static __device__ __forceinline__ void add_chunk(int inputs, const T* weight, const T* in,
                                                   const Place& place, TileSums<T, kRows>& sums) {
    const auto add = [&](int i, T(&to)[4][4]) {
      multiply_add(load_four(weight + i * kTileUnits), load_four(in + i * kRows), to);
    };
    const auto input = [&](int both, int set) {
      return both + (Place::kTeams == 1 ? set : place.team);
    };
#pragma unroll 1
    for (; inputs >= kUnrolled; inputs -= kUnrolled) {
#pragma unroll
      for (int both = 0; both < kUnrolled; both += 2)
#pragma unroll
        for (int set = 0; set < Place::kSets; ++set) add(input(both, set), sums[set]);
      weight += kUnrolled * kTileUnits;
      in += kUnrolled * kRows;
    }
#pragma unroll 1
    for (int both = 0; both < inputs; both += 2)
#pragma unroll
      for (int set = 0; set < Place::kSets; ++set)
        if (input(both, set) < inputs) add(input(both, set), sums[set]);
  }

  // Adds up the parts of all units' sums, in order.
  template <class Begin, class F>
  __device__ __forceinline__ void add_parts(const DeviceDense<T>& layer, const Begin& begin,
                                            const F& f) {
    const Place place;
    constexpr int kStep = kDefenceWarps * Place::kReduced;
    int unit = warp_ * Place::kReduced + lane_of_thread() / Place::kQuads;
    auto known = begin(unit);
    __syncthreads();
    for (; unit < layer.tiles() * kTileUnits; unit += kStep) {
      const T* part = sums_ +
                      (unit / kTileUnits * layer.parts * kTileUnits + unit % kTileUnits) * kRows +
                      place.row;
      Four<T> sum = load_four(part);
      for (int p = 1; p < layer.parts; ++p) {
        const Four<T> more = load_four(part + p * (kTileUnits * kRows));
#pragma unroll
        for (int r = 0; r < 4; ++r) sum.values[r] += more.values[r];
      }
      f(unit, sum.values, known);
      known = begin(unit + kStep);
    }
  }

  // The warp, such that the compiler knows that its lanes have the same one.
  static __device__ __forceinline__ int same_warp() {
    return __shfl_sync(kAllLanes, warp_of_thread(), 0);
  }

  const DeviceDense<T>* layers_;
  int warp_;
  T* sums_;
};

}  // namespace nnmf_cuda
