// ISA source (see isa.h): iterations of multiplicative updates or coordinate descent: new values
// from the sums, the halves of an iteration, a few rows of W or tiles of H at a time, and the
// iterations.
// clang-format off: each builds on those before it
#include "tiles.h"
#include "sums.h"
#include "shared_sums.h"
// clang-format on

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// New values of a block of one factor, [n_components][width]: a panel of W transposed, or a tile of
// H.

// What a block is updated from, besides its own values.
struct Sums {
  const double* numerator;    // [n_components][width]
  const double* denominator;  // the same, where the loss sums it
  const double* statistics;   // of the other factor: see statistics_size
};

// The other factor's components summed [k] for Kullback-Leibler, their inner products [k][k] for
// Frobenius; nothing where the denominator is a sum over W H.
template <Loss loss>
int64_t statistics_size(int64_t n_components) {
  if constexpr (loss == Loss::kKullbackLeibler) return n_components;
  if constexpr (loss == Loss::kFrobenius) return n_components * n_components;
  return 0;
}

// The rule of `updated` (problem.h), which serves CUDA, written so that the compiler vectorises
// it.
template <int64_t width, class T>
NNMF_CUDA_INLINE void multiply_row(T* values, const double* numerator, const double* denominator,
                                   const Update& update) {
  const UpdateRule& rule = update.rule;
  const T l1 = static_cast<T>(rule.l1_reg), l2 = static_cast<T>(rule.l2_reg);
  T ratio[width];
  for (int64_t c = 0; c < width; ++c) {
    const T bottom = static_cast<T>(denominator[c]) + l1 + l2 * values[c];
    ratio[c] = static_cast<T>(numerator[c] * update.scale) /
               (bottom == 0 ? static_cast<T>(kEpsilon) : bottom);
  }
  if (rule.gamma != 1)
    for (int64_t c = 0; c < width; ++c) ratio[c] = std::pow(ratio[c], static_cast<T>(rule.gamma));
  const T smallest = rule.clamp ? static_cast<T>(kClampBelow) : -std::numeric_limits<T>::infinity();
  for (int64_t c = 0; c < width; ++c) {
    const T value = values[c] * ratio[c];
    values[c] = value < smallest ? T{0} : value;
  }
}

// sum[c] = row . block[:][c]
template <int64_t width>
NNMF_CUDA_INLINE void multiply_block(const double* row, const double* block, int64_t n_components,
                                     double* sum) {
  for (int64_t c = 0; c < width; ++c) sum[c] = 0;
  for (int64_t s = 0; s < n_components; ++s)
    for (int64_t c = 0; c < width; ++c) sum[c] += row[s] * block[s * width + c];
}

template <Loss loss, int64_t width, class T>
void update_multiplicatively(T* values, const Sums& sums, const Update& update,
                             int64_t n_components, double* old) {
  double denominator[width];
  if constexpr (loss == Loss::kFrobenius)
    for (int64_t i = 0; i < n_components * width; ++i) old[i] = static_cast<double>(values[i]);
  for (int64_t r = update.n_fixed; r < n_components; ++r) {
    const double* bottom = denominator;
    if constexpr (kSumsDenominator<loss>) {
      bottom = sums.denominator + r * width;
    } else if constexpr (loss == Loss::kFrobenius) {
      multiply_block<width>(sums.statistics + r * n_components, old, n_components, denominator);
    } else {
      const double sum = sums.statistics[r];
      std::fill_n(denominator, width, sum == 0 ? update.zero_sum : sum);
    }
    multiply_row<width>(values + r * width, sums.numerator + r * width, bottom, update);
  }
}

