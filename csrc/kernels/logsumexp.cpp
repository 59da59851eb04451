// contract: lse z, E_p z, lse 2z, the largest logit and where, and a target logit, for each row. Defined by
//           reference.logsumexp.
// formula: z = cap tanh((h w^T + b) / cap) / temperature; sums about the running maximum, merged in order of labels.
// cost: 2 N V d flops, one read of w for every 16 MiB of packed rows; packed rows, per thread a block of packed labels
//       and a tile of kLogitTile^2. No N x V array.
// numerics: products, exponentials and sums over one row of a tile in fp32, for fp64 input in fp64; beyond in fp64.
//           Logits and biases of -inf have probability 0; what else is not finite raises, or reaches the sums of its
//           rows. N >= 0.
// why not: one thread per block of rows, each with all labels; w would be packed once per block.
#include "kernels/logsumexp.hpp"

namespace gramless {
namespace {

// arrays of LogitMemory: three of the model, and what follows
enum { kModel = 0, kSquares = 3, kCounted, kArrays };

LogitSums sums_at(LogitMemory& memory, std::int64_t row) {
    return {memory.sums(kModel, 0, row), memory.numbers(kSquares, row), memory.numbers(kCounted, row)};
}

template <class T>
void run(LogsumexpTask& task) {
    LogitPass<T> pass({&task.model}, task.choice, std::numeric_limits<std::int64_t>::max());
    const std::int64_t most = pass.cut().block_rows;
    std::vector<LogitMemory> partials(static_cast<std::size_t>(pass.threads()));
    LogitMemory total(most, kArrays, 1);
    const TileKernels& kernels = tile_kernels();
    const LogsumexpTarget& out = task.out;
    pass.each_block([&](std::int64_t first, std::int64_t rows) {
        total.clear();
        total.start(kModel);
        pass.each_tile(
            rows,
            [&](std::size_t worker, std::int64_t row, std::int64_t count, const Slab& slab,
                const LogitRows<T>* logits) {
                LogitMemory& mine = partials[worker];
                if (!mine) mine = LogitMemory(most, kArrays, 1);
                logit_ops<T>(kernels).sums(logits[0], count, slab.end - slab.begin, slab.begin, sums_at(mine, row));
                pass.take_targets(logits[0], first + row, count, slab, out.target);
            },
            [&](std::size_t worker, const Slab&) {
                kernels.logit_merge.sums(sums_at(partials[worker], 0), sums_at(total, 0), rows);
            });
        const LogitSums sums = sums_at(total, 0);
        for (std::int64_t r = 0; r < rows; ++r) {
            const std::int64_t at = first + r;
            out.lse[at] = sums.largest[r] + std::log(sums.sum[r]);
            out.mean[at] = sums.weighted[r] / sums.sum[r];
            out.lse2[at] = 2 * sums.largest[r] + std::log(sums.squares[r]);
            out.top_logit[at] = sums.largest[r];
            out.counted[at] = sums.counted[r];
            // a row of NaN, or of no label that can be
            if (!(sums.sum[r] > 0)) {
                out.lse[at] = out.mean[at] = out.lse2[at] = out.top_logit[at] = out.target[at] = std::nan("");
                out.counted[at] = static_cast<double>(pass.cut().labels);
            }
            out.top[at] = task.choice.label_at(sums.top[r]);
            if (task.choice.check_finite && !std::isfinite(out.lse[at] + out.mean[at])) pass.refuse(at);
        }
    });
}

}  // namespace

void compute_logsumexp(LogsumexpTask& task) {
    task.in_double ? run<double>(task) : run<float>(task);
}

}  // namespace gramless
