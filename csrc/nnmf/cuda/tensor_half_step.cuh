// The sums of a half-step of Kullback-Leibler on tensor cores, for up to 16 components in float32:
// what half_step.cuh does with multiply-adds. It is attention without a softmax: S = W H, P = X / S
// entry by entry, and numerators P H^T, all of it in registers.
//
// A block owns 256 rows of X (for W; for H: columns), a warp 32 of them, which are two tiles of 16;
// it walks along their depth in units of 16, two tiles of 8. Sums may run in any order, so that
// the depth within a unit, and the components, are numbered as suits the layouts of the operands:
//   - the accumulators of S become the left operand of the second product where they are;
//   - a lane reads neighbouring entries of X at once, and two components of the other factor, which
//     is there in the parts that tensor cores multiply.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../../common/cuda/divisor.h"
#include "half_step.cuh"
#include "tensor_parts.cuh"

namespace nnmf_cuda {

constexpr int kTensorWarps = 8;     // of a block
constexpr int kTensorRows = 32;     // own rows (or columns) of a warp
constexpr int kTensorStages = 3;    // tiles of X in shared memory
constexpr int kTensorResident = 2;  // blocks that a multiprocessor has registers for
constexpr int kTensorThreads = kTensorWarps * kWarp;

// A tile of X and of the other factor in shared memory.
template <Factor factor, class Data>
struct TensorTile {
  static constexpr bool kIsW = factor == Factor::kW;
  static constexpr int kSize = static_cast<int>(sizeof(Data));
  static constexpr int kItems = kTensorWarps * kTensorRows;  // of the block
  static constexpr int kDepth = kSize > 1 ? 32 : 64;
  // For W rows are cut into panels of 64 bytes, whose pitch keeps eight rows (pixels), or two (they
  // are read 64 bytes at once), in different banks. For H a lane reads below each other.
  static constexpr int kPanel = kIsW ? 64 / kSize : kDepth;
  static constexpr int kPitch = kIsW ? (kSize > 1 ? 64 : 80) : kItems * kSize + kPiece;
  static constexpr int kPanelBytes = (kIsW ? kItems : kDepth) * kPitch;
  static constexpr int kXBytes = kDepth / kPanel * kPanelBytes;
  static constexpr int kOtherBytes = kDepth / kUnit * kUnitParts * static_cast<int>(sizeof(float));
  static constexpr int kBytes = kXBytes + kOtherBytes;

  // Whether a lane has four neighbouring depths of a unit, two in each tile of 8: it then reads
  // the pixels of both at once. Otherwise tiles have eight neighbouring depths.
  static constexpr bool kInFours = kIsW && kSize == 1;

  // The first of two neighbouring depths of a unit that lane t has in tile `deep` of 8.
  static __device__ __forceinline__ int depth(int deep, int t) {
    return kInFours ? 4 * t + 2 * deep : 2 * t + 8 * deep;
  }

  // Own row g + 8 `half` of the warp's tile `tile`.
  static __device__ __forceinline__ int row(int tile, int half, int g) {
    return kIsW ? 16 * tile + 8 * half + g : 4 * g + 2 * tile + half;
  }

  // How the half-step of the other factor reads this one.
  static constexpr bool kOwnInFours = !kIsW && kSize == 1;

  // Where that row's parts of components 2 t and 2 t + 1 begin (part_of), from those of the warp's
  // first row; those of 2 t + 8 and 2 t + 9 are 8 pieces further on.
  static __device__ __forceinline__ int own_part(int tile, int half, int g, int t) {
    if constexpr (kIsW) return tile * kUnitParts + part_of_first(half, 0, g, t);
    const int of_unit = g % 4;
    return g / 4 * kUnitParts +
           (kOwnInFours ? tile * (kUnitParts / 2) + part_place(0, of_unit, 2 * t, half)
                        : part_place(of_unit / 2, of_unit % 2 * 2 + tile, 2 * t, half));
  }
};

// A half-step, and what the host has found out for its blocks.
template <class Data>
struct TensorStep : HalfStep<float, Data> {
  const float* own_parts;  // `own` as tensor cores read it
  Divisor tiles, splits;   // of the cut
  // Tiles of the depth that a split has, the first `more` splits one besides.
  int each, more;
};

// Stores a pack, of which the compiler makes four stores.
__device__ __forceinline__ void store_at_once(float* to, const Pack<float, 4>& pack) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(to), "f"(pack.values[0]), "f"(pack.values[1]), "f"(pack.values[2]),
                 "f"(pack.values[3])
               : "memory");
#else
  *reinterpret_cast<Pack<float, 4>*>(to) = pack;
#endif
}

