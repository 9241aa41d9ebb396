// ISA source (see foreach_isa.h): inner products of rows of data with all components.
//
// The components are packed in chunks of columns, zero-padded at the end. A panel of rows is copied
// to such a chunk, too, where bytes become numbers, and multiplied from there: each vector of a
// component that is loaded serves all rows of the panel, each of a row a group of components, and
// their sums stay in registers for a chunk. Chunks are added up in float64.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

constexpr int64_t kPanelRows = NNMF_CUDA_VECTOR_BYTES == 64 ? 8 : 4;
constexpr int64_t kGroup = 3;  // components at once: with 8 rows, 24 of 32 registers are sums

template <class T>
constexpr int64_t kChunk = 2048 / int64_t{sizeof(T)};
// From one row of a chunk to the next: not a power of two, which a cache cannot hold together.
template <class T>
constexpr int64_t kStride = kChunk<T> + 64 / int64_t{sizeof(T)};

using Totals = Vector<double>;

template <class T>
int64_t packed_size(int64_t n_components, int64_t n_features) {
  return (n_features + kChunk<T> - 1) / kChunk<T> * n_components * kStride<T>;
}

template <class T>
int64_t panel_size() {
  return kPanelRows * kStride<T>;
}

int64_t totals_size(int64_t rows, int64_t n_components) {
  return (rows + kPanelRows - 1) / kPanelRows * kPanelRows * n_components * Totals::kLanes;
}

// to = columns [column, column + kChunk) of a row, zeros beyond its end.
template <class T, class Data>
NNMF_CUDA_INLINE void copy_chunk(const Data* row, int64_t column, int64_t n_features, T* to) {
  const int64_t columns = n_features - column < kChunk<T> ? n_features - column : kChunk<T>;
  for (int64_t c = 0; c < columns; ++c) to[c] = static_cast<T>(row[column + c]);
  for (int64_t c = columns; c < kChunk<T>; ++c) to[c] = T{0};
}

// packed [chunks, n_components, kStride] = H, whose rows lie `stride` apart.
template <class T, class Data>
void pack_components(const Data* H, int64_t stride, int64_t n_components, int64_t n_features,
                     T* packed) {
  for (int64_t column = 0; column < n_features; column += kChunk<T>)
    for (int64_t r = 0; r < n_components; ++r, packed += kStride<T>)
      copy_chunk(H + r * stride, column, n_features, packed);
}

NNMF_CUDA_INLINE void add_to_total(const Vector<double>::Lanes& sum, double* total) {
  Totals::store(total, Totals::load(total) + sum);
}

// The halves of a float vector are added in float: one more rounding of many.
NNMF_CUDA_INLINE void add_to_total(const Vector<float>::Lanes& sum, double* total) {
  typedef float Half __attribute__((vector_size(NNMF_CUDA_VECTOR_BYTES / 2)));
#if NNMF_CUDA_VECTOR_BYTES == 64
  const Half low = __builtin_shufflevector(sum, sum, 0, 1, 2, 3, 4, 5, 6, 7);
  const Half high = __builtin_shufflevector(sum, sum, 8, 9, 10, 11, 12, 13, 14, 15);
#elif NNMF_CUDA_VECTOR_BYTES == 32
  const Half low = __builtin_shufflevector(sum, sum, 0, 1, 2, 3);
  const Half high = __builtin_shufflevector(sum, sum, 4, 5, 6, 7);
#else
  const Half low = {sum[0], sum[1]}, high = {sum[2], sum[3]};
#endif
  add_to_total(__builtin_convertvector(low + high, Vector<double>::Lanes), total);
}

// totals[row, component, :] += the products of a panel [kPanelRows, kStride] and kComponents rows
// h.
template <int64_t kComponents, class T>
NNMF_CUDA_INLINE void add_products(const T* panel, const T* h, int64_t total_stride,
                                   double* totals) {
  using V = Vector<T>;
  typename V::Lanes sum[kPanelRows][kComponents] = {};
  for (int64_t c = 0; c < kChunk<T>; c += V::kLanes) {
    typename V::Lanes with[kComponents];
#pragma GCC unroll 4
    for (int64_t r = 0; r < kComponents; ++r) with[r] = V::load(h + r * kStride<T> + c);
#pragma GCC unroll 8
    for (int64_t i = 0; i < kPanelRows; ++i) {
      const typename V::Lanes x = V::load(panel + i * kStride<T> + c);
#pragma GCC unroll 4
      for (int64_t r = 0; r < kComponents; ++r) sum[i][r] += x * with[r];
    }
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < kPanelRows; ++i)
#pragma GCC unroll 4
    for (int64_t r = 0; r < kComponents; ++r)
      add_to_total(sum[i][r], totals + i * total_stride + r * Totals::kLanes);
}

template <class T>
void add_chunk(const T* panel, const T* h, int64_t n_components, double* totals) {
  const int64_t stride = n_components * Totals::kLanes;
  int64_t r = 0;
  for (; r + kGroup <= n_components; r += kGroup)
    add_products<kGroup>(panel, h + r * kStride<T>, stride, totals + r * Totals::kLanes);
  if (n_components - r == 2)
    add_products<2>(panel, h + r * kStride<T>, stride, totals + r * Totals::kLanes);
  if (n_components - r == 1)
    add_products<1>(panel, h + r * kStride<T>, stride, totals + r * Totals::kLanes);
}

// cross [rows, n_components] = scale * X H^T. `panel` has panel_size() values, `totals`
// totals_size().
template <class T, class Data>
void cross_products(const Data* X, int64_t stride, int64_t rows, int64_t n_features,
                    const T* packed, int64_t n_components, double scale, T* panel, double* totals,
                    double* cross) {
  const int64_t size = totals_size(rows, n_components);
  for (int64_t i = 0; i < size; ++i) totals[i] = 0;
  for (int64_t column = 0; column < n_features; column += kChunk<T>) {
    const T* h = packed + column / kChunk<T> * n_components * kStride<T>;
    for (int64_t first = 0; first < rows; first += kPanelRows) {
      for (int64_t i = 0; i < kPanelRows; ++i) {
        const int64_t row = first + i < rows ? first + i : rows - 1;  // repeated beyond the end
        copy_chunk(X + row * stride, column, n_features, panel + i * kStride<T>);
      }
      add_chunk(panel, h, n_components, totals + first * n_components * Totals::kLanes);
    }
  }
  for (int64_t at = 0; at < rows * n_components; ++at)
    cross[at] = scale * Totals::sum(Totals::load(totals + at * Totals::kLanes));
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
