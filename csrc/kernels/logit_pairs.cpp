// contract: of two models over the same labels, for each row: both log normalisers, E_p z1, E_q z2, E_p delta,
//           E_q delta, mean, centred square, L1 and maximum of delta = z1 - z2, both tops, target logits; with
//           divergences JS and TV. Defined by reference.logit_pairs.
// formula: z = cap tanh((h w^T + b) / cap) / temperature; sums about running maxima, merged in order of labels.
// cost: 2 N V (d1 + d2) flops, twice that for divergences of a workspace too small; w is read once for every 16 MiB of
//       packed rows, or for the rows that fill the workspace. Packed rows, per thread a block of packed labels and two
//       tiles, and the workspace. No N x V array.
// numerics: products, exponentials and sums over one row of a tile in fp32, for fp64 input in fp64; beyond in fp64. Of
//           KL, only differences from the larger logits are summed. Logits and biases of -inf have probability 0; what
//           else is not finite raises, or reaches the sums of its rows. N >= 0.
// why not: KL from two log-softmaxes; their difference loses what p and q have in common.
#include "kernels/logit_pairs.hpp"

namespace gramless {
namespace {

// arrays of LogitMemory: three for each model, and what follows
enum { kP = 0, kQ = 3, kDeltaP = 6, kDeltaQ, kMean, kSquare, kAbs, kMost, kCounted, kArrays };

LogitPairSums pair_sums(LogitMemory& memory, std::int64_t row) {
    return {memory.sums(kP, 0, row),      memory.sums(kQ, 1, row),    memory.numbers(kDeltaP, row),
            memory.numbers(kDeltaQ, row), memory.numbers(kMean, row), memory.numbers(kSquare, row),
            memory.numbers(kAbs, row),    memory.numbers(kMost, row), memory.numbers(kCounted, row)};
}

template <class T>
class LogitPairs {
  public:
    // with the logits of so many rows kept
    LogitPairs(LogitPairsTask& task, std::int64_t kept_rows)
        : task_(task),
          pass_({&task.models[0], &task.models[1]}, task.choice,
                kept_rows > 0 ? kept_rows : std::numeric_limits<std::int64_t>::max()),
          partials_(static_cast<std::size_t>(pass_.threads())) {
        if (kept_rows > 0)
            for (AlignedBuffer<T>& kept : kept_)
                kept = AlignedBuffer<T>(pass_.cut().block_rows * pass_.cut().labels);
    }

    // rows whose logits a workspace holds, if that saves time: w is packed again for each block of them
    static std::int64_t kept_rows(const LogitPairsTask& task) {
        constexpr std::int64_t kLeastRows = 64;
        const std::int64_t rows = task.choice.rows_of(task.models[0]), labels = task.choice.labels_of(task.models[0]);
        const std::int64_t held = std::min(rows, task.workspace / (2 * labels * std::int64_t{sizeof(T)}));
        return task.divergences && (held >= rows || held >= kLeastRows) ? held : 0;
    }

    void sums() {
        const std::int64_t most = pass_.cut().block_rows;
        LogitMemory total(most, kArrays, 2);
        pass_.each_block([&](std::int64_t first, std::int64_t rows) {
            total.clear();
            total.start(kP);
            total.start(kQ);
            pass_.each_tile(
                rows,
                [&](std::size_t worker, std::int64_t row, std::int64_t count, const Slab& slab,
                    const LogitRows<T>* logits) {
                    LogitMemory& mine = partials_[worker];
                    if (!mine) mine = LogitMemory(most, kArrays, 2);
                    ops_.pair_sums(logits[0], logits[1], count, slab.end - slab.begin, slab.begin,
                                   pair_sums(mine, row));
                    for (std::size_t m = 0; m < 2; ++m) {
                        pass_.take_targets(logits[m], first + row, count, slab, task_.out.target[m]);
                        if (kept_[m]) keep(m, row, count, slab, logits[m]);
                    }
                },
                [&](std::size_t worker, const Slab&) {
                    tile_kernels().logit_merge.pair_sums(pair_sums(partials_[worker], 0), pair_sums(total, 0), rows);
                });
            finish(first, rows, pair_sums(total, 0));
            if (kept_[0]) from_kept(first, rows);
        });
    }

    void divergences() {
        const std::int64_t most = pass_.cut().block_rows;
        pass_.each_block([&](std::int64_t first, std::int64_t rows) {
            pass_.each_tile(
                rows,
                [&](std::size_t worker, std::int64_t row, std::int64_t count, const Slab& slab,
                    const LogitRows<T>* logits) {
                    LogitMemory& mine = partials_[worker];
                    if (!mine) mine = LogitMemory(most, 2, 0);
                    ops_.divergences(logits[0], logits[1], task_.out.lse[0] + first + row,
                                     task_.out.lse[1] + first + row, count, slab.end - slab.begin, mine.numbers(0, row),
                                     mine.numbers(1, row));
                },
                [&](std::size_t worker, const Slab&) {
                    for (std::int64_t r = 0; r < rows; ++r) {
                        task_.js[first + r] += *partials_[worker].numbers(0, r);
                        task_.tv[first + r] += *partials_[worker].numbers(1, r);
                    }
                });
            for (std::int64_t r = first; r < first + rows && task_.choice.check_finite; ++r)
                if (!std::isfinite(task_.js[r] + task_.tv[r])) pass_.refuse(r);
        });
    }