// What a warp reads of X for tile `deep` of a unit's depth, each lane its entries: two neighbouring
// depths of four rows for W (of pixels, four), four neighbouring columns at two depths for H.
template <Factor factor, class Data>
struct TensorEntries {
  using Tile = TensorTile<factor, Data>;
  static constexpr bool kIsW = Tile::kIsW;
  static constexpr bool kPixels = Tile::kSize == 1;
  using Entries = std::conditional_t<kPixels, uint32_t, Pack<Data, kIsW ? 2 : 4>>;
  Entries packs[kIsW ? 4 : 2];
  int begin;  // of what is read, in a pack

  __device__ __forceinline__ TensorEntries(const unsigned char* tile, int warp, int unit, int deep,
                                           int g, int t) {
    begin = Tile::kInFours ? 2 * deep : 0;
    const int depth = unit * kUnit + Tile::depth(deep, t) - begin;
    if constexpr (kIsW)
      tile += depth / Tile::kPanel * Tile::kPanelBytes + depth % Tile::kPanel * Tile::kSize +
              (warp * kTensorRows + g) * Tile::kPitch;
    else
      tile += depth * Tile::kPitch + (warp * kTensorRows + 4 * g) * Tile::kSize;
#pragma unroll
    for (int at = 0; at < (kIsW ? 4 : 2); ++at)
      packs[at] = *reinterpret_cast<const Entries*>(tile + at * (kIsW ? 8 : 1) * Tile::kPitch);
  }

  // The entry at accumulator `at` of own tile `i`.
  __device__ __forceinline__ float operator()(int i, int at) const {
    const int own = 2 * i + at / 2, depth = at % 2;
    const auto& pack = packs[kIsW ? own : depth];
    const int of_pack = kIsW ? depth : own;
    if constexpr (kPixels)
      return static_cast<float>(pack >> 8 * (begin + of_pack) & 0xff);
    else
      return pack.values[of_pack];
  }
};

// x, of which the compiler knows no more: it then computes what follows from x anew where that is
// needed, and keeps no register for it in between.
__device__ __forceinline__ int64_t forgotten(int64_t x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(x));
#endif
  return x;
}

// Starts to copy a tile that begins at `deep`. X is where this warp begins to read: at its first
// own row (for H: at the block's first own column), and `own_left` is how many of them there are.
template <Factor factor, class Data>
__device__ __forceinline__ void start_tensor_copy(const TensorStep<Data>& step, const Data* X,
                                                  const float* other, int own_left, int64_t deep,
                                                  unsigned char* tile) {
  using Tile = TensorTile<factor, Data>;
  const int warp = static_cast<int>(threadIdx.y);
  const int64_t left = step.cut.depth - deep;
  const int deep_left = left < Tile::kDepth ? static_cast<int>(left) : Tile::kDepth;
  const int64_t stride = forgotten(step.x_row_stride);
  // A warp without rows, or a panel without depth, has nowhere to read from.
  if constexpr (Tile::kIsW) {
    unsigned char* const to = tile + warp * kTensorRows * Tile::kPitch;
    if (own_left > 0)
#pragma unroll
      for (int depth = 0; depth < Tile::kDepth; depth += Tile::kPanel)
        copy_entries<kPiece>(step.at_once, to + depth / Tile::kPanel * Tile::kPanelBytes,
                             Tile::kPitch, X + deep + (depth < deep_left ? depth : 0), stride,
                             kTensorRows, Tile::kPanel, own_left, deep_left - depth);
  } else {
    constexpr int kRows = Tile::kDepth / kTensorWarps;
    const int row = warp * kRows;
    copy_entries<kPiece>(step.at_once, tile + row * Tile::kPitch, Tile::kPitch,
                         X + (deep + (row < deep_left ? row : 0)) * stride, stride, kRows,
                         Tile::kItems, deep_left - row, own_left);
  }
  // Whole tiles: zeros follow the last row.
  const int thread = warp * kWarp + static_cast<int>(threadIdx.x);
  const float* const from = other + (deep * kTensorComponents * 2 + thread * kPartPiece);
  unsigned char* const to = tile + Tile::kXBytes + thread * kPiece;
#pragma unroll
  for (int at = 0; at < Tile::kOtherBytes / kPiece; at += kTensorThreads)
    copy_async<kPiece>(to + at * kPiece, from + at * kPartPiece);
}

// What a lane adds up: its rows' numerators, two tiles of 8 components each.
struct TensorSums {
  float values[2][2][4] = {};

  // Component 4 t + e of row g + 8 `half` of own tile `i`.
  __device__ __forceinline__ float operator()(int i, int half, int e) const {
    return values[i][e % 2][2 * half + e / 2];
  }
};