// Coordinate descent on half the squared Frobenius norm, component by component, as scikit-learn's
// `cd` solver (sklearn/decomposition/_cdnmf_fast.pyx). A value goes to its minimum without a look
// at where it was: as a step from there, a minimum at 0 would be missed by the rounding of both.
template <int64_t width, class T>
void update_by_coordinates(T* values, const Sums& sums, const Update& update, int64_t n_components,
                           double* current) {
  const double l1 = update.rule.l1_reg, l2 = update.rule.l2_reg;
  double taken[width];  // by the other components
  for (int64_t i = 0; i < n_components * width; ++i) current[i] = static_cast<double>(values[i]);
  for (int64_t sweep = 0; sweep < update.n_inner; ++sweep) {
    for (int64_t r = update.n_fixed; r < n_components; ++r) {
      const double* gram = sums.statistics + r * n_components;
      const double curvature = gram[r] + l2;
      if (curvature == 0) continue;
      const double step = 1 / curvature;
      double* own = current + r * width;
      std::fill_n(own, width, 0.0);
      multiply_block<width>(gram, current, n_components, taken);
      for (int64_t c = 0; c < width; ++c) {
        const double left = sums.numerator[r * width + c] * update.scale - l1 - taken[c];
        own[c] = left < 0 ? 0 : left * step;
      }
    }
  }
  for (int64_t i = 0; i < n_components * width; ++i) values[i] = static_cast<T>(current[i]);
}

// `work`: n_components * width values.
template <Loss loss, int64_t width, class T>
void update_block(T* values, const Sums& sums, const Update& update, int64_t n_components,
                  double* work) {
  if constexpr (loss == Loss::kFrobenius)
    if (update.n_inner > 0)
      return update_by_coordinates<width>(values, sums, update, n_components, work);
  update_multiplicatively<loss, width>(values, sums, update, n_components, work);
}

constexpr int64_t kTaskRows = 32;  // rows of W that one task updates at most
static_assert(kTaskRows % kRows == 0);

// Updates a panel of W from its sums: `rows` rows from `row` on.
template <Loss loss, class T, class Data>
void update_panel(const Factorisation<T, Data>& f, const Sums& sums, const Update& update,
                  int64_t row, int64_t rows) {
  const int64_t k = f.n_components;
  const Scratch<T> block(k * kRows);
  const Scratch<double> work(k * kRows);
  for (int64_t r = 0; r < k; ++r)
    for (int64_t i = 0; i < kRows; ++i)
      block.data()[r * kRows + i] = i < rows ? f.W[(row + i) * k + r] : T{0};
  update_block<loss, kRows>(block.data(), sums, update, k, work.data());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t r = 0; r < k; ++r) f.W[(row + i) * k + r] = block.data()[r * kRows + i];
}

// Updates rows [begin, end) of W, `n_iter` times.
template <Loss loss, class T, class Data>
void update_rows(const Factorisation<T, Data>& f, const double* statistics, const Update& update,
                 int64_t n_iter, int64_t begin, int64_t end) {
  RowSums<loss, T, Data> sums(f, begin, end);
  for (int64_t iteration = 0; iteration < n_iter; ++iteration) {
    sums.compute(update.terms.as<T>());
    for (int64_t row = begin, panel = 0; row < end; row += kRows, ++panel)
      update_panel<loss>(f, {sums.numerator(panel), sums.denominator(panel), statistics}, update,
                         row, std::min(kRows, end - row));
  }
}

// The same for factorisations of one X, whose sums do not depend on W; `statistics` of one after
// the other.
template <class T, class Data>
void update_shared_rows(std::span<const Factorisation<T, Data>> batch, const double* statistics,
                        const Update& update, int64_t n_iter, int64_t begin, int64_t end) {
  constexpr Loss kLoss = Loss::kFrobenius;
  const int64_t size = statistics_size<kLoss>(batch.front().n_components);
  SharedRowSums<T, Data> sums(batch, begin, end);
  sums.compute();
  for (std::size_t b = 0; b < batch.size(); ++b)
    for (int64_t iteration = 0; iteration < n_iter; ++iteration)
      for (int64_t row = begin, panel = 0; row < end; row += kRows, ++panel)
        update_panel<kLoss>(batch[b], {sums.numerator(b, panel), nullptr, statistics + b * size},
                            update, row, std::min(kRows, end - row));
}

