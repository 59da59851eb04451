#include "bindings/python_array.hpp"

#include <optional>
#include <string>

namespace py = pybind11;

namespace gramless {
namespace {

// the binary layout of a DLPack tensor, as its specification fixes it
struct DLTensor {
    void* data;
    struct {
        std::int32_t type, id;
    } device;
    std::int32_t ndim;
    struct {
        std::uint8_t code, bits;
        std::uint16_t lanes;
    } dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements; null when contiguous
    std::uint64_t byte_offset;
};

struct DLManagedTensor {
    DLTensor tensor;
    void* context;
    void (*deleter)(DLManagedTensor*);
};

constexpr std::int32_t kDLCpu = 1, kDLCudaHost = 3;
constexpr std::uint8_t kDLFloat = 2, kDLBFloat = 4;

std::string prefix(const char* function, const char* argument) {
    return std::string(function) + ": expected " + argument + " ";
}

std::optional<DType> numpy_dtype(const py::dtype& dtype) {
    if (dtype.byteorder() == '>') return {};
    if (dtype.kind() == 'f' && dtype.itemsize() == 2) return DType::kF16;
    if (dtype.kind() == 'f' && dtype.itemsize() == 4) return DType::kF32;
    if (dtype.kind() == 'f' && dtype.itemsize() == 8) return DType::kF64;
    if (dtype.itemsize() == 2 && py::str(dtype.attr("name")).cast<std::string>() == "bfloat16") return DType::kBF16;
    return {};
}

std::optional<DType> dlpack_dtype(const DLTensor& tensor) {
    if (tensor.dtype.lanes != 1) return {};
    if (tensor.dtype.code == kDLBFloat && tensor.dtype.bits == 16) return DType::kBF16;
    if (tensor.dtype.code != kDLFloat) return {};
    if (tensor.dtype.bits == 16) return DType::kF16;
    if (tensor.dtype.bits == 32) return DType::kF32;
    if (tensor.dtype.bits == 64) return DType::kF64;
    return {};
}

[[noreturn]] void wrong_dtype(const char* function, const char* argument, const std::string& got) {
    throw py::type_error(prefix(function, argument) + "of float16, bfloat16, float32 or float64, got " + got);
}

[[noreturn]] void wrong_ndim(const char* function, const char* argument, std::int64_t ndim) {
    throw py::value_error(prefix(function, argument) + "as a 2-d array (rows, features), got " + std::to_string(ndim) +
                          " dimensions");
}

PythonArray from_numpy(const py::array& array, const char* function, const char* argument) {
    const auto dtype = numpy_dtype(array.dtype());
    if (!dtype) wrong_dtype(function, argument, py::str(array.dtype()).cast<std::string>());
    if (array.ndim() != 2) wrong_ndim(function, argument, array.ndim());
    PythonArray result;
    result.view = {static_cast<const unsigned char*>(array.data()),
                   *dtype,
                   array.shape(0),
                   array.shape(1),
                   array.strides(0),
                   array.strides(1)};
    // released with the GIL held: the last reference goes when the binding returns
    result.owner = std::make_shared<py::array>(array);
    return result;
}

PythonArray from_dlpack(const py::object& object, const char* function, const char* argument) {
    const py::capsule capsule = object.attr("__dlpack__")();
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (!managed) throw py::error_already_set();
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");
    PythonArray result;
    result.owner = std::shared_ptr<void>(managed, [](void* p) {
        auto* mine = static_cast<DLManagedTensor*>(p);
        if (mine->deleter) mine->deleter(mine);
    });
    const DLTensor& tensor = managed->tensor;
    if (tensor.device.type != kDLCpu && tensor.device.type != kDLCudaHost)
        throw std::runtime_error(prefix(function, argument) + "in CPU memory");
    const auto dtype = dlpack_dtype(tensor);
    if (!dtype) wrong_dtype(function, argument, "another element type");
    if (tensor.ndim != 2) wrong_ndim(function, argument, tensor.ndim);
    if (!tensor.data && tensor.shape[0] > 0 && tensor.shape[1] > 0)
        throw py::value_error(prefix(function, argument) + "with data, got an array without storage");
    const std::int64_t size = item_size(*dtype);
    const std::int64_t row_stride = tensor.strides ? tensor.strides[0] : tensor.shape[1];
    const std::int64_t col_stride = tensor.strides ? tensor.strides[1] : 1;
    result.view = {static_cast<const unsigned char*>(tensor.data) + tensor.byte_offset,
                   *dtype,
                   tensor.shape[0],
                   tensor.shape[1],
                   row_stride * size,
                   col_stride * size};
    return result;
}

}  // namespace

PythonArray python_array(const py::object& object, const char* function, const char* argument) {
    if (py::isinstance<py::array>(object)) return from_numpy(py::array(object), function, argument);
    if (py::hasattr(object, "__dlpack__")) return from_dlpack(object, function, argument);
    throw py::type_error(prefix(function, argument) + "as an array, got " +
                         py::str(py::type::of(object).attr("__name__")).cast<std::string>());
}

std::pair<PythonArray, PythonArray> python_pair(const py::object& x, const py::object& y, const char* function) {
    std::pair<PythonArray, PythonArray> made{python_array(x, function, "x"), {}};
    const bool pair = !y.is_none();
    if (pair) made.second = python_array(y, function, "y");
    const ArrayView &of_x = made.first.view, &of_y = made.second.view;
    if (pair && of_x.rows != of_y.rows)
        throw py::value_error(std::string(function) + ": expected x and y with the same number of rows");
    if (of_x.rows == 0 || of_x.cols == 0 || (pair && of_y.cols == 0))
        throw py::value_error(std::string(function) + ": expected arrays that are not empty");
    return made;
}

}  // namespace gramless