template <Factor factor, class Data>
__device__ __forceinline__ void add_unit(TensorSums& sums, const Parts<MmaA> (&own)[2][2],
                                         const unsigned char* tile, int warp, int unit, int g,
                                         int t, const TermRule<float>& rule) {
  using Tile = TensorTile<factor, Data>;
  const float* const other =
      reinterpret_cast<const float*>(tile + Tile::kXBytes) + unit * kUnitParts;
  MmaC added[2][2] = {};
#pragma unroll
  for (int deep = 0; deep < 2; ++deep) {
    const TensorEntries<factor, Data> entries(tile, warp, unit, deep, g, t);
    Parts<MmaB> across[2], down[2];  // the other factor in the first product and in the second
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto pack = *reinterpret_cast<const Pack<float, kPartPiece>*>(
          other + part_of_first(deep, half, g, t));
#pragma unroll
      for (int e = 0; e < 2; ++e) across[half].set(e, pack.values[e], pack.values[2 + e]);
    }
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const auto pack = *reinterpret_cast<const Pack<float, kPartPiece>*>(
          other + part_of_second(deep, odd, g, t));
#pragma unroll
      for (int e = 0; e < 2; ++e) down[e].set(odd, pack.values[e], pack.values[2 + e]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      MmaC wh = {};
      add_small(wh, own[i][0], across[0]);
      add_small(wh, own[i][1], across[1]);
      add_large(wh, own[i][0], across[0]);
      add_large(wh, own[i][1], across[1]);
      Parts<MmaA> quotients;
#pragma unroll
      for (int at = 0; at < 4; ++at)  // accumulators 1 and 2 are operands 2 and 1
        quotients.set(at % 2 * 2 + at / 2,
                      numerator_term<Loss::kKullbackLeibler>(entries(i, at), wh[at], rule));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        add_small(added[i][half], quotients, down[half]);
        add_large(added[i][half], quotients, down[half]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int at = 0; at < 4; ++at) sums.values[i][half][at] += added[i][half][at];
}

// Sums of the other factor's components, by all threads of a block: each has a sum of its own in
// shared memory, as registers are scarce.
template <class Tile>
struct TensorComponentSums {
  static constexpr int kParts = kTensorThreads / kTensorComponents;
  double* sums;  // [kParts, kTensorComponents]

  static __device__ __forceinline__ int thread() {
    return static_cast<int>(threadIdx.y) * kWarp + static_cast<int>(threadIdx.x);
  }

  __device__ __forceinline__ void clear() const { sums[thread()] = 0; }

  __device__ __forceinline__ void add(const unsigned char* tile) const {
    static_assert(kParts == kUnit);
    const int component = thread() % kTensorComponents, depth = thread() / kTensorComponents;
    const float* other = reinterpret_cast<const float*>(tile + Tile::kXBytes) +
                         part_place(depth / 8, depth / 2 % 4, component & ~1, depth % 2) +
                         component % 2;
    double sum = sums[thread()];
#pragma unroll 1  // few blocks come here: room for the code of the others
    for (int unit = 0; unit < Tile::kDepth / kUnit; ++unit, other += kUnitParts)
      sum += static_cast<double>(other[0] + other[2]);
    sums[thread()] = sum;
  }

  __device__ __forceinline__ void store(double* to) const {
    __syncthreads();
    if (thread() >= kTensorComponents) return;
    double sum = 0;
#pragma unroll 1
    for (int part = 0; part < kParts; ++part) sum += sums[part * kTensorComponents + thread()];
    to[thread()] = sum;
  }
};

// Which problem, split and tile of the length is a block's.
struct TensorPlace {
  unsigned problem, split, tile;

  template <class Data>
  __device__ __forceinline__ TensorPlace(const TensorStep<Data>& step, unsigned block, bool is_W) {
    const Divisor &inner = is_W ? step.splits : step.tiles,
                  &outer = is_W ? step.tiles : step.splits;
    const unsigned line = inner.quotient(block);
    problem = outer.quotient(line);
    (is_W ? split : tile) = block - line * inner.value();
    (is_W ? tile : split) = line - problem * outer.value();
  }
};

// A block for each problem, split and tile of the length; as in walk_of, neighbouring blocks read
// what lies side by side in rows of X. W goes up the samples, block after block, and H down, so
// that what W has read last is read first, out of the cache.
template <Factor factor, class Data>
__global__ void __launch_bounds__(kTensorThreads, kTensorResident)
    tensor_half_step_kernel(TensorStep<Data> step) {
  using Tile = TensorTile<factor, Data>;
  NNMF_CUDA_DYNAMIC_SHARED(unsigned char, memory);
  NNMF_CUDA_SHARED(double, component_sums, [kTensorThreads]);
  const Cut& cut = step.cut;
  const TensorPlace place(step, blockIdx.x, Tile::kIsW);
  const unsigned b = place.problem, at_tile = place.tile;
  wait_for_kernel_before();
  if (step.active != nullptr && !step.active[b]) return;

  const int warp = static_cast<int>(threadIdx.y), lane = static_cast<int>(threadIdx.x);
  const int g = lane / 4, t = lane % 4;
  const int64_t left = cut.length - static_cast<int64_t>(at_tile) * Tile::kItems;
  const int rows_left =  // of this warp
      (left < Tile::kItems ? static_cast<int>(left) : Tile::kItems) - warp * kTensorRows;
  const int64_t row = static_cast<int64_t>(at_tile) * Tile::kItems + warp * kTensorRows;
  const Data* const X = step.X + b * step.x_stride +
                        (Tile::kIsW ? row * step.x_row_stride : row - warp * kTensorRows);
  const float* const other = step.other + b * length_in_parts(cut.depth) * kTensorComponents * 2;
  // The splits take turns at the tiles of the depth.
  const int splits = static_cast<int>(cut.splits), split = static_cast<int>(place.split);
  const int count = step.each + (split < step.more ? 1 : 0);
  int next = Tile::kIsW ? split : split + (count - 1) * splits;  // tile to be copied,
  int stage = 0;                                                 // and where
  Parts<MmaA> rows[2][2];
  // Whole units, with zeros behind the last row; a warp without rows reads others in their place.
  const float* const own =
      step.own_parts +
      (b * length_in_parts(cut.length) + (rows_left > 0 ? row : 0)) * kTensorComponents * 2;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* const parts = own + Tile::own_part(i, half, g, t);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const auto pack =
            *reinterpret_cast<const Pack<float, kPartPiece>*>(parts + 8 * c * kPartPiece);
#pragma unroll
        for (int e = 0; e < 2; ++e)
          rows[i][c].set(2 * e + half, pack.values[e], pack.values[2 + e]);
      }
    }

  TensorSums sums;
  const TensorComponentSums<Tile> components{component_sums};
  components.clear();
