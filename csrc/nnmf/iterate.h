// ISA source (see foreach_isa.h): iterations of multiplicative updates or coordinate descent.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

constexpr int64_t kStatisticsRows = 4096;  // rows of W whose statistics one task sums
constexpr int64_t kBlockTiles = 16;        // tiles of H that one task visits at most
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
void statistics_of_H(const Factors<T, Data>& f, double* result) {
  const int64_t k = f.n_components, size = statistics_size<loss>(k);
  if (size == 0) return;
  const int64_t n_parts = blocks_of(f.n_tiles, kBlockTiles);
  const Scratch<double> parts(n_parts * size);
  parts.fill(0);
  parallel_for_each(n_parts, [&](int64_t part) {
    const Scratch<double> wide(f.tile_size);
    const int64_t last = std::min((part + 1) * kBlockTiles, f.n_tiles);
    for (int64_t tile = part * kBlockTiles; tile < last; ++tile)
      add_statistics<loss, kColumns<T>>(f.tiles + tile * f.tile_size, k, wide.data(),
                                        parts + part * size);
  });
  gather_parts<loss>(parts.data(), n_parts, k, result);
}

template <Loss loss, class T, class Data>
void statistics_of_W(const Factors<T, Data>& f, double* result) {
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

// Tiles of H that one task sums or updates: few enough to keep all threads busy. No sum depends on
// it.
inline int64_t task_tiles(int64_t n_tiles) {
  const int64_t busy = n_tiles / (4 * int64_t{torch::stable::get_num_threads()});
  return std::clamp<int64_t>(busy, 1, kBlockTiles);
}

// The factorisations of a batch that share one X, or a single one.
template <Loss loss, class T, class Data>
void iterate_together(std::vector<Factors<T, Data>>& batch, const Update& update_W,
                      const Update& update_H, int64_t n_iter, bool updates_H) {
  const Factors<T, Data>& any = batch.front();
  const int64_t k = any.n_components, size = statistics_size<loss>(k);
  const int64_t n_problems = static_cast<int64_t>(batch.size());
  const int64_t block = task_tiles(any.n_tiles), n_blocks = blocks_of(any.n_tiles, block);
  const Scratch<double> statistics(n_problems * size);
  const auto for_tiles = [&](const auto& f) {
    parallel_for_each(n_problems * n_blocks, [&](int64_t task) {
      const int64_t first = task % n_blocks * block;
      f(task / n_blocks, first, std::min(first + block, any.n_tiles));
    });
  };
  const auto for_rows = [&](int64_t begin, int64_t end, int64_t repeats) {
    const int64_t n_tasks = blocks_of(end - begin, kTaskRows);
    parallel_for_each(n_problems * n_tasks, [&](int64_t task) {
      const int64_t b = task / n_tasks, first = begin + task % n_tasks * kTaskRows;
      update_rows<loss>(batch[b], statistics + b * size, update_W, repeats, first,
                        std::min(first + kTaskRows, end));
    });
  };

  for (int64_t b = 0; b < n_problems; ++b) statistics_of_H<loss>(batch[b], statistics + b * size);
  if (!updates_H) return for_rows(0, any.n_samples, n_iter);
  for (const Factors<T, Data>& f : batch) {
    f.numerator.fill(0);
    f.denominator.fill(0);
  }
  const int64_t step = chunk_rows<Data>(any.n_features);
  for (int64_t iteration = 0; iteration < n_iter; ++iteration) {
    for (int64_t begin = 0; begin < any.n_samples; begin += step) {
      const int64_t end = std::min(begin + step, any.n_samples);
      for_rows(begin, end, 1);
      for_tiles([&](int64_t b, int64_t first, int64_t last) {
        ColumnSums<loss, T, Data>(batch[b], first, last, static_cast<T>(update_H.beta_loss))
            .add_rows(begin, end);
      });
    }
    for (int64_t b = 0; b < n_problems; ++b) statistics_of_W<loss>(batch[b], statistics + b * size);
    for_tiles([&](int64_t b, int64_t first, int64_t last) {
      update_columns<loss>(batch[b], statistics + b * size, update_H, first, last);
    });
    for (int64_t b = 0; b < n_problems; ++b) statistics_of_H<loss>(batch[b], statistics + b * size);
  }
}

// W and H [batch, ...] are updated where they are, those of the active problems: all, if that is
// null.
template <Loss loss, class T, class Data>
void iterate(const Data* X, T* W, T* H, const Shape& s, const Update& update_W,
             const Update& update_H, int64_t n_iter, bool updates_H, const bool* active) {
  const auto run = [&](int64_t begin, int64_t end) {
    std::vector<int64_t> problems;
    for (int64_t b = begin; b < end; ++b)
      if (active == nullptr || active[b]) problems.push_back(b);
    if (problems.empty()) return;
    std::vector<Factors<T, Data>> batch;
    batch.reserve(problems.size());
    for (const int64_t b : problems) {
      batch.emplace_back(X + b * s.x_stride, s.x_row_stride, W + b * s.n_samples * s.n_components,
                         H + b * s.n_components * s.n_features, s, kSumsDenominator<loss>);
    }
    iterate_together<loss>(batch, update_W, update_H, n_iter, updates_H);
    for (std::size_t i = 0; updates_H && i < problems.size(); ++i)
      batch[i].unpack(H + problems[i] * s.n_components * s.n_features);
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
