// ISA source (see isa.h): weights in the columns of a tile, and sums over the entries whose bit is
// set, four at a time from tables of the sums of all subsets (the method of the four Russians).
// Needs tiles.h and sums.h.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// The weights of a panel in the columns of one tile, 0 in the padding.
template <class T>
struct TileWeights {
  const T* values;  // rows `stride` apart; null where bits serve
  int64_t stride;
  uint64_t bits[kRows];
};

// `count` bits from bit `first` of a row on, which has `n_bytes` bytes.
NNMF_CUDA_INLINE uint64_t bits_of(const uint8_t* row, int64_t n_bytes, int64_t first,
                                  int64_t count) {
  const int64_t byte = first / 8, left = n_bytes - byte;
  uint64_t word = 0;
  if (left >= 8) {
    __builtin_memcpy(&word, row + byte, 8);
  } else {
    for (int64_t i = 0; i < left; ++i) word |= uint64_t{row[byte + i]} << (8 * i);
  }
  return word >> (first % 8) & ((uint64_t{1} << count) - 1);
}

// Tile `tile` of the panel that starts at `row` and has `rows` rows. `edge` has room for one.
template <class T, class Data>
NNMF_CUDA_INLINE TileWeights<T> weights_of(const Weights<T>& weights, const Problem<T, Data>& p,
                                           int64_t row, int64_t rows, int64_t tile, T* edge) {
  static_assert(kColumns<T> + 7 <= 64);
  const int64_t column = tile * kColumns<T>, columns = p.columns_of(tile);
  TileWeights<T> found;
  found.values = nullptr;
  found.stride = weights.row_stride;
  if (weights.values == nullptr) {
    const uint8_t* bits = weights.bits + row * weights.row_stride;
    if (rows == kRows && weights.row_stride - column / 8 >= 8) {
      const uint64_t mask = (uint64_t{1} << columns) - 1;
#pragma GCC unroll 8
      for (int64_t i = 0; i < kRows; ++i) {
        uint64_t word;
        __builtin_memcpy(&word, bits + i * weights.row_stride + column / 8, 8);
        found.bits[i] = word >> (column % 8) & mask;
      }
      return found;
    }
    for (int64_t i = 0; i < kRows; ++i)
      found.bits[i] =
          i < rows ? bits_of(bits + i * weights.row_stride, weights.row_stride, column, columns)
                   : 0;
    return found;
  }
  const T* values = weights.values + row * weights.row_stride + column;
  found.values = values;
  if (rows == kRows && columns == kColumns<T>) return found;
  std::fill_n(edge, kRows * kColumns<T>, T{0});
  for (int64_t i = 0; i < rows; ++i)
    std::copy_n(values + i * weights.row_stride, columns, edge + i * kColumns<T>);
  found.values = edge;
  found.stride = kColumns<T>;
  return found;
}

// What has a weight, times it; zero elsewhere, whatever the term is there.
template <bool bits, class T>
NNMF_CUDA_INLINE typename Vector<T>::Lanes weighted(const typename Vector<T>::Lanes& term,
                                                    const TileWeights<T>& weights, int64_t row,
                                                    int64_t column) {
  using V = Vector<T>;
  if constexpr (bits) {
    return V::keep(static_cast<uint32_t>(weights.bits[row] >> column), term);
  } else {
    const typename V::Lanes value = V::load(weights.values + row * weights.stride + column);
    return V::keep(V::positive(value), value * term);
  }
}

constexpr int64_t kSubset = 4;            // elements whose subsets have a table
constexpr int64_t kTableElements = 32;    // elements whose tables are in the first cache together
constexpr int64_t kFlushElements = 2048;  // elements after which the sums go on in float64
constexpr int64_t kMaskedRows = 256;      // rows of bits that one task sums for at most
// Half vectors that an entry of a table has at most: 128 bytes.
constexpr int64_t kTableHalves = NNMF_CUDA_VECTOR_BYTES == 64 ? 4 : 8;
static_assert(kFlushElements % kTableElements == 0);

// Half a vector: fewer components than a whole one has are a waste of half of it.
template <class T>
struct HalfVector {
  static constexpr int64_t kLanes = Vector<T>::kLanes / 2;
  typedef T Lanes __attribute__((vector_size(NNMF_CUDA_VECTOR_BYTES / 2)));