#pragma unroll 1
  for (int at = 1 - kTensorStages; at < count; ++at) {
    if (at >= 0) {
      wait_for_copies<kTensorStages - 2>();
      __syncthreads();  // all copies have landed, and what is overwritten next was read by all
    }
    if (at + kTensorStages - 1 < count)
      start_tensor_copy<factor>(step, X, other,
                                Tile::kIsW ? rows_left : rows_left + warp * kTensorRows,
                                static_cast<int64_t>(next) * Tile::kDepth, memory + stage);
    commit_copies();
    next += Tile::kIsW ? splits : -splits;
    stage = stage == (kTensorStages - 1) * Tile::kBytes ? 0 : stage + Tile::kBytes;
    if (at < 0) continue;
    const unsigned char* const tile = memory + stage;  // the oldest of them
    if (at_tile == 0) components.add(tile);
    if (rows_left <= 0) continue;  // the warp owns nothing
#pragma unroll 1
    for (int unit = 0; unit < Tile::kDepth / kUnit; ++unit)
      add_unit<factor, Data>(sums, rows, tile, warp, unit, g, t, step.terms);
  }
  const int64_t part = place.problem * cut.splits + place.split;
  if (at_tile == 0) components.store(step.sums + part * kTensorComponents);

  float* const to = step.numerators + (part * cut.length + row) * kTensorComponents;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int of_warp = Tile::row(i, half, g);
      Pack<float, 4> pack;
#pragma unroll
      for (int e = 0; e < 4; ++e) pack.values[e] = sums(i, half, e);
      if (of_warp < rows_left) store_at_once(to + of_warp * kTensorComponents + 4 * t, pack);
    }
}

template <Factor factor, class Data>
void launch_tensor_half_step(TensorStep<Data> step, int64_t batch, cudaStream_t stream) {
  const Cut& cut = step.cut;
  const int64_t blocks = batch * cut.tiles * cut.splits;
  if (blocks == 0) return;
  const int64_t in_all = blocks_of(cut.depth, TensorTile<factor, Data>::kDepth);
  step.tiles = Divisor(cut.tiles);
  step.splits = Divisor(cut.splits);
  step.each = static_cast<int>(in_all / cut.splits);
  step.more = static_cast<int>(in_all % cut.splits);
  constexpr int kBytes = kTensorStages * TensorTile<factor, Data>::kBytes;
  NNMF_CUDA_LAUNCH_NEXT((tensor_half_step_kernel<factor, Data>), grid_of(blocks),
                        dim3(kWarp, kTensorWarps), kBytes, stream, step);
}

}  // namespace nnmf_cuda
