// Sums over logits of the same rows and other labels, joined for one instruction set level; all in fp64.
#pragma once

#include "core/logit_tiles.inl"

namespace gramless::GRAMLESS_LEVEL {

// visit(first row) of whole vectors of rows, which arrays are padded to
template <class Visit>
inline void each_rows(std::int64_t rows, const Visit& visit) {
    for (std::int64_t i = 0; i < rows; i += Shape<double>::kLanes)
        visit(i);
}

using Doubles = Vector<double, Shape<double>::kLanes>;

inline Doubles at(const double* from) {
    return load<double, Shape<double>::kLanes>(from);
}

inline void put(double* to, Doubles values) {
    store<double, Shape<double>::kLanes>(to, values);
}

// what sums about the maxima of both parts are multiplied by, for the larger of them; the new maxima replace the old
struct Factors {
    Doubles from, to;
};

inline Factors merge_largest(const ModelSums& from, const ModelSums& to, std::int64_t i) {
    const Doubles theirs = at(from.largest + i), mine = at(to.largest + i);
    const Doubles most = theirs > mine ? theirs : mine;
    put(to.largest + i, most);
    for (int lane = 0; lane < Shape<double>::kLanes; ++lane)
        if (theirs[lane] > mine[lane]) to.top[i + lane] = from.top[i + lane];
    return {exp_below<double, Shape<double>::kLanes>(theirs - most),
            exp_below<double, Shape<double>::kLanes>(mine - most)};
}

inline void merge_scaled(const double* from, double* to, std::int64_t i, const Factors& by) {
    put(to + i, at(from + i) * by.from + at(to + i) * by.to);
}

inline void merge_model_sums(const ModelSums& from, const ModelSums& to, std::int64_t i, const Factors& by) {
    merge_scaled(from.sum, to.sum, i, by);
    merge_scaled(from.weighted, to.weighted, i, by);
}

inline void merge_logit_sums(const LogitSums& from, const LogitSums& to, std::int64_t rows) {
    each_rows(rows, [&](std::int64_t i) {
        const Factors by = merge_largest(from, to, i);
        merge_model_sums(from, to, i, by);
        merge_scaled(from.squares, to.squares, i, {by.from * by.from, by.to * by.to});
        put(to.counted + i, at(to.counted + i) + at(from.counted + i));
    });
}

inline void merge_logit_pair_sums(const LogitPairSums& from, const LogitPairSums& to, std::int64_t rows) {
    each_rows(rows, [&](std::int64_t i) {
        const Factors by_p = merge_largest(from.p, to.p, i), by_q = merge_largest(from.q, to.q, i);
        merge_model_sums(from.p, to.p, i, by_p);
        merge_model_sums(from.q, to.q, i, by_q);
        merge_scaled(from.delta_p, to.delta_p, i, by_p);
        merge_scaled(from.delta_q, to.delta_q, i, by_q);
        // an infinite mean, of labels that only one model can predict, stays
        const Doubles theirs = at(from.mean + i), mine = at(to.mean + i), most = theirs > mine ? theirs : mine;
        const auto endless = most == kInfinity<double>;
        const Doubles step = endless ? Doubles{} : theirs - mine;
        const Doubles their_labels = at(from.counted + i), my_labels = at(to.counted + i);
        const Doubles labels = their_labels + my_labels;
        const Doubles share = labels > 0.0 ? their_labels / labels : Doubles{}, between = my_labels * share;
        put(to.counted + i, labels);
        put(to.mean + i, endless ? most : mine + step * share);
        put(to.square + i, at(to.square + i) + at(from.square + i) + step * step * between);
        put(to.abs + i, at(to.abs + i) + at(from.abs + i));
        const Doubles their_most = at(from.most + i), my_most = at(to.most + i);
        put(to.most + i, their_most > my_most ? their_most : my_most);
    });
}

constexpr LogitMerge kLogitMerge = {merge_logit_sums, merge_logit_pair_sums};

}  // namespace gramless::GRAMLESS_LEVEL