  static NNMF_CUDA_INLINE Lanes load(const T* p) {
    Lanes v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }
  static NNMF_CUDA_INLINE void store(T* p, const Lanes& v) { __builtin_memcpy(p, &v, sizeof(v)); }
};

// sums[i] += the rows of `right` whose bit is set in words[i], for up to kTableElements rows of
// `right` and `halves` half vectors of each.
template <int64_t halves, class T>
[[gnu::noinline]] void add_masked(const uint32_t* words, int64_t n_rows, const T* right,
                                  int64_t stride, int64_t n_elements, T* sums) {
  using V = Vector<T>;
  using Half = HalfVector<T>;
  constexpr int64_t kWidth = halves * Half::kLanes, kTables = kTableElements / kSubset;
  constexpr int64_t kWhole = halves / 2, kTail = kWhole * V::kLanes;
  constexpr int64_t kEntries = int64_t{1} << kSubset;
  // Entries lie a power of two of bytes apart: where one is takes a shift and a mask.
  constexpr int64_t kEntry = int64_t{std::bit_ceil(static_cast<uint64_t>(kWidth))};
  constexpr int kShift = std::countr_zero(static_cast<uint64_t>(kEntry) * sizeof(T));
  constexpr uint64_t kMask = static_cast<uint64_t>(kEntries - 1) << kShift;
  alignas(64) T table[kTables * kEntries * kEntry];
  for (int64_t s = 0; s < kTables; ++s) {
    T* sets = table + s * kEntries * kEntry;
    std::fill_n(sets, kWidth, T{0});
    for (int64_t b = 0; b < kSubset; ++b) {
      const int64_t element = s * kSubset + b, size = int64_t{1} << b;
      for (int64_t v = 0; v < kWidth; v += Half::kLanes) {
        // What is beyond the last element adds nothing, so that its bits do not matter.
        typename Half::Lanes own{};
        if (element < n_elements) own = Half::load(right + element * stride + v);
        for (int64_t set = 0; set < size; ++set)
          Half::store(sets + (size + set) * kEntry + v, Half::load(sets + set * kEntry + v) + own);
      }
    }
  }
  for (int64_t i = 0; i < n_rows; ++i) {
    const uint64_t word = uint64_t{words[i]} << kShift;
    T* sum = sums + i * stride;
    typename V::Lanes even[kWhole + 1], odd[kWhole + 1];
    typename Half::Lanes even_tail{}, odd_tail{};
#pragma GCC unroll 4
    for (int64_t v = 0; v < kWhole; ++v) {
      even[v] = V::load(sum + v * V::kLanes);
      odd[v] = typename V::Lanes{};
    }
    if constexpr (halves % 2 == 1) even_tail = Half::load(sum + kTail);
#pragma GCC unroll 4
    for (int64_t s = 0; s < kTables; s += 2) {
      const auto entry = [&](int64_t t) {
        const char* set = reinterpret_cast<const char*>(table + t * kEntries * kEntry);
        return reinterpret_cast<const T*>(set + (word >> (t * kSubset) & kMask));
      };
      const T *first = entry(s), *second = entry(s + 1);
#pragma GCC unroll 4
      for (int64_t v = 0; v < kWhole; ++v) {
        even[v] += V::load(first + v * V::kLanes);
        odd[v] += V::load(second + v * V::kLanes);
      }
      if constexpr (halves % 2 == 1) {
        even_tail += Half::load(first + kTail);
        odd_tail += Half::load(second + kTail);
      }
    }
#pragma GCC unroll 4
    for (int64_t v = 0; v < kWhole; ++v) V::store(sum + v * V::kLanes, even[v] + odd[v]);
    if constexpr (halves % 2 == 1) Half::store(sum + kTail, even_tail + odd_tail);
  }
}

// Bits [n_rows, n_elements] as words [blocks of kTableElements][n_rows], and rows of numbers one
// for each element, padded to half vectors.
template <class T>
struct MaskedSums {
  const uint32_t* words;
  int64_t n_rows, n_elements;
  const T* right;  // [n_elements, stride]
  int64_t stride;

