// ISA source (see isa.h): coordinate descent where entries of X have weights. Each row then has a
// Gram matrix of its own, which is never formed: what is left of a row, V (X - W H), is at hand and
// changes with each coordinate. Needs weights.h.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// V (X - W H) and V, one tile.
template <class T, class Data>
[[gnu::noinline]] void form_residual(const Panel<T, Data>& p, const TileWeights<T>& weights,
                                     const T* right, int64_t n_components, T* residual, T* values,
                                     int64_t stride) {
  using V = Vector<T>;
  typename V::Lanes wh[kRows][kVectors];
  multiply(p.left.data, p.left.stride, right, n_components, wh);
  const T unit = sizeof(Data) == 1 ? T{1} / T{255} : T{1};
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t c = v * V::kLanes;
      const typename V::Lanes left = unit * V::load(p.x + i * p.x_stride + c) - wh[i][v];
      const typename V::Lanes one = V::broadcast(T{1});
      const bool bits = weights.values == nullptr;
      V::store(residual + i * stride + c,
               bits ? weighted<true>(left, weights, i, c) : weighted<false>(left, weights, i, c));
      V::store(values + i * stride + c,
               bits ? weighted<true>(one, weights, i, c) : weighted<false>(one, weights, i, c));
    }
  }
}

// Where a coordinate goes from `own`, by what is left and how curved it is.
NNMF_CUDA_INLINE double descended(double own, double left, double curvature, const Update& update) {
  const double whole = curvature + update.rule.l2_reg;
  if (whole == 0) return own;
  const double moved = own + (left - update.rule.l1_reg - update.rule.l2_reg * own) / whole;
  return moved < 0 ? 0 : moved;
}

// Sums of a row of what is left with a component, and of its weights with the component's squares.
struct Slope {
  double left, curvature;
};

// residual -= step * values * component `before`; then its sums with component `now`.
template <class T>
[[gnu::noinline]] Slope step_row(T* residual, const T* values, const T* tiles, int64_t tile_size,
                                 int64_t n_tiles, int64_t before, T step, int64_t now) {
  using V = Vector<T>;
  Slope sum{0, 0};
  const typename V::Lanes moved = V::broadcast(step);
  for (int64_t first = 0; first < n_tiles; first += kFlushTiles) {
    typename V::Lanes left[kVectors] = {}, curvature[kVectors] = {};
    for (int64_t tile = first; tile < std::min(first + kFlushTiles, n_tiles); ++tile) {
      const T* right = tiles + tile * tile_size;
#pragma GCC unroll 3
      for (int64_t v = 0; v < kVectors; ++v) {
        const int64_t c = v * V::kLanes, at = tile * kColumns<T> + c;
        const typename V::Lanes value = V::load(values + at);
        const typename V::Lanes old = V::load(right + before * kColumns<T> + c);
        const typename V::Lanes h = V::load(right + now * kColumns<T> + c);
        const typename V::Lanes rest = V::load(residual + at) - moved * value * old;
        V::store(residual + at, rest);
        left[v] += rest * h;
        curvature[v] += value * h * h;
      }
    }
    for (int64_t v = 0; v < kVectors; ++v) {
      sum.left += static_cast<double>(V::sum(left[v]));
      sum.curvature += static_cast<double>(V::sum(curvature[v]));
    }
  }
  return sum;
}

// Sweeps over rows [begin, end) of W, at most kRows.
template <class T, class Data>
void descend_rows(const Factorisation<T, Data>& f, const Weights<T>& weights, const Update& update,
                  int64_t begin, int64_t end) {
  const int64_t k = f.n_components, width = f.n_tiles * kColumns<T>, rows = end - begin;
  const Scratch<T> residual(kRows * width), values(kRows * width);
  const Scratch<T> padded(kRows * k), weights_edge(kRows * kColumns<T>);
  const Scratch<Data> edge(kRows * kColumns<T>);
  const Left<T> left = left_of(f, begin, rows, padded.data());
  for (int64_t tile = 0; tile < f.n_tiles; ++tile) {
    const int64_t c = tile * kColumns<T>;
    form_residual(panel_of(f, left, begin, rows, tile, 0, edge.data()),
                  weights_of(weights, f, begin, rows, tile, weights_edge.data()),
                  f.tiles + tile * f.tile_size, k, residual + c, values + c, width);
  }
  for (int64_t i = 0; i < rows; ++i) {
    T* w = f.W + (begin + i) * k;
    int64_t before = 0;
    T step = 0;
    for (int64_t sweep = 0; sweep < update.n_inner; ++sweep)
      for (int64_t t = update.n_fixed; t < k; ++t) {
        const Slope slope = step_row(residual + i * width, values + i * width, f.tiles.data(),
                                     f.tile_size, f.n_tiles, before, step, t);
        const double own = static_cast<double>(w[t]);
        const T moved = static_cast<T>(descended(own, slope.left, slope.curvature, update));
        step = moved - w[t];
        w[t] = moved;
        before = t;
      }
  }
}

