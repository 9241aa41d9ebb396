// ISA source (see isa.h): what an update needs of the non-zeros of one row of X. H is held
// transposed, [n_features][stride]: what a non-zero needs of it lies side by side.
//
// A row of W and the sums of a row stay in registers while they are `held` vectors long; longer
// ones are read again for each non-zero.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

constexpr int64_t kBlock = 64;    // non-zeros whose terms are in memory together
constexpr int64_t kMostHeld = 4;  // vectors of components in registers; kBlock is whole vectors

// Rows of a factor, a row a feature: `vectors` vectors of T each, of which what lies beyond
// n_components belongs to the next row. It is multiplied by the zeros of a padded row of the other
// factor. Stored in a narrower type, they become T as they are read.
template <class T, class Stored = T>
struct FactorRows {
  const Stored* data;
  int64_t stride;
  int64_t vectors;
};

// A vector of what may be stored in a narrower type.
template <class T, class Stored>
NNMF_CUDA_INLINE typename Vector<T>::Lanes load_as(const Stored* p) {
  if constexpr (std::is_same_v<T, Stored>) {
    return Vector<T>::load(p);
  } else {
    typedef Stored Narrow __attribute__((vector_size(Vector<T>::kLanes * sizeof(Stored))));
    Narrow v;
    __builtin_memcpy(&v, p, sizeof(v));
    return __builtin_convertvector(v, typename Vector<T>::Lanes);
  }
}

// A distance of 32 bytes, or of some more, from row to row.
template <class T>
int64_t row_stride(int64_t n_components) {
  constexpr int64_t kUnit = 32 / int64_t{sizeof(T)};
  return blocks_of(n_components, kUnit) * kUnit;
}

// Calls f.operator()<held>(), held being `vectors`, or 0 where those are too many.
template <class F>
NNMF_CUDA_INLINE void with_held(int64_t vectors, const F& f) {
  switch (vectors) {
    case 1:
      return f.template operator()<1>();
    case 2:
      return f.template operator()<2>();
    case 3:
      return f.template operator()<3>();
    case kMostHeld:
      return f.template operator()<kMostHeld>();
    default:
      return f.template operator()<0>();
  }
}

// Lanes whose number has the bit `step`: those of b, others of a; and what stands `step` lanes from
// there added.
template <int64_t step, class T, std::size_t... lane>
NNMF_CUDA_INLINE typename Vector<T>::Lanes merged(const typename Vector<T>::Lanes& a,
                                                  const typename Vector<T>::Lanes& b,
                                                  std::index_sequence<lane...>) {
  constexpr int kLanes = sizeof...(lane), kStep = step;
  return __builtin_shufflevector(a, b, ((lane & kStep) ? kLanes + int{lane} : int{lane})...) +
         __builtin_shufflevector(
             a, b, ((lane & kStep) ? kLanes + (int{lane} ^ kStep) : (int{lane} ^ kStep))...);
}

// Lane l of the result is the sum of the lanes of part[l]; the parts are lost.
template <class T, int64_t step = 1>
NNMF_CUDA_INLINE typename Vector<T>::Lanes sum_each(
    typename Vector<T>::Lanes (&part)[Vector<T>::kLanes]) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  if constexpr (step == kLanes) {
    return part[0];
  } else {
#pragma GCC unroll 8
    for (int64_t l = 0; l < kLanes; l += 2 * step)
      part[l] = merged<step, T>(part[l], part[l + step], std::make_index_sequence<kLanes>{});
    return sum_each<T, 2 * step>(part);
  }
}

// The lanes of one product of a row of W, `held` in registers or at `w`, with a row of H.
template <int64_t held, class T, class Stored>
NNMF_CUDA_INLINE typename Vector<T>::Lanes row_product(
    const typename Vector<T>::Lanes (&in_registers)[held == 0 ? 1 : held], const T* w,
    const Stored* h, int64_t vectors) {
  using V = Vector<T>;
  typename V::Lanes sum{};
  if constexpr (held > 0) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < held; ++v) sum += in_registers[v] * load_as<T>(h + v * V::kLanes);
  } else {
    for (int64_t v = 0; v < vectors; ++v)
      sum += V::load(w + v * V::kLanes) * load_as<T>(h + v * V::kLanes);
  }
  return sum;
}