// Updates tiles [first, last) of H from their sums, which become zero.
template <Loss loss, class T, class Data>
void update_columns(const Factorisation<T, Data>& f, const double* statistics, const Update& update,
                    int64_t first, int64_t last) {
  Scratch<double> work(f.tile_size);
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t at = tile * f.tile_size;
    const Sums sums{f.numerator + at, f.denominator + at, statistics};
    T* values = f.tiles + at;
    update_block<loss, kColumns<T>>(values, sums, update, f.n_components, work.data());
    const int64_t columns = f.columns_of(tile);
    for (int64_t r = 0; columns < kColumns<T> && r < f.n_components; ++r)
      std::fill_n(values + r * kColumns<T> + columns, kColumns<T> - columns, T{0});
    std::fill_n(f.numerator + at, f.tile_size, 0.0);
    if constexpr (kSumsDenominator<loss>) std::fill_n(f.denominator + at, f.tile_size, 0.0);
  }
}

constexpr int64_t kStatisticsRows = 4096;  // rows of W whose statistics one task sums
constexpr int64_t kStatisticsTiles = 16;   // tiles of H whose statistics one task sums
constexpr int64_t kBlockTiles = 48;        // tiles of H that one task visits at most
constexpr int64_t kChunkBytes = 16 << 20;  // of X: rows that both halves visit while it is cached

// Adds the statistics of a block [n_components][width] of a factor.
template <Loss loss, int64_t width, class T>
void add_statistics(const T* block, int64_t n_components, double* wide, double* statistics) {
  if constexpr (loss == Loss::kKullbackLeibler) {
    for (int64_t r = 0; r < n_components; ++r) {
      double sum = 0;
      for (int64_t c = 0; c < width; ++c) sum += static_cast<double>(block[r * width + c]);
      statistics[r] += sum;
    }
  } else {
    using V = Vector<double>;
    for (int64_t i = 0; i < n_components * width; ++i) wide[i] = static_cast<double>(block[i]);
    for (int64_t r = 0; r < n_components; ++r) {
      for (int64_t s = 0; s <= r; ++s) {
        typename V::Lanes sum{};
        for (int64_t c = 0; c < width; c += V::kLanes)
          sum += V::load(wide + r * width + c) * V::load(wide + s * width + c);
        statistics[r * n_components + s] += V::sum(sum);
      }
    }
  }
}

// result = the parts added up in their order, for Frobenius mirrored to a full matrix.
template <Loss loss>
void gather_parts(const double* parts, int64_t n_parts, int64_t n_components, double* result) {
  const int64_t size = statistics_size<loss>(n_components);
  std::fill_n(result, size, 0.0);
  for (int64_t part = 0; part < n_parts; ++part)
    for (int64_t i = 0; i < size; ++i) result[i] += parts[part * size + i];
  if constexpr (loss == Loss::kFrobenius)
    for (int64_t r = 0; r < n_components; ++r)
      for (int64_t s = 0; s < r; ++s) result[s * n_components + r] = result[r * n_components + s];
}

template <Loss loss, class T, class Data>
void statistics_of_H(const Factorisation<T, Data>& f, double* result) {
  const int64_t k = f.n_components, size = statistics_size<loss>(k);
  if (size == 0) return;
  const int64_t n_parts = blocks_of(f.n_tiles, kStatisticsTiles);
  const Scratch<double> parts(n_parts * size);
  parts.fill(0);
  parallel_for_each(n_parts, [&](int64_t part) {
    const Scratch<double> wide(f.tile_size);
    const int64_t last = std::min((part + 1) * kStatisticsTiles, f.n_tiles);
    for (int64_t tile = part * kStatisticsTiles; tile < last; ++tile)
      add_statistics<loss, kColumns<T>>(f.tiles + tile * f.tile_size, k, wide.data(),
                                        parts + part * size);
  });
  gather_parts<loss>(parts.data(), n_parts, k, result);
}

