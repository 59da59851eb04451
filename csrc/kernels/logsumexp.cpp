// contract: lse z, E_p z, lse 2z, the largest logit and where, and a target logit, for each row. Defined by
//           reference.logsumexp.
// formula: z = cap tanh((h w^T + b) / cap) / temperature; sums about the running maximum, merged in order of labels.
// cost: 2 N V d flops, one read of w for every 16 MiB of packed rows; packed rows, per thread a block of packed labels
//       and a tile of kLogitTile^2. No N x V array.
// numerics: products, exponentials and sums over one row of a tile in fp32, for fp64 input in fp64; beyond in fp64.
// why not: one thread per block of rows, each with all labels; w would be packed once per block.
#include "kernels/logsumexp.hpp"

namespace gramless {
namespace {

constexpr std::int64_t kArrays = 5;

template <class T>
void run(LogsumexpTask& task) {
    LogitPass<T> pass({&task.model}, task.choice, std::numeric_limits<std::int64_t>::max());
    const std::int64_t most = pass.cut().block_rows;
    std::vector<LogitMemory> partials(static_cast<std::size_t>(pass.threads()));
    LogitMemory total(most, kArrays, 1);
    const std::vector<std::int64_t> places = target_places(task.choice, task.model.labels());
    const TileKernels& kernels = tile_kernels();
    const LogsumexpTarget& out = task.out;
    pass.each_block([&](std::int64_t first, std::int64_t rows) {
        total.clear();
        total.start(0);
        pass.each_tile(
            rows,
            [&](std::size_t worker, std::int64_t row, std::int64_t count, const Slab& slab,
                const LogitRows<T>* logits) {
                LogitMemory& mine = partials[worker];
                if (!mine) mine = LogitMemory(most, kArrays, 1);
                logit_ops<T>(kernels).sums(logits[0], count, slab.end - slab.begin, slab.begin,
                                           mine.sums(0, 0, row, true));
                for (std::int64_t r = 0; r < count && !places.empty(); ++r) {
                    const std::int64_t place = places[static_cast<std::size_t>(first + row + r)] - slab.begin;
                    if (place >= 0 && place < slab.end - slab.begin)
                        out.target[first + row + r] = static_cast<double>(logits[0].data[r * logits[0].stride + place]);
                }
            },
            [&](std::size_t worker, const Slab&) {
                kernels.logit_merge.sums(partials[worker].sums(0, 0, 0, true), total.sums(0, 0, 0, true), rows);
            });
        const LogitSums sums = total.sums(0, 0, 0, true);
        for (std::int64_t r = 0; r < rows; ++r) {
            const std::int64_t at = first + r;
            out.lse[at] = sums.largest[r] + std::log(sums.sum[r]);
            out.mean[at] = sums.weighted[r] / sums.sum[r];
            out.lse2[at] = 2 * sums.largest[r] + std::log(sums.squares[r]);
            out.top_logit[at] = sums.largest[r];
            out.counted[at] = sums.counted[r];
            // a row that no label can be in
            if (sums.counted[r] == 0) {
                out.lse[at] = out.mean[at] = out.lse2[at] = out.top_logit[at] = std::nan("");
                out.counted[at] = static_cast<double>(pass.cut().labels);
            }
            out.top[at] =
                task.choice.all_labels ? sums.top[r] : task.choice.labels[static_cast<std::size_t>(sums.top[r])];
            if (task.choice.check_finite && !std::isfinite(out.lse[at] + out.mean[at])) pass.refuse(at);
        }
    });
}

}  // namespace

void compute_logsumexp(LogsumexpTask& task) {
    if (task.in_double)
        run<double>(task);
    else
        run<float>(task);
}

}  // namespace gramless
