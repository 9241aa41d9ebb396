// ISA source (see common/cpu/isa.h): one image resampled along its rows, then along its columns, in
// whole numbers, so that nothing depends on the instruction set.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

typedef typename IntegersOf<int32_t>::Lanes Sums;
typedef int32_t Quad __attribute__((vector_size(16)));

constexpr int64_t kLanes = NNMF_CUDA_VECTOR_BYTES / 4;

// Bytes as whole numbers; those below 256 are exact in float.
NNMF_CUDA_INLINE Sums load_bytes(const uint8_t* from) {
  return __builtin_convertvector(Vector<float>::load(from), Sums);
}

NNMF_CUDA_INLINE Sums load_weights(const int32_t* from) {
  Sums weights;
  __builtin_memcpy(&weights, from, sizeof(weights));
  return weights;
}

// One sum a lane becomes four.
NNMF_CUDA_INLINE Quad folded(const Sums& sums) {
  Quad parts[kLanes / 4];
  __builtin_memcpy(parts, &sums, sizeof(sums));
  Quad folded = parts[0];
  for (int64_t i = 1; i < kLanes / 4; ++i) folded += parts[i];
  return folded;
}

// The sums of four of these, a lane each.
NNMF_CUDA_INLINE Quad sums_of(const Quad& a, const Quad& b, const Quad& c, const Quad& d) {
  const Quad low = {0, 4, 1, 5}, high = {2, 6, 3, 7};
  const Quad ab = __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
  const Quad cd = __builtin_shuffle(c, d, low) + __builtin_shuffle(c, d, high);
  const Quad first = {0, 1, 4, 5}, second = {2, 3, 6, 7};
  return __builtin_shuffle(ab, cd, first) + __builtin_shuffle(ab, cd, second);
}

NNMF_CUDA_INLINE Quad weighed(const uint8_t* from, const ResizeTaps& taps, int64_t x) {
  const uint8_t* bytes = from + taps.first[x];
  const int32_t* weights = taps.weights + x * taps.width;
  Sums sums = load_bytes(bytes) * load_weights(weights);
  for (int64_t k = kLanes; k < taps.width; k += kLanes)
    sums += load_bytes(bytes + k) * load_weights(weights + k);
  return folded(sums);
}

void to_bytes(const int32_t* sums, int64_t count, uint8_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t value = (sums[i] + kResizeHalf) >> kResizeBits;
    to[i] = static_cast<uint8_t>(value < 255 ? value : 255);
  }
}

// An image of `height` rows of `width` bytes to rows.count x columns.count. `padded` has room for
// the bytes that a row's taps reach, `sums` and each of the `height` rows of `between` for
// `stride` numbers, which is columns.count in whole vectors.
void resize_image(const uint8_t* image, int64_t height, int64_t width, const ResizeTaps& columns,
                  const ResizeTaps& rows, int64_t stride, uint8_t* padded, int32_t* sums,
                  uint8_t* between, uint8_t* to) {
  for (int64_t y = 0; y < height; ++y) {
    const uint8_t* row = image + y * width;
    if (columns.reach > width) {
      __builtin_memcpy(padded, row, static_cast<std::size_t>(width));
      row = padded;
    }
    for (int64_t x = 0; x < columns.count; x += 4) {
      const Quad four = sums_of(weighed(row, columns, x), weighed(row, columns, x + 1),
                                weighed(row, columns, x + 2), weighed(row, columns, x + 3));
      __builtin_memcpy(sums + x, &four, sizeof(four));
    }
    to_bytes(sums, columns.count, between + y * stride);
  }
  for (int64_t y = 0; y < rows.count; ++y) {
    const uint8_t* first = between + rows.first[y] * stride;
    const int32_t* weights = rows.weights + y * rows.width;
    for (int64_t x = 0; x < columns.count; x += kLanes) {
      Sums column = {};
      for (int64_t k = 0; k < rows.width; ++k)
        column += load_bytes(first + k * stride + x) * (weights[k] - Sums{});
      __builtin_memcpy(sums + x, &column, sizeof(column));
    }
    to_bytes(sums, columns.count, to + y * columns.count);
  }
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
