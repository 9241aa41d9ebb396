// The sums of a half-step of Kullback-Leibler on tensor cores, for up to 16 components in float32:
// what half_step.cuh does with multiply-adds. It is attention without a softmax: S = W H, P = X / S
// entry by entry, and numerators P H^T, all of it in registers.
//
// A block owns 256 rows of X (for W; for H: columns), a warp 32 of them, which are two tiles of 16;
// it walks along their depth in units of 16, two tiles of 8. Sums may run in any order, so that
// the depth within a unit, and the components, are numbered as suits the layouts of the operands:
//   - the accumulators of S become the left operand of the second product where they are;
//   - a lane reads neighbouring entries of X at once;
//   - one chunk of four values of the other factor, two components at two neighbouring depths,
//     serves both products.
#pragma once

#include <cstdint>

#include "half_step.cuh"
#include "tensor_mma.cuh"

namespace nnmf_cuda {

constexpr int kTensorComponents = 16;  // padded ones
constexpr int kTensorWarps = 8;        // of a block
constexpr int kTensorRows = 32;        // own rows (or columns) of a warp
constexpr int kTensorStages = 3;       // tiles of X in shared memory
constexpr int kTensorResident = 2;     // blocks that a multiprocessor has registers for
constexpr int kTensorThreads = kTensorWarps * kWarp;
constexpr int kUnit = 16;  // depth of what is added up on tensor cores; the sums are float32's

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
  static constexpr int kBytes =
      kXBytes + kDepth * kTensorComponents * static_cast<int>(sizeof(float));

  // Which pair of neighbouring depths of a unit a lane t has in tile `deep` of 8.
  static __device__ __forceinline__ int pair(int deep, int t) { return t + 4 * deep; }

  // Where a chunk of the other factor lies, in values: two components `twin`, `twin` + 1 at a pair
  // of depths, as [depth][component]. Both products read it without bank conflicts.
  static __device__ __forceinline__ int chunk(int unit, int pair, int twin) {
    const int place = twin / 2 ^ ((pair & 1) << 2 | (pair & 2));
    return (unit * kUnit + 2 * pair) * kTensorComponents + place * 4;
  }

  static __device__ __forceinline__ int value(int depth, int component) {
    return chunk(depth / kUnit, depth % kUnit / 2, component) + depth % 2 * 2 + component % 2;
  }

  // Own row g + 8 `half` of the warp's tile `tile`.
  static __device__ __forceinline__ int row(int tile, int half, int g) {
    return kIsW ? 16 * tile + 8 * half + g : 4 * g + 2 * tile + half;
  }
};

// What a warp reads of X for tile `deep` of a unit's depth, each lane its entries: two neighbouring
// depths of four rows for W, four neighbouring columns at two depths for H.
template <Factor factor, class Data>
struct TensorEntries {
  using Tile = TensorTile<factor, Data>;
  static constexpr bool kIsW = Tile::kIsW;
  Pack<Data, kIsW ? 2 : 4> packs[kIsW ? 4 : 2];

  __device__ __forceinline__ TensorEntries(const unsigned char* tile, int warp, int unit, int deep,
                                           int g, int t) {
    const int depth = unit * kUnit + 2 * Tile::pair(deep, t);
    if constexpr (kIsW)
      tile += depth / Tile::kPanel * Tile::kPanelBytes + depth % Tile::kPanel * Tile::kSize +
              (warp * kTensorRows + g) * Tile::kPitch;
    else
      tile += depth * Tile::kPitch + (warp * kTensorRows + 4 * g) * Tile::kSize;
#pragma unroll
    for (int at = 0; at < (kIsW ? 4 : 2); ++at)
      packs[at] = *reinterpret_cast<const Pack<Data, kIsW ? 2 : 4>*>(tile + at * (kIsW ? 8 : 1) *
                                                                                Tile::kPitch);
  }

  // Accumulator `at` of own tile `i`.
  __device__ __forceinline__ float operator()(int i, int at) const {
    const int own = 2 * i + at / 2, depth = at % 2;
    return static_cast<float>(kIsW ? packs[own].values[depth] : packs[depth].values[own]);
  }
};

// x, of which the compiler knows no more: it then computes what follows from x anew where that is
// needed, and keeps no register for it in between.
__device__ __forceinline__ unsigned forgotten(unsigned x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

__device__ __forceinline__ int64_t forgotten(int64_t x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(x));
#endif
  return x;
}