template <Loss loss, class T, class Data>
void statistics_of_W(const Factorisation<T, Data>& f, double* result) {
  const int64_t k = f.n_components, size = statistics_size<loss>(k);
  if (size == 0) return;
  const int64_t n_parts = blocks_of(f.n_samples, kStatisticsRows);
  const Scratch<double> parts(n_parts * size);
  parts.fill(0);
  parallel_for_each(n_parts, [&](int64_t part) {
    double* sums = parts + part * size;
    const int64_t end = std::min((part + 1) * kStatisticsRows, f.n_samples);
    for (int64_t row = part * kStatisticsRows; row < end; ++row) {
      const T* w = f.W + row * k;
      if constexpr (loss == Loss::kKullbackLeibler) {
        for (int64_t r = 0; r < k; ++r) sums[r] += static_cast<double>(w[r]);
      } else {
        for (int64_t r = 0; r < k; ++r)
          for (int64_t s = 0; s <= r; ++s)
            sums[r * k + s] += static_cast<double>(w[r]) * static_cast<double>(w[s]);
      }
    }
  });
  gather_parts<loss>(parts.data(), n_parts, k, result);
}

// Rows of X that W's half and then H's half visit, one after the other. A multiple of kFlushRows:
// no sum depends on it.
template <class Data>
int64_t chunk_rows(int64_t n_features) {
  const int64_t cached = kChunkBytes / std::max<int64_t>(1, n_features * int64_t{sizeof(Data)});
  const int64_t busy = 4 * kTaskRows * torch::stable::get_num_threads();
  return blocks_of(std::max<int64_t>({1, cached, busy}), kFlushRows) * kFlushRows;
}

// Rows of W that one task updates, of `n_rows`: few enough to keep all threads busy. No sum depends
// on it.
inline int64_t task_rows(int64_t n_rows) {
  const int64_t busy = n_rows / (4 * int64_t{torch::stable::get_num_threads()});
  return std::clamp<int64_t>(busy / kRows * kRows, kTaskRows / 2, kTaskRows);
}

// Tiles of H that one task sums or updates: few enough to keep all threads busy. No sum depends on
// it.
inline int64_t task_tiles(int64_t n_tiles) {
  const int64_t busy = blocks_of(n_tiles, 4 * int64_t{torch::stable::get_num_threads()});
  return std::clamp<int64_t>(busy, 1, kBlockTiles);
}

