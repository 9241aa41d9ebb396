// A factor as tensor cores read it: each value in two parts of TF32, split once where it changes
// rather than wherever it is read, and laid out so that a tile of it is copied as it lies.
#pragma once

#include <cstdint>

#include "factor_kernels.cuh"
#include "tensor_mma.cuh"

namespace nnmf_cuda {

constexpr int kLogTensorComponents = 4;
constexpr int kTensorComponents = 1 << kLogTensorComponents;  // padded ones
constexpr int kUnit = 16;  // depth of what is added up on tensor cores; the sums are float32's
constexpr int kUnitParts = kUnit * kTensorComponents * 2;  // numbers of a unit
constexpr int kPartPiece = 4;                              // numbers that are read at once

// Length of a factor in parts: whole tiles, zeros behind the last row.
NNMF_CUDA_INLINE int64_t length_in_parts(int64_t length) {
  constexpr int64_t kLongestTile = 64;
  return (length + kLongestTile - 1) & -kLongestTile;
}

// Where the parts of two components, `twin` and `twin` + 1, begin at one of the two neighbouring
// depths (`odd`) that lanes `line` have in tile `deep` of 8: hi of both, then lo of both. Lanes of
// a quarter of a warp read from all banks, for either product.
NNMF_CUDA_INLINE int part_place(int deep, int line, int twin, int odd) {
  const int place = twin / 2 ^ line;
  const int pieces = ((4 * deep + line) * kTensorComponents / 2 + place) * 2;
  return (pieces + (odd ^ (twin / 2 & 1))) * kPartPiece;
}

// What lane (g, t) reads for the first product: components 2 t + 8 `half` at the depth in column g
// of tile `deep`. (half changes the place by 4: said so, it is a constant.)
NNMF_CUDA_INLINE int part_of_first(int deep, int half, int g, int t) {
  return part_place(deep, g / 2, 2 * t, g % 2) + 8 * half * kPartPiece;
}

// And for the second: components 2 g at one of its two depths.
NNMF_CUDA_INLINE int part_of_second(int deep, int odd, int g, int t) {
  return part_place(deep, t, 2 * g, odd);
}

// Where the parts of a value begin, from those of its unit or of one before, whose rows count from
// its beginning: hi there, lo two numbers further on; 16 rows later kUnitParts further on.
// `in_fours`: whether lanes have four neighbouring depths, two in each tile.
NNMF_CUDA_INLINE int part_of(bool in_fours, unsigned row, unsigned component) {
  const unsigned depth = row % kUnit;
  const unsigned deep = in_fours ? depth / 2 % 2 : depth / 8;
  const unsigned line = in_fours ? depth / 4 : depth / 2 % 4;
  const int in_unit = part_place(static_cast<int>(deep), static_cast<int>(line),
                                 static_cast<int>(component & ~1u), static_cast<int>(depth % 2));
  return static_cast<int>((row - depth) * kTensorComponents * 2) + in_unit +
         static_cast<int>(component & 1);
}

// Where the unit of a row begins among the parts of all problems.
NNMF_CUDA_INLINE int64_t unit_of(int64_t b, int64_t length, int64_t row) {
  return (b * length_in_parts(length) + (row & -kUnit)) * kTensorComponents * 2;
}

// Stores a value as two parts, whose sum it is.
__device__ __forceinline__ void store_parts(float* to, float value) {
  const float hi = nearest_tf32(value);
  to[0] = hi;
  to[2] = value - hi;
}

// A factor [B, length, kTensorComponents] as pack_kernel gives it, and in parts; a thread a value.
__global__ void pack_parts_kernel(const float* from, float* to, float* parts, bool in_fours,
                                  int64_t size, FactorLayout layout) {
  wait_for_kernel_before();
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= size) return;
  const int64_t row = at / kTensorComponents, length = length_in_parts(layout.length);
  const int64_t b = row / length, i = row % length;
  const auto component = static_cast<unsigned>(at) % kTensorComponents;
  const bool there = i < layout.length;
  const float value = there ? packed_value(from, layout, b, i, static_cast<int>(component)) : 0;
  if (there) to[(b * layout.length + i) * kTensorComponents + component] = value;
  store_parts(parts + unit_of(b, layout.length, i) +
                  part_of(in_fours, static_cast<unsigned>(i % kUnit), component),
              value);
}

// As launch_pack.
inline void launch_pack_parts(const float* from, float* to, float* parts, bool in_fours,
                              int64_t batch, const FactorLayout& layout, cudaStream_t stream,
                              Starts starts) {
  const int64_t size = batch * length_in_parts(layout.length) * kTensorComponents;
  if (size == 0) return;
  if (starts == Starts::kEarly)
    NNMF_CUDA_LAUNCH_NEXT(pack_parts_kernel, grid_of(blocks_of(size, kThreads)), kThreads, 0,
                          stream, from, to, parts, in_fours, size, layout);
  else
    NNMF_CUDA_LAUNCH(pack_parts_kernel, grid_of(blocks_of(size, kThreads)), kThreads, 0, stream,
                     from, to, parts, in_fours, size, layout);
}

}  // namespace nnmf_cuda