// wh[p] = w . H[col[p]] for `count` non-zeros, zero up to the end of a vector. `w` is padded.
template <int64_t held, class T, class Stored, class Index>
NNMF_CUDA_INLINE void products(const T* w, const FactorRows<T, Stored>& H, const Index* col,
                               int64_t count, T* wh) {
  using V = Vector<T>;
  typename V::Lanes in_registers[held == 0 ? 1 : held];
#pragma GCC unroll 4
  for (int64_t v = 0; v < held; ++v) in_registers[v] = V::load(w + v * V::kLanes);
  const auto lanes_of = [&](int64_t p) {
    return row_product<held>(in_registers, w, H.data + static_cast<int64_t>(col[p]) * H.stride,
                             H.vectors);
  };
  int64_t first = 0;
  for (; first + V::kLanes <= count; first += V::kLanes) {
    typename V::Lanes part[V::kLanes];
#pragma GCC unroll 16
    for (int64_t l = 0; l < V::kLanes; ++l) part[l] = lanes_of(first + l);
    V::store(wh + first, sum_each<T>(part));
  }
  if (first == count) return;
  typename V::Lanes part[V::kLanes] = {};
  for (int64_t l = 0; l < count - first; ++l) part[l] = lanes_of(first + l);
  V::store(wh + first, sum_each<T>(part));
}

// sums[...] += terms[p] * H[col[p]] over `count` non-zeros, for `held` vectors from `offset` on.
template <int64_t held, class T, class Index>
NNMF_CUDA_INLINE void add_rows(const T* terms, const FactorRows<T>& H, int64_t offset,
                               const Index* col, int64_t count, double* sums) {
  using V = Vector<T>;
  typename V::Lanes even[held] = {}, odd[held] = {};
  const auto add = [&](typename V::Lanes(&sum)[held], int64_t p) {
    const typename V::Lanes term = V::broadcast(terms[p]);
    const T* h = H.data + static_cast<int64_t>(col[p]) * H.stride + offset;
#pragma GCC unroll 4
    for (int64_t v = 0; v < held; ++v) sum[v] += term * V::load(h + v * V::kLanes);
  };
  int64_t p = 0;
  for (; p + 2 <= count; p += 2) {
    add(even, p);
    add(odd, p + 1);
  }
  if (p < count) add(even, p);
  T values[held * V::kLanes];
#pragma GCC unroll 4
  for (int64_t v = 0; v < held; ++v) V::store(values + v * V::kLanes, even[v] + odd[v]);
  for (int64_t i = 0; i < held * V::kLanes; ++i) sums[offset + i] += static_cast<double>(values[i]);
}

// The same for all components.
template <int64_t held, class T, class Index>
NNMF_CUDA_INLINE void add_all_rows(const T* terms, const FactorRows<T>& H, const Index* col,
                                   int64_t count, double* sums) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  if constexpr (held > 0) return add_rows<held>(terms, H, 0, col, count, sums);
  int64_t v = 0;
  for (; v + kMostHeld <= H.vectors; v += kMostHeld)
    add_rows<kMostHeld>(terms, H, v * kLanes, col, count, sums);
  for (; v < H.vectors; ++v) add_rows<1>(terms, H, v * kLanes, col, count, sums);
}

// What the numerators of Kullback-Leibler sum, X / W H, of up to kBlock non-zeros, zero up to the
// end of a vector.
template <int64_t held, class T, class Index>
NNMF_CUDA_INLINE void form_quotients(const T* values, const Index* col, int64_t count, const T* w,
                                     const FactorRows<T>& H, T floor, T* terms) {
  using V = Vector<T>;
  T x[kBlock];
  std::copy_n(values, count, x);
  std::fill(x + count, x + blocks_of(count, V::kLanes) * V::kLanes, T{0});
  products<held>(w, H, col, count, terms);
  const typename V::Lanes lowest = V::broadcast(floor);
  for (int64_t p = 0; p < count; p += V::kLanes)
    V::store(terms + p, V::divide(V::load(x + p), V::max(lowest, V::load(terms + p))));
}

