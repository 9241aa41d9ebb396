// How a warp works on X: tiles of it are copied to shared memory in the background, two at a time,
// beside the values of the factor that they are multiplied with.
//
// A warp owns some rows of X (for W; for H: columns) and walks along their depth. Each lane keeps
// the components of its own rows in registers; those of the other factor are read from shared
// memory, the same ones by all lanes. Where a row has more components than a lane has room for, a
// group of neighbouring lanes shares it.
//
// Both factors are stored alike meanwhile: [B, length, padded], the components of a row (or
// column) side by side, zeros after the last one.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_pipeline.h>
#endif

#include "../../common/cuda/overlap.h"
#include "../problem.h"

namespace nnmf_cuda {

// Copies from global to shared memory that a thread starts and waits for later (cp.async, sm_80
// on). The three calls of cuda_pipeline.h have host versions where kernels are tested on the CPU.

// Starts to copy the first `valid` of kBytes (4, 8 or 16) bytes and to fill up with zeros. Both
// addresses are multiples of kBytes; with valid == 0 nothing is read. One instruction, which
// cuda_pipeline.h makes a switch where `valid` is not a constant.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, int valid) {
#if defined(__CUDA_ARCH__)
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(to), "l"(global), "r"(valid)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(to), "l"(global), "n"(kBytes), "r"(valid)
                 : "memory");
#else
  __pipeline_memcpy_async(shared, global, kBytes, static_cast<size_t>(kBytes - valid));
#endif
}

// The same for all kBytes.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  __pipeline_memcpy_async(shared, global, kBytes);
}

// Ends a group of copies; `wait_for_copies<n>` then waits until at most the last n groups of this
// thread are under way. What other threads have copied needs a barrier besides.
__device__ inline void commit_copies() {
  __pipeline_commit();
}

template <int kGroupsLeft>
__device__ inline void wait_for_copies() {
  __pipeline_wait_prior(kGroupsLeft);
}

constexpr int kPiece = 16;  // bytes of the largest copy
constexpr int kStages = 2;  // tiles in shared memory

// Which factor a half-step updates.
enum class Factor { kW, kH };

// What a kernel is compiled for.
template <Loss loss, class Value, class Entry, int components, int rows, bool grouped>
struct Tiling {
  using T = Value;
  using Data = Entry;
  static constexpr Loss kLoss = loss;
  static constexpr int kComponents = components;  // of a lane
  static constexpr int kUsed = components;        // the first of them: the others are zeros
  static constexpr int kOwn = rows;               // rows (or columns) of a lane
  static constexpr bool kGrouped = grouped;       // several lanes share them
  // Bytes of a tile along the depth, for W: fewer where the other factor's values take much room.
  static constexpr int kRowBytes = sizeof(Data) > 1 ? 64 : grouped ? 16 : 32;
  static constexpr int kDepth = kRowBytes / static_cast<int>(sizeof(Data));
  // Entries of a row of X that a lane loads at once, for W; components need registers too.
  static constexpr int kRun = sizeof(Data) == 8 || components > 16 ? 2 : 4;
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  static constexpr int kVectors = components / kVector;
  static constexpr bool kUsesProduct = loss != Loss::kFrobenius;
  static constexpr bool kSumsDenominator = loss == Loss::kItakuraSaito || loss == Loss::kGeneral;
  // Warps that a multiprocessor has registers for.
  static constexpr int kResident = grouped || components * rows > 32 ? 8 : components > 8 ? 12 : 16;
  static_assert(components % kVector == 0);
};

// The same for one component less, which is then stored but not multiplied.
template <class Base>
struct OneLess : Base {
  static constexpr int kUsed = Base::kComponents - 1;
};

// Values that are loaded at once.
template <class T, int count>
struct alignas(sizeof(T) * count) Pack {
  T values[count];
};

// Shared memory of one stage.
struct Stage {
  int items;  // rows (or columns) of the warp
  int pitch;  // bytes from one row of the tile of X to the next
  int x_bytes;
  int bytes;  // with the other factor's values, [kDepth, padded]
};

// Bytes of X that are copied at once at most. For W they are what a lane loads at once: all that
// must lie side by side.
template <class Tiling, Factor factor>
constexpr int kMostAtOnce = factor == Factor::kH ? kPiece
                            : sizeof(typename Tiling::Data) * Tiling::kRun < 4
                                ? 4
                                : static_cast<int>(sizeof(typename Tiling::Data)) * Tiling::kRun;

