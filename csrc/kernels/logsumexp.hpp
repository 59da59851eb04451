// Interface of the logsumexp kernel to its binding and to the C++ tests.
#pragma once

#include "kernels/logit_pass.hpp"

namespace gramless {

// (N',) each, for the rows that count
struct LogsumexpTarget {
    double *lse, *mean, *lse2, *top_logit, *target, *counted;
    std::int64_t* top;
};

struct LogsumexpTask {
    LogitModel model;
    LogitChoice choice;
    bool in_double = false;
    LogsumexpTarget out{};
};

// throws std::invalid_argument for non-finite input and overflow, if choice.check_finite
void compute_logsumexp(LogsumexpTask& task);

}  // namespace gramless