  // Calls store(row, sums) for each row, the sums [stride] in float64 being those of the elements
  // whose bit is set.
  template <class F>
  void compute(const F& store) const {
    const int64_t busy = blocks_of(n_rows, 2 * int64_t{torch::stable::get_num_threads()});
    const int64_t rows = std::clamp<int64_t>(busy, 1, kMaskedRows);
    parallel_for_each(blocks_of(n_rows, rows), [&](int64_t task) {
      const int64_t first = task * rows, count = std::min(rows, n_rows - first);
      const Scratch<T> sums(count * stride);
      const Scratch<double> totals(count * stride);
      sums.fill(0);
      totals.fill(0);
      for (int64_t element = 0; element < n_elements; element += kTableElements) {
        const int64_t elements = std::min(kTableElements, n_elements - element);
        const uint32_t* from = words + element / kTableElements * n_rows + first;
        add(from, count, right + element * stride, elements, sums.data());
        const int64_t end = element + elements;
        if (end % kFlushElements == 0 || end == n_elements)
          flush(sums.data(), count * stride, totals.data());
      }
      for (int64_t i = 0; i < count; ++i) store(first + i, totals + i * stride);
    });
  }

 private:
  void add(const uint32_t* from, int64_t count_rows, const T* elements, int64_t n, T* sums) const {
    const int64_t all = stride / HalfVector<T>::kLanes;
    for (int64_t h = 0; h < all; h += kTableHalves) {
      const int64_t count = std::min(kTableHalves, all - h), at = h * HalfVector<T>::kLanes;
      [&]<int64_t... less>(std::integer_sequence<int64_t, less...>) {
        ((count == less + 1
              ? add_masked<less + 1>(from, count_rows, elements + at, stride, n, sums + at)
              : void()),
         ...);
      }(std::make_integer_sequence<int64_t, kTableHalves>{});
    }
  }
};

// How wide rows of MaskedSums are.
template <class T>
int64_t padded_components(int64_t n_components) {
  return blocks_of(n_components, HalfVector<T>::kLanes) * HalfVector<T>::kLanes;
}

// An 8 x 8 matrix of bits, a row a byte (Warren, Hacker's Delight, 7-3).
inline uint64_t transpose_bits(uint64_t x) {
  uint64_t t = (x ^ (x >> 7)) & 0x00aa00aa00aa00aa;
  x ^= t ^ (t << 7);
  t = (x ^ (x >> 14)) & 0x0000cccc0000cccc;
  x ^= t ^ (t << 14);
  t = (x ^ (x >> 28)) & 0x00000000f0f0f0f0;
  return x ^ t ^ (t << 28);
}

// A mask [n_rows, n_columns] for MaskedSums: words of its rows, [blocks of n_columns][n_rows], and
// of its columns, [blocks of n_rows][n_columns].
struct MaskWords {
  MaskWords(const uint8_t* bits, int64_t row_stride, int64_t n_rows, int64_t n_columns)
      : rows(blocks_of(n_columns, kTableElements) * n_rows),
        columns(blocks_of(n_rows, kTableElements) * n_columns) {
    constexpr int64_t kBytes = kTableElements / 8;
    parallel_for_each(blocks_of(n_rows, kTableElements), [&](int64_t block) {
      const int64_t first = block * kTableElements, end = std::min(first + kTableElements, n_rows);
      for (int64_t row = first; row < end; ++row)
        for (int64_t byte = 0; byte < row_stride; byte += kBytes) {
          uint32_t word = 0;
          for (int64_t b = 0; b < std::min(kBytes, row_stride - byte); ++b)
            word |= uint32_t{bits[row * row_stride + byte + b]} << (8 * b);
          rows.data()[byte / kBytes * n_rows + row] = word;
        }
      uint32_t* to = columns + block * n_columns;
      std::fill_n(to, n_columns, uint32_t{0});
      for (int64_t row = first; row < end; row += 8)
        for (int64_t byte = 0; byte < row_stride; ++byte) {
          uint64_t square = 0;
          for (int64_t i = 0; i < std::min<int64_t>(8, end - row); ++i)
            square |= uint64_t{bits[(row + i) * row_stride + byte]} << (8 * i);
          square = transpose_bits(square);
          for (int64_t c = 0; c < std::min<int64_t>(8, n_columns - byte * 8); ++c)
            to[byte * 8 + c] |= static_cast<uint32_t>(square >> (8 * c) & 255) << (row - first);
        }
    });
  }

  Scratch<uint32_t> rows, columns;
};

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