template <class Tiling, Factor factor>
NNMF_CUDA_INLINE Stage stage_of(int group) {
  using Data = typename Tiling::Data;
  Stage stage{};
  stage.items = kWarp / group * Tiling::kOwn;
  if constexpr (factor == Factor::kW) {
    // Lanes read below each other: an odd number of what they read keeps them in different banks.
    constexpr int kAtOnce = kMostAtOnce<Tiling, factor>;
    stage.pitch = (Tiling::kRowBytes / kAtOnce | 1) * kAtOnce;
    stage.x_bytes = (stage.items * stage.pitch + kPiece - 1) / kPiece * kPiece;
  } else {
    const int bytes = stage.items * static_cast<int>(sizeof(Data));
    stage.pitch = (bytes + kPiece - 1) / kPiece * kPiece;
    stage.x_bytes = Tiling::kDepth * stage.pitch;
  }
  const int other = Tiling::kDepth * Tiling::kComponents * group;
  stage.bytes = stage.x_bytes + other * static_cast<int>(sizeof(typename Tiling::T));
  return stage;
}

// One piece of a row of X, of which `valid` bytes exist.
template <int kBytes, class Data>
__device__ __forceinline__ void copy_piece(unsigned char* to, const Data* from, int valid) {
  if constexpr (kBytes == 1)
    *to = valid > 0 ? *from : Data{0};  // less than what can be copied in the background
  else
    copy_async<kBytes>(to, from, valid);
}

template <int kBytes, class Data>
__device__ __forceinline__ void copy_piece(unsigned char* to, const Data* from) {
  if constexpr (kBytes == 1)
    *to = *from;
  else
    copy_async<kBytes>(to, from);
}

// Starts to copy rows x columns entries from X, kBytes at once; those beyond the limits become
// zeros. All sizes are powers of two, so a lane keeps its place across a row.
template <int kBytes, class Data>
__device__ __forceinline__ void copy_pieces(unsigned char* to, int pitch, const Data* from,
                                            int64_t stride, int rows, int columns,
                                            int64_t row_limit, int64_t column_limit) {
  constexpr int kSize = static_cast<int>(sizeof(Data)), kEntries = kBytes / kSize;
  const int pieces = columns / kEntries, across = pieces < kWarp ? pieces : kWarp;
  const int together = kWarp / across;  // rows
  const int lane = static_cast<int>(threadIdx.x), row = lane / across;
  if (row >= rows) return;
  const bool whole = row_limit >= rows && column_limit >= columns;
  for (int column = lane % across * kEntries; column < columns; column += across * kEntries) {
    const Data* source = from + row * stride + column;
    unsigned char* place = to + row * pitch + column * kSize;
    if (whole) {
#pragma unroll
      for (int at = 0; at < rows; at += together) {
        copy_piece<kBytes>(place, source);
        source += together * stride;
        place += together * pitch;
      }
    } else {
      const int64_t left = column_limit - column;
      const int there = left >= kEntries ? kEntries : left > 0 ? static_cast<int>(left) : 0;
#pragma unroll 1
      for (int at = row; at < rows; at += together) {
        const int valid = at < row_limit ? there * kSize : 0;
        copy_piece<kBytes>(place, valid > 0 ? source : from, valid);
        source += together * stride;
        place += together * pitch;
      }
    }
  }
}

// The same with as many bytes at once as X allows: `most`, 4, or one entry.
template <int most, class Data, class... Arguments>
__device__ __forceinline__ void copy_entries(int at_once, unsigned char* to, int pitch,
                                             const Data* from, Arguments... arguments) {
  constexpr int kSize = static_cast<int>(sizeof(Data));
  if (at_once == most)
    copy_pieces<most>(to, pitch, from, arguments...);
  else if (kSize == 1 && at_once == 4)
    copy_pieces<kSize == 1 ? 4 : kSize>(to, pitch, from, arguments...);
  else
    copy_pieces<kSize>(to, pitch, from, arguments...);
}

// Starts to copy `valid` of `count` values that lie side by side; zeros follow them.
template <class T>
__device__ __forceinline__ void copy_values(T* to, const T* from, int count, int64_t valid) {
  constexpr int kVector = kPiece / static_cast<int>(sizeof(T));
  const int lane = static_cast<int>(threadIdx.x);
#pragma unroll 4
  for (int first = 0; first < count; first += kWarp * kVector) {
    const int at = first + lane * kVector;
    if (at >= count) continue;
    const bool inside = at < valid;  // whole vectors: `valid` is a number of padded rows
    copy_async<kPiece>(to + at, inside ? from + at : from, inside ? kPiece : 0);
  }
}

