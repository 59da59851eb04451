// Interface of the logit_pairs kernel to its binding and to the C++ tests.
#pragma once

#include "kernels/logit_pass.hpp"

namespace gramless {

// (N',) each, for the rows that count, of models p and q
struct LogitPairsTarget {
    double *lse[2], *mean[2], *delta[2], *top_logit[2], *target[2];
    std::int64_t* top[2];
    double *delta_mean, *delta_square, *delta_abs, *delta_max, *counted;
};

struct LogitPairsTask {
    LogitModel models[2];
    LogitChoice choice;
    bool in_double = false;
    bool divergences = false;
    std::int64_t workspace = 0;  // bytes that logits may take, so that divergences need no second pass
    LogitPairsTarget out{};
    double *js = nullptr, *tv = nullptr;
};

// throws std::invalid_argument for non-finite input and overflow, if choice.check_finite
void compute_logit_pairs(LogitPairsTask& task);

// js and tv alone, given out.lse
void compute_logit_divergences(LogitPairsTask& task);

}  // namespace gramless
