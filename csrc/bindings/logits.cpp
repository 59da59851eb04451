#include "bindings/logits.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace py = pybind11;

namespace gramless {
namespace {

constexpr double kMasked = -std::numeric_limits<double>::infinity();

// arguments are checked where they are given names that users know; here, only what memory safety asks for
void refuse_unless(bool fits, const std::string& function, const std::string& expected) {
    if (!fits) throw py::value_error(function + ": expected " + expected);
}

void choose_labels(const std::string& function, const PythonModel& p, const PythonModel* q, const Indices& given,
                   LogitChoice& choice) {
    const std::int64_t labels = p.model.labels();
    const auto gone = [&](std::int64_t label) {
        return p.model.bias && p.model.bias[label] == kMasked &&
               (!q || (q->model.bias && q->model.bias[label] == kMasked));
    };
    bool any_gone = false;
    for (std::int64_t label = 0; label < labels && p.model.bias; ++label)
        any_gone |= gone(label);
    choice.all_labels = !given && !any_gone;
    if (choice.all_labels) return;
    const std::int64_t count = given ? given->size() : labels;
    for (std::int64_t k = 0; k < count; ++k) {
        const std::int64_t label = given ? given->data()[k] : k;
        refuse_unless(label >= 0 && label < labels, function, "labels from 0 to " + std::to_string(labels - 1));
        if (!gone(label)) choice.labels.push_back(label);
    }
    refuse_unless(!choice.labels.empty(), function, "a label that is not masked");
}

void choose_rows(const std::string& function, const Mask& mask, const Indices& targets, const LogitModel& model,
                 LogitChoice& choice) {
    const std::int64_t rows = model.h.rows;
    refuse_unless(!mask || mask->size() == rows, function, "a mask of " + std::to_string(rows) + " rows");
    refuse_unless(!targets || targets->size() == rows, function, "targets of " + std::to_string(rows) + " rows");
    choice.all_rows = !mask;
    for (std::int64_t row = 0; row < rows; ++row) {
        if (mask && !mask->data()[row]) continue;
        if (mask) choice.rows.push_back(row);
        if (!targets) continue;
        const std::int64_t target = targets->data()[row];
        refuse_unless(target >= 0 && target < model.labels(), function,
                      "targets from 0 to " + std::to_string(model.labels() - 1));
        choice.targets.push_back(target);
    }
}

}  // namespace

PythonModel python_model(const char* function, const std::string& number, const py::object& h, const py::object& w,
                         const Biases& bias, const std::optional<double>& cap) {
    // the names live as long as the process: there are three of each
    const bool second = number == "2", first = number == "1";
    const char* const h_name = second ? "h2" : first ? "h1" : "h";
    const char* const w_name = second ? "w2" : first ? "w1" : "w";
    PythonModel made;
    made.h = python_array(h, function, h_name);
    made.model.h = made.h.view;
    made.model.h_name = h_name;
    made.model.w_name = w_name;
    made.model.given = w.is_none();
    if (!made.model.given) {
        made.w = python_array(w, function, w_name);
        made.model.w = made.w.view;
        refuse_unless(made.w.view.cols == made.h.view.cols, function, "as many features of hidden states as of labels");
        refuse_unless(made.h.view.cols > 0, function, "at least one feature");
    }
    refuse_unless(made.model.labels() > 0, function, "at least one label");
    refuse_unless(!bias || bias->size() == made.model.labels(), function, "as many biases as labels");
    made.bias = bias;
    if (bias) made.model.bias = made.bias->data();
    made.model.cap = cap.value_or(0);
    return made;
}

LogitChoice python_choice(const char* function, const PythonModel& p, const PythonModel* q, const Indices& labels,
                          const Mask& mask, const Indices& targets, double temperature, const std::string& nonfinite) {
    if (q) {
        refuse_unless(p.model.h.rows == q->model.h.rows, function, "as many rows of both models");
        refuse_unless(p.model.labels() == q->model.labels(), function, "as many labels of both models");
    }
    LogitChoice choice;
    choice.function = function;
    choice.temperature = temperature;
    choice.check_finite = nonfinite == "raise";
    choice.poll = poll_signals();
    choose_labels(function, p, q, labels, choice);
    choose_rows(function, mask, targets, p.model, choice);
    return choice;
}

double* add_missing(py::dict& result, const std::string& key, std::int64_t rows) {
    double* const data = add_array<double>(result, key, {rows});
    std::fill_n(data, rows, std::numeric_limits<double>::quiet_NaN());
    return data;
}

}  // namespace gramless