// The part of X, and of the other factor, that a warp walks along.
template <class Tiling>
struct Walk {
  int64_t problem, split, tile;
  const typename Tiling::Data* X;   // the problem's
  const typename Tiling::T* other;  // the problem's other factor
  int64_t row_stride;               // of X
  int64_t first;                    // the warp's first own row (or column)
  int64_t length;                   // where they end
  int64_t begin, end, step;         // along the depth, from one tile of the warp to the next
  int group;
  int at_once;  // bytes of X that can be copied at once
};

template <class Tiling, Factor factor>
__device__ __forceinline__ void start_copy_of_X(const Walk<Tiling>& walk, const Stage& stage,
                                                int64_t deep, unsigned char* memory) {
  const int64_t own_left = walk.length - walk.first, deep_left = walk.end - deep;
  constexpr int kMost = kMostAtOnce<Tiling, factor>;
  if constexpr (factor == Factor::kW)
    copy_entries<kMost>(walk.at_once, memory, stage.pitch,
                        walk.X + walk.first * walk.row_stride + deep, walk.row_stride, stage.items,
                        Tiling::kDepth, own_left, deep_left);
  else
    copy_entries<kMost>(walk.at_once, memory, stage.pitch,
                        walk.X + deep * walk.row_stride + walk.first, walk.row_stride,
                        Tiling::kDepth, stage.items, deep_left, own_left);
}

// Of the other factor's values.
template <class Tiling>
__device__ __forceinline__ void start_copy_of_values(const Walk<Tiling>& walk, const Stage& stage,
                                                     int64_t deep, unsigned char* memory) {
  using T = typename Tiling::T;
  const int padded = Tiling::kComponents * walk.group;
  copy_values(reinterpret_cast<T*>(memory + stage.x_bytes), walk.other + deep * padded,
              Tiling::kDepth * padded, (walk.end - deep) * padded);
}

// Starts to copy what a walk needs first of X: all that it can do while the kernel before is at
// work.
template <class Tiling, Factor factor>
__device__ __forceinline__ void start_walk(const Walk<Tiling>& walk, unsigned char* memory) {
  if (walk.begin < walk.end)
    start_copy_of_X<Tiling, factor>(walk, stage_of<Tiling, factor>(walk.group), walk.begin, memory);
}

// Calls body(tile of X, values of the other factor, where the tile begins) for each tile, after
// start_walk.
template <class Tiling, Factor factor, class Body>
__device__ __forceinline__ void for_each_tile(const Walk<Tiling>& walk, unsigned char* memory,
                                              const Body& body) {
  const Stage stage = stage_of<Tiling, factor>(walk.group);
  int at = 0;
  if (walk.begin < walk.end) start_copy_of_values(walk, stage, walk.begin, memory);
  commit_copies();
  for (int64_t deep = walk.begin; deep < walk.end; deep += walk.step) {
    unsigned char* const tile = memory + at * stage.bytes;
    at = (at + 1) % kStages;
    const int64_t next = deep + walk.step;
    if (next < walk.end) {
      start_copy_of_X<Tiling, factor>(walk, stage, next, memory + at * stage.bytes);
      start_copy_of_values(walk, stage, next, memory + at * stage.bytes);
    }
    commit_copies();
    wait_for_copies<1>();
    __syncwarp();
    body(tile, reinterpret_cast<const typename Tiling::T*>(tile + stage.x_bytes), deep);
    __syncwarp();  // before the next copy overwrites what is read here
  }
}

// A lane's place: its own row i is the warp's `row(i)`, and its vector v of components begins at
// `vector(v)`.
template <class Tiling, Factor factor>
struct Place {
  int group, part, line;

  __device__ __forceinline__ explicit Place(int lanes_of_group) : group(lanes_of_group) {
    const int lane = static_cast<int>(threadIdx.x);
    part = Tiling::kGrouped ? lane % group : 0;
    line = Tiling::kGrouped ? lane / group : lane;
  }

  // Columns of a lane are neighbours, so that they are loaded at once; rows are far apart.
  __device__ __forceinline__ int row(int i) const {
    return factor == Factor::kW ? line + kWarp / group * i : line * Tiling::kOwn + i;
  }

  // Lanes of a group read neighbouring vectors.
  __device__ __forceinline__ int vector(int v) const {
    return (v * group + part) * Tiling::kVector;
  }