// residual[i] -= step * w_before[i] * values[i] over n_rows rows of a tile; left and curvature +=
// the sums with w_now.
template <class T>
[[gnu::noinline]] void step_tile(T* residual, const T* values, int64_t n_rows, const T* w_before,
                                 const T* step, const T* w_now, double* left, double* curvature) {
  using V = Vector<T>;
  for (int64_t first = 0; first < n_rows; first += kFlushRows) {
    typename V::Lanes sum[kVectors] = {}, squares[kVectors] = {};
    for (int64_t i = first; i < std::min(first + kFlushRows, n_rows); ++i) {
      const typename V::Lanes old = V::broadcast(w_before[i]), w = V::broadcast(w_now[i]);
#pragma GCC unroll 3
      for (int64_t v = 0; v < kVectors; ++v) {
        const int64_t at = i * kColumns<T> + v * V::kLanes;
        const typename V::Lanes value = V::load(values + at);
        const typename V::Lanes rest =
            V::load(residual + at) - V::load(step + v * V::kLanes) * old * value;
        V::store(residual + at, rest);
        sum[v] += w * rest;
        squares[v] += w * w * value;
      }
    }
    for (int64_t v = 0; v < kVectors; ++v) {
      T lanes[2][V::kLanes];
      V::store(lanes[0], sum[v]);
      V::store(lanes[1], squares[v]);
      for (int64_t l = 0; l < V::kLanes; ++l) {
        left[v * V::kLanes + l] += static_cast<double>(lanes[0][l]);
        curvature[v * V::kLanes + l] += static_cast<double>(lanes[1][l]);
      }
    }
  }
}

// Sweeps over a tile of H; `transposed` is W^T [n_components, n_samples].
template <class T, class Data>
void descend_tile(const Factorisation<T, Data>& f, const Weights<T>& weights, const T* transposed,
                  const Update& update, int64_t tile) {
  const int64_t k = f.n_components, n = f.n_samples, columns = f.columns_of(tile);
  const int64_t padded_rows = blocks_of(n, kRows) * kRows;
  const Scratch<T> residual(padded_rows * kColumns<T>), values(padded_rows * kColumns<T>);
  const Scratch<T> padded(kRows * k), weights_edge(kRows * kColumns<T>);
  const Scratch<Data> edge(kRows * kColumns<T>);
  T* h = f.tiles + tile * f.tile_size;
  for (int64_t row = 0; row < n; row += kRows) {
    const int64_t rows = std::min(kRows, n - row);
    const Left<T> left = left_of(f, row, rows, padded.data());
    form_residual(panel_of(f, left, row, rows, tile, 0, edge.data()),
                  weights_of(weights, f, row, rows, tile, weights_edge.data()), h, k,
                  residual + row * kColumns<T>, values + row * kColumns<T>, kColumns<T>);
  }
  int64_t before = 0;
  T step[kColumns<T>] = {};
  for (int64_t sweep = 0; sweep < update.n_inner; ++sweep)
    for (int64_t t = update.n_fixed; t < k; ++t) {
      double left[kColumns<T>] = {}, curvature[kColumns<T>] = {};
      step_tile(residual.data(), values.data(), n, transposed + before * n, step,
                transposed + t * n, left, curvature);
      T* own = h + t * kColumns<T>;
      for (int64_t c = 0; c < columns; ++c) {
        const T moved =
            static_cast<T>(descended(static_cast<double>(own[c]), left[c], curvature[c], update));
        step[c] = moved - own[c];
        own[c] = moved;
      }
      before = t;
    }
}

// One factorisation.
template <class T, class Data>
void descend(const Factorisation<T, Data>& f, const Weights<T>& weights, const Update& update_W,
             const Update& update_H, int64_t n_iter, bool updates_H) {
  const int64_t k = f.n_components, n = f.n_samples;
  const Scratch<T> transposed(updates_H ? n * k : 0);
  for (int64_t iteration = 0; iteration < n_iter; ++iteration) {
    parallel_for_each(blocks_of(n, kRows), [&](int64_t panel) {
      descend_rows(f, weights, update_W, panel * kRows, std::min((panel + 1) * kRows, n));
    });
    if (!updates_H) continue;
    parallel_for_each(k, [&](int64_t t) {
      for (int64_t i = 0; i < n; ++i) transposed.data()[t * n + i] = f.W[i * k + t];
    });
    parallel_for_each(f.n_tiles, [&](int64_t tile) {
      descend_tile(f, weights, transposed.data(), update_H, tile);
    });
  }
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