// Starts to copy a tile that begins at `deep`. X is where this warp begins to read: at its first
// own row (for H: at the block's first own column), and `own_left` is how many of them there are.
template <Factor factor, class Data>
__device__ __forceinline__ void start_tensor_copy(const HalfStep<float, Data>& step, const Data* X,
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
#pragma unroll 1
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
  float* const values = reinterpret_cast<float*>(tile + Tile::kXBytes);
  constexpr int kTwins = kTensorComponents / 2;
  other += deep * kTensorComponents;
#pragma unroll
  for (int at = warp * kWarp + static_cast<int>(threadIdx.x); at < Tile::kDepth * kTwins;
       at += kTensorThreads) {
    const int depth = at / kTwins, component = at % kTwins * 2;
    const bool inside = depth < deep_left;
    copy_async<8>(values + Tile::value(depth, component),
                  inside ? other + depth * kTensorComponents + component : other, inside ? 8 : 0);
  }
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
  const float* const other = reinterpret_cast<const float*>(tile + Tile::kXBytes);
  MmaC added[2][2] = {};
#pragma unroll
  for (int deep = 0; deep < 2; ++deep) {
    const TensorEntries<factor, Data> entries(tile, warp, unit, deep, g, t);
    Parts<MmaB> across[2], down[2];  // the other factor in the first product and in the second
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto pack = *reinterpret_cast<const Pack<float, 2>*>(
          other + Tile::chunk(unit, Tile::pair(deep, g / 2), 2 * t + 8 * half) + g % 2 * 2);
#pragma unroll
      for (int e = 0; e < 2; ++e) across[half].set(e, pack.values[e]);
    }
    const auto pack = *reinterpret_cast<const Pack<float, 4>*>(
        other + Tile::chunk(unit, Tile::pair(deep, t), 2 * g));
#pragma unroll
    for (int e = 0; e < 4; ++e) down[e % 2].set(e / 2, pack.values[e]);
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
    const float* const other = reinterpret_cast<const float*>(tile + Tile::kXBytes);
    const int component = thread() % kTensorComponents, part = thread() / kTensorComponents;
#pragma unroll
    for (int depth = 0; depth < Tile::kDepth; depth += kParts)
      sums[thread()] += static_cast<double>(other[Tile::value(depth + part, component)]);
  }

  __device__ __forceinline__ void store(double* to) const {
    __syncthreads();
    if (thread() >= kTensorComponents) return;
    double sum = 0;
    for (int part = 0; part < kParts; ++part) sum += sums[part * kTensorComponents + thread()];
    to[thread()] = sum;
  }
};

// Which problem, split and tile of the length is a block's.
struct TensorPlace {
  unsigned problem, split, tile;

  __device__ __forceinline__ TensorPlace(const Cut& cut, unsigned block, bool is_W) {
    const auto tiles = static_cast<unsigned>(cut.tiles);
    const auto splits = static_cast<unsigned>(cut.splits);
    tile = is_W ? block / splits % tiles : block % tiles;
    split = is_W ? block % splits : block / tiles % splits;
    problem = block / tiles / splits;
  }
};

// A block for each problem, split and tile of the length; as in walk_of, neighbouring blocks read
// what lies side by side in rows of X. W goes up the samples, block after block, and H down, so
// that what W has read last is read first, out of the cache.
template <Factor factor, class Data>
__global__ void __launch_bounds__(kTensorThreads, kTensorResident)
    tensor_half_step_kernel(HalfStep<float, Data> step) {
  using Tile = TensorTile<factor, Data>;
  NNMF_CUDA_DYNAMIC_SHARED(unsigned char, memory);
  NNMF_CUDA_SHARED(double, component_sums, [kTensorThreads]);
  const Cut& cut = step.cut;
  const TensorPlace place(cut, blockIdx.x, Tile::kIsW);
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
  const float* const other = step.other + b * cut.depth * kTensorComponents;
  // The splits take turns at the tiles of the depth.
  const int64_t all = (cut.depth + Tile::kDepth - 1) / Tile::kDepth;
  const int count = static_cast<int>((all - place.split + cut.splits - 1) / cut.splits);
  const auto start = [&](int at) {
    if (at < count) {
      const int64_t turn = Tile::kIsW ? at : count - 1 - at;
      start_tensor_copy<factor>(step, X, other,
                                Tile::kIsW ? rows_left : rows_left + warp * kTensorRows,
                                (place.split + turn * cut.splits) * Tile::kDepth,
                                memory + at % kTensorStages * Tile::kBytes);
    }
    commit_copies();
  };
  Parts<MmaA> rows[2][2] = {};
  const float* const own = step.own + (b * cut.length + row) * kTensorComponents;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int of_warp = Tile::row(i, half, g);
      if (of_warp >= rows_left) continue;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const auto pack = *reinterpret_cast<const Pack<float, 2>*>(
            own + of_warp * kTensorComponents + 8 * c + 2 * t);
#pragma unroll
        for (int e = 0; e < 2; ++e) rows[i][c].set(2 * e + half, pack.values[e]);
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
    start(at + kTensorStages - 1);
    if (at < 0) continue;
    const unsigned char* const tile = memory + at % kTensorStages * Tile::kBytes;
    if (at_tile == 0) components.add(tile);
    if (rows_left <= 0) continue;  // the warp owns nothing
#pragma unroll 1
    for (int unit = 0; unit < Tile::kDepth / kUnit; ++unit)
      add_unit<factor, Data>(sums, rows, tile, warp, unit, g, t, step.terms);
  }
  const TensorPlace here(cut, forgotten(blockIdx.x), Tile::kIsW);
  const int64_t part = here.problem * cut.splits + here.split;
  if (here.tile == 0) components.store(step.sums + part * kTensorComponents);

  const int64_t to_row = static_cast<int64_t>(here.tile) * Tile::kItems + warp * kTensorRows;
  float* const to = step.numerators + (part * cut.length + to_row) * kTensorComponents;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int of_warp = Tile::row(i, half, g);
      Pack<float, 4> pack;
#pragma unroll
      for (int e = 0; e < 4; ++e) pack.values[e] = sums(i, half, e);
      if (of_warp < rows_left)
        *reinterpret_cast<Pack<float, 4>*>(to + of_warp * kTensorComponents + 4 * t) = pack;
    }
}

template <Factor factor, class Data>
void launch_tensor_half_step(const HalfStep<float, Data>& step, int64_t batch,
                             cudaStream_t stream) {
  const int64_t blocks = batch * step.cut.tiles * step.cut.splits;
  constexpr int kBytes = kTensorStages * TensorTile<factor, Data>::kBytes;
  if (blocks > 0)
    NNMF_CUDA_LAUNCH_NEXT((tensor_half_step_kernel<factor, Data>), grid_of(blocks),
                          dim3(kWarp, kTensorWarps), kBytes, stream, step);
}

}  // namespace nnmf_cuda