  // Where in a tile of X the lane loads from at depth d: for W the entries of its row i from there
  // on, for H those of all its columns (i is 0).
  __device__ __forceinline__ int entry(const Stage& stage, int d, int i) const {
    constexpr int kSize = static_cast<int>(sizeof(typename Tiling::Data));
    return factor == Factor::kW ? row(i) * stage.pitch + d * kSize
                                : d * stage.pitch + row(i) * kSize;
  }
};

// A lane's components of one row of a factor.
template <class Tiling, Factor factor>
__device__ __forceinline__ void load_components(const typename Tiling::T* from,
                                                const Place<Tiling, factor>& place,
                                                typename Tiling::T (&to)[Tiling::kComponents]) {
  using Vector = Pack<typename Tiling::T, Tiling::kVector>;
#pragma unroll
  for (int v = 0; v < Tiling::kVectors; ++v) {
    const Vector loaded = *reinterpret_cast<const Vector*>(from + place.vector(v));
#pragma unroll
    for (int e = 0; e < Tiling::kVector; ++e) to[v * Tiling::kVector + e] = loaded.values[e];
  }
}

template <class Tiling, Factor factor>
__device__ __forceinline__ void store_components(
    const typename Tiling::T (&from)[Tiling::kComponents], const Place<Tiling, factor>& place,
    typename Tiling::T* to) {
  using Vector = Pack<typename Tiling::T, Tiling::kVector>;
#pragma unroll
  for (int v = 0; v < Tiling::kVectors; ++v) {
    Vector stored;
#pragma unroll
    for (int e = 0; e < Tiling::kVector; ++e) stored.values[e] = from[v * Tiling::kVector + e];
    *reinterpret_cast<Vector*>(to + place.vector(v)) = stored;
  }
}

// Calls body(depth in the tile, x of the own rows, the lane's components of the other factor) for
// each entry along the depth of a tile. Pixels stay numbers up to 255.
template <class Tiling, Factor factor, class Body>
__device__ __forceinline__ void for_each_entry(const unsigned char* tile,
                                               const typename Tiling::T* other,
                                               const Place<Tiling, factor>& place,
                                               const Body& body) {
  using T = typename Tiling::T;
  using Data = typename Tiling::Data;
  constexpr int kOwn = Tiling::kOwn;
  const Stage stage = stage_of<Tiling, factor>(place.group);
  const int padded = Tiling::kComponents * place.group;
  T x[kOwn], components[Tiling::kComponents];
  if constexpr (factor == Factor::kW) {
    constexpr int kRun = Tiling::kRun;
#pragma unroll 1
    for (int d = 0; d < Tiling::kDepth; d += kRun) {
      Pack<Data, kRun> runs[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i)
        runs[i] = *reinterpret_cast<const Pack<Data, kRun>*>(tile + place.entry(stage, d, i));
#pragma unroll
      for (int e = 0; e < kRun; ++e) {
        load_components(other + (d + e) * padded, place, components);
#pragma unroll
        for (int i = 0; i < kOwn; ++i) x[i] = static_cast<T>(runs[i].values[e]);
        body(d + e, x, components);
      }
    }
  } else {
#pragma unroll 2
    for (int d = 0; d < Tiling::kDepth; ++d) {
      const auto run = *reinterpret_cast<const Pack<Data, kOwn>*>(tile + place.entry(stage, d, 0));
      load_components(other + d * padded, place, components);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) x[i] = static_cast<T>(run.values[i]);
      body(d, x, components);
    }
  }
}

// Sum over the lanes of a group; every lane gets the same bits.
template <bool kGrouped, class T>
__device__ __forceinline__ T sum_over_group(T value, int group) {
  if constexpr (kGrouped)
    for (int mask = group / 2; mask > 0; mask /= 2)
      value += __shfl_xor_sync(kAllLanes, value, mask);
  return value;
}

// One entry of W H, from the lane's components of both factors.
template <class Tiling>
__device__ __forceinline__ typename Tiling::T product(
    const typename Tiling::T (&own)[Tiling::kComponents],
    const typename Tiling::T (&other)[Tiling::kComponents], int group) {
  typename Tiling::T sum = 0;
#pragma unroll
  for (int j = 0; j < Tiling::kUsed; ++j) sum += own[j] * other[j];
  return sum_over_group<Tiling::kGrouped>(sum, group);
}

}  // namespace nnmf_cuda