// The factorisations of a batch that share one X, or a single one.
template <Loss loss, class T, class Data>
void iterate_together(std::vector<Factorisation<T, Data>>& batch, const Update& update_W,
                      const Update& update_H, int64_t n_iter, bool updates_H) {
  const Factorisation<T, Data>& any = batch.front();
  const int64_t k = any.n_components, size = statistics_size<loss>(k);
  const int64_t n_problems = static_cast<int64_t>(batch.size());
  // Factorisations whose sums are made together.
  const int64_t together = loss == Loss::kFrobenius ? sharing_factorisations(k) : 1;
  const int64_t n_groups = blocks_of(n_problems, together);
  const bool shares_sums = loss == Loss::kFrobenius && n_problems > 1;
  const auto group_of = [&](int64_t group) {
    const int64_t first = group * together, count = std::min(together, n_problems - first);
    return std::span<const Factorisation<T, Data>>(&batch[first], count);
  };
  const Scratch<double> statistics(n_problems * size);
  const auto for_tiles = [&](int64_t count, int64_t block, const auto& f) {
    const int64_t n_blocks = blocks_of(any.n_tiles, block);
    parallel_for_each(count * n_blocks, [&](int64_t task) {
      const int64_t first = task % n_blocks * block;
      f(task / n_blocks, first, std::min(first + block, any.n_tiles));
    });
  };
  const auto for_rows = [&](int64_t begin, int64_t end, int64_t repeats) {
    const int64_t rows = task_rows(end - begin), n_tasks = blocks_of(end - begin, rows);
    parallel_for_each(n_groups * n_tasks, [&](int64_t task) {
      const int64_t group = task / n_tasks, first = begin + task % n_tasks * rows;
      const int64_t last = std::min(first + rows, end);
      const double* s = statistics + group * together * size;
      if constexpr (loss == Loss::kFrobenius)
        if (shares_sums)
          return update_shared_rows(group_of(group), s, update_W, repeats, first, last);
      update_rows<loss>(batch[group], s, update_W, repeats, first, last);
    });
  };
  const auto sum_columns = [&](int64_t begin, int64_t end) {
    if constexpr (loss == Loss::kFrobenius)
      if (shares_sums)
        return for_tiles(n_groups, kChunkTiles, [&](int64_t group, int64_t first, int64_t last) {
          SharedColumnSums<T, Data>(group_of(group), first, last).add_rows(begin, end);
        });
    for_tiles(n_problems, task_tiles(any.n_tiles), [&](int64_t b, int64_t first, int64_t last) {
      ColumnSums<loss, T, Data>(batch[b], first, last, update_H.terms.as<T>()).add_rows(begin, end);
    });
  };

  for (int64_t b = 0; b < n_problems; ++b) statistics_of_H<loss>(batch[b], statistics + b * size);
  if (!updates_H) return for_rows(0, any.n_samples, n_iter);
  for (const Factorisation<T, Data>& f : batch) {
    f.numerator.fill(0);
    f.denominator.fill(0);
  }
  // What several factorisations share is read seldom enough from afar, the factors are not.
  const int64_t step = shares_sums ? any.n_samples : chunk_rows<Data>(any.n_features);
  for (int64_t iteration = 0; iteration < n_iter; ++iteration) {
    for (int64_t begin = 0; begin < any.n_samples; begin += step) {
      const int64_t end = std::min(begin + step, any.n_samples);
      for_rows(begin, end, 1);
      sum_columns(begin, end);
    }
    for (int64_t b = 0; b < n_problems; ++b) statistics_of_W<loss>(batch[b], statistics + b * size);
    for_tiles(n_problems, task_tiles(any.n_tiles), [&](int64_t b, int64_t first, int64_t last) {
      update_columns<loss>(batch[b], statistics + b * size, update_H, first, last);
    });
    for (int64_t b = 0; b < n_problems; ++b) statistics_of_H<loss>(batch[b], statistics + b * size);
  }
}

// W and H [batch, ...] become what is made of p.W and p.H.
template <Loss loss, class T, class Data>
void iterate(const FactorParams<T, Data>& p, const Update& update_W, const Update& update_H,
             int64_t n_iter, bool updates_H, T* W, T* H) {
  const Shape& s = p.shape;
  const int64_t size_W = s.n_samples * s.n_components, size_H = s.n_components * s.n_features;
  std::copy_n(p.W, s.batch * size_W, W);
  const auto run = [&](int64_t begin, int64_t end) {
    std::vector<int64_t> problems;
    for (int64_t b = begin; b < end; ++b) {
      const bool active = p.active == nullptr || p.active[b];
      if (active) problems.push_back(b);
      if (!active || !updates_H) std::copy_n(p.H + b * size_H, size_H, H + b * size_H);
    }
    if (problems.empty()) return;
    std::vector<Factorisation<T, Data>> batch;
    batch.reserve(problems.size());
    for (const int64_t b : problems)
      batch.emplace_back(p.X + b * s.x_stride, s.x_row_stride, W + b * size_W, p.H + b * size_H, s,
                         kSumsDenominator<loss>);
    iterate_together<loss>(batch, update_W, update_H, n_iter, updates_H);
    if (!updates_H) return;
    // Until here nobody has touched the memory of the new H: the sums make room for it.
    for (Factorisation<T, Data>& f : batch) f.release_sums();
    for (std::size_t i = 0; i < problems.size(); ++i) batch[i].unpack(H + problems[i] * size_H);
  };
  // Large problems that share X visit it together.
  if (s.x_stride == 0 && !is_small<Data>(s))
    run(0, s.batch);
  else
    for_each_problem<Data>(s, [&](int64_t b) { run(b, b + 1); });
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