  private:
    void keep(std::size_t m, std::int64_t row, std::int64_t rows, const Slab& slab, const LogitRows<T>& logits) {
        for (std::int64_t r = 0; r < rows; ++r)
            std::copy_n(logits.data + r * logits.stride, slab.end - slab.begin,
                        kept_[m].data() + (row + r) * pass_.cut().labels + slab.begin);
    }

    void finish(std::int64_t first, std::int64_t rows, const LogitPairSums& sums) {
        const LogitPairsTarget& out = task_.out;
        const ModelSums* const models[2] = {&sums.p, &sums.q};
        const double* const deltas[2] = {sums.delta_p, sums.delta_q};
        for (std::int64_t r = 0; r < rows; ++r) {
            const std::int64_t at = first + r;
            double all = 0;
            for (std::size_t m = 0; m < 2; ++m) {
                const ModelSums& of = *models[m];
                out.lse[m][at] = of.largest[r] + std::log(of.sum[r]);
                out.mean[m][at] = of.weighted[r] / of.sum[r];
                out.delta[m][at] = deltas[m][r] / of.sum[r];
                out.top_logit[m][at] = of.largest[r];
                out.top[m][at] = task_.choice.label_at(of.top[r]);
                all += out.lse[m][at] + out.mean[m][at];
            }
            out.delta_mean[at] = sums.mean[r];
            out.delta_square[at] = sums.square[r];
            out.delta_abs[at] = sums.abs[r];
            out.delta_max[at] = sums.most[r];
            out.counted[at] = sums.counted[r];
            // a row of NaN, or of no label that can be
            const bool lost[2] = {!(sums.p.sum[r] > 0), !(sums.q.sum[r] > 0)};
            if (lost[0] || lost[1]) lose(at, lost[0], lost[1]);
            // of a label that only one model can predict, the sums of delta are infinite, but never NaN
            const bool odd = std::isnan(sums.square[r]) || std::isnan(sums.abs[r]) || std::isnan(out.delta[0][at]) ||
                             std::isnan(out.delta[1][at]) ||
                             (std::isinf(sums.square[r]) && std::isfinite(sums.most[r]));
            if (task_.choice.check_finite && (odd || !std::isfinite(all))) pass_.refuse(at);
        }
    }

    // a row that nothing is known of, of either model or both
    void lose(std::int64_t row, bool p, bool q) {
        const LogitPairsTarget& out = task_.out;
        for (std::size_t m = 0; m < 2; ++m) {
            out.delta[m][row] = std::nan("");
            if (m == 0 ? p : q)
                out.lse[m][row] = out.mean[m][row] = out.top_logit[m][row] = out.target[m][row] = std::nan("");
        }
        out.delta_mean[row] = out.delta_square[row] = out.delta_abs[row] = out.delta_max[row] = std::nan("");
        out.counted[row] = static_cast<double>(pass_.cut().labels);
    }

    void from_kept(std::int64_t first, std::int64_t rows) {
        const std::int64_t labels = pass_.cut().labels;
        parallel_for(
            rows, pass_.threads(),
            [&](std::int64_t row, int) {
                const std::int64_t at = first + row;
                for (std::int64_t begin = 0; begin < labels; begin += kLogitTile) {
                    LogitRows<T> logits[2];
                    for (std::size_t m = 0; m < 2; ++m)
                        logits[m] = {kept_[m].data() + row * labels + begin, labels, true};
                    double js = 0, tv = 0;
                    ops_.divergences(logits[0], logits[1], task_.out.lse[0] + at, task_.out.lse[1] + at, 1,
                                     std::min(kLogitTile, labels - begin), &js, &tv);
                    task_.js[at] += js;
                    task_.tv[at] += tv;
                }
            },
            task_.choice.poll);
    }

    LogitPairsTask& task_;
    const LogitOps<T>& ops_ = logit_ops<T>(tile_kernels());
    LogitPass<T> pass_;
    std::vector<LogitMemory> partials_;
    AlignedBuffer<T> kept_[2];
};

template <class T>
void run(LogitPairsTask& task) {
    const std::int64_t kept = LogitPairs<T>::kept_rows(task);
    LogitPairs<T>(task, kept).sums();
    if (task.divergences && kept == 0) LogitPairs<T>(task, 0).divergences();
}

}  // namespace

void compute_logit_pairs(LogitPairsTask& task) {
    task.in_double ? run<double>(task) : run<float>(task);
}

void compute_logit_divergences(LogitPairsTask& task) {
    task.in_double ? LogitPairs<double>(task, 0).divergences() : LogitPairs<float>(task, 0).divergences();
}

}  // namespace gramless