// What the rows of column sums are made of: 32 bytes, so that rows are no longer than they must.
template <class T>
struct Unit {
  static constexpr int64_t kLanes = 32 / int64_t{sizeof(T)};
  typedef T Lanes __attribute__((vector_size(32)));

  static NNMF_CUDA_INLINE Lanes load(const T* p) {
    Lanes v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }
  static NNMF_CUDA_INLINE void store(T* p, const Lanes& v) { __builtin_memcpy(p, &v, sizeof(v)); }
};

// Sums by columns, [n_features][units]. After kMostTerms terms those of a column go on in float64,
// where columns of as many non-zeros have a place.
template <class T>
class SparseColumnSums {
 public:
  static constexpr int64_t kMostTerms = 256;  // a counter is a byte that goes back to zero

  // `counts` [n_features]: non-zeros of each column.
  SparseColumnSums(int64_t n_features, int64_t n_components, const int64_t* counts)
      : k_(n_components),
        stride_(row_stride<T>(n_components)),
        sums_(n_features * stride_),
        terms_(n_features),
        place_(n_features),
        wide_(places_of(n_features, counts) * n_components) {
    sums_.fill(0);
    terms_.fill(0);
    wide_.fill(0);
    int64_t places = 0;
    for (int64_t c = 0; c < n_features; ++c)
      place_.data()[c] = counts[c] >= kMostTerms ? places++ : -1;
  }

  int64_t units() const { return stride_ / Unit<T>::kLanes; }

  // The sums of col[p] += terms[p] * w over `count` non-zeros. `w` is padded to whole units.
  template <int64_t held, class Index>
  NNMF_CUDA_INLINE void add(const T* terms, const Index* col, int64_t count, const T* w) const {
    using U = Unit<T>;
    typename U::Lanes in_registers[held == 0 ? 1 : held];
#pragma GCC unroll 4
    for (int64_t u = 0; u < held; ++u) in_registers[u] = U::load(w + u * U::kLanes);
    for (int64_t p = 0; p < count; ++p) {
      const int64_t column = col[p];
      const typename U::Lanes term = terms[p] - typename U::Lanes{};
      T* const to = sums_ + column * stride_;
      if constexpr (held > 0) {
#pragma GCC unroll 4
        for (int64_t u = 0; u < held; ++u)
          U::store(to + u * U::kLanes, U::load(to + u * U::kLanes) + term * in_registers[u]);
      } else {
        for (int64_t c = 0; c < stride_; c += U::kLanes)
          U::store(to + c, U::load(to + c) + term * U::load(w + c));
      }
      if (++terms_.data()[column] == 0) widen(column);
    }
  }

  // to[r * width + c] = the sums of `columns` columns from `column` on, which become zero.
  void take(int64_t column, int64_t columns, double* to, int64_t width) const {
    for (int64_t c = 0; c < columns; ++c) {
      T* const sums = sums_ + (column + c) * stride_;
      const int64_t place = place_.data()[column + c];
      for (int64_t r = 0; r < k_; ++r) to[r * width + c] = static_cast<double>(sums[r]);
      std::fill_n(sums, stride_, T{0});
      terms_.data()[column + c] = 0;
      if (place < 0) continue;
      double* const wide = wide_ + place * k_;
      for (int64_t r = 0; r < k_; ++r) to[r * width + c] += wide[r];
      std::fill_n(wide, k_, 0.0);
    }
  }

  void release() {
    sums_.release();
    wide_.release();
  }

 private:
  static int64_t places_of(int64_t n_features, const int64_t* counts) {
    return std::count_if(counts, counts + n_features,
                         [](int64_t count) { return count >= kMostTerms; });
  }

  [[gnu::noinline]] void widen(int64_t column) const {
    T* const sums = sums_ + column * stride_;
    double* const wide = wide_ + place_.data()[column] * k_;
    for (int64_t r = 0; r < k_; ++r) wide[r] += static_cast<double>(sums[r]);
    std::fill_n(sums, stride_, T{0});
  }

  int64_t k_, stride_;
  Scratch<T> sums_;
  Scratch<uint8_t> terms_;  // since a column's sums were widened
  Scratch<int64_t> place_;  // in `wide`, or -1
  Scratch<double> wide_;
};

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
