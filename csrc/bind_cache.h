// The eager path's cache: (settings, arguments of a public function) -> Program. Bounded and locked.
//
// The key is made of the arguments as they came: type, shape, strides and flags of arrays, values of everything else.
// Anything that is not a plain ndarray, int, float, bool, str, None or tuple of these cannot be a key: the lookup
// misses.
#pragma once

#include <mutex>
#include <unordered_map>

#include "bind_program.h"

namespace cnnkern {

class Key {
 public:
  static constexpr int kMost = 224;  // tokens; a conv3d call has about 70
  static constexpr int kMostArrays = 12;

  int64_t token[kMost];
  int count = 0;
  PyObject* array[kMostArrays];
  int arrays = 0;

  bool add(PyObject* o) {
    if (Py_TYPE(o) == ndarray_type()) return add_array(o);
    if (o == Py_None) return put(kNone);
    if (PyBool_Check(o)) return put(o == Py_True ? kTrue : kFalse);
    if (PyLong_CheckExact(o)) {
      int overflow = 0;
      const int64_t value = PyLong_AsLongLongAndOverflow(o, &overflow);
      return !overflow && put(kInt) && put(value);
    }
    if (PyUnicode_CheckExact(o)) {
      Py_ssize_t length;
      const char* text = PyUnicode_AsUTF8AndSize(o, &length);
      if (!text) {
        PyErr_Clear();
        return false;
      }
      if (!put(kString + (int64_t(length) << 8))) return false;
      for (Py_ssize_t i = 0; i < length; i += 8) {
        int64_t piece = 0;
        std::memcpy(&piece, text + i, size_t(length - i < 8 ? length - i : 8));
        if (!put(piece)) return false;
      }
      return true;
    }
    if (PyTuple_CheckExact(o)) {
      const Py_ssize_t length = PyTuple_GET_SIZE(o);
      if (!put(kTuple + (int64_t(length) << 8))) return false;
      for (Py_ssize_t i = 0; i < length; i++)
        if (!add(PyTuple_GET_ITEM(o, i))) return false;
      return true;
    }
    if (PyFloat_CheckExact(o)) {
      const double value = PyFloat_AS_DOUBLE(o);
      int64_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      return put(kFloat) && put(bits);
    }
    return false;
  }

  size_t hash() const {
    uint64_t h = 0x9e3779b97f4a7c15u;
    for (int i = 0; i < count; i++) {
      h = (h ^ uint64_t(token[i])) * 0xff51afd7ed558ccdu;
      h ^= h >> 29;
    }
    return h;
  }

  bool put(int64_t value) {
    if (count == kMost) return false;
    token[count++] = value;
    return true;
  }

 private:
  enum : int64_t { kNone = 1, kTrue, kFalse, kInt, kFloat, kString, kTuple, kArray };

  static PyTypeObject* ndarray_type() {
    static PyTypeObject* type = py::detail::npy_api::get().PyArray_Type_;
    return type;
  }

  bool add_array(PyObject* o) {
    if (arrays == kMostArrays) return false;
    const auto* a = py::detail::array_proxy(o);
    const py::dtype dtype = py::reinterpret_borrow<py::dtype>(a->descr);
    if (dtype.byteorder() == (kBig ? '<' : '>')) return false;
    const int64_t item = dtype.itemsize();
    if (item == 0) return false;
    // Kernels count strides in elements: other arrays are copied by the slow path, at each call.
    if (reinterpret_cast<uintptr_t>(a->data) % uintptr_t(item) != 0) return false;
    const bool writeable = a->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
    if (!put(kArray + (int64_t(writeable) << 8) + (int64_t(a->nd) << 16) + (int64_t(dtype.num()) << 32))) return false;
    for (int i = 0; i < a->nd; i++) {
      const int64_t stride = a->strides[i];
      if (stride % item != 0 || !put(a->dimensions[i]) || !put(stride)) return false;
    }
    array[arrays++] = o;
    return true;
  }

  static constexpr bool kBig = __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__;
};

// The bytes an array covers, for the test whether `out` overlaps an input.
struct Extent {
  const char *begin, *end;
  explicit Extent(PyObject* o) {
    const auto* a = py::detail::array_proxy(o);
    begin = end = a->data;
    end += py::reinterpret_borrow<py::dtype>(a->descr).itemsize();
    for (int i = 0; i < a->nd; i++) {
      if (a->dimensions[i] == 0) {
        end = begin;
        return;
      }
      const Py_ssize_t reach = (a->dimensions[i] - 1) * a->strides[i];
      (reach < 0 ? begin : end) += reach;
    }
  }
  bool overlaps(const Extent& other) const { return begin < other.end && other.begin < end; }
};

class Cache {
 public:
  // `constants`: arrays that are not in the key are kept and used in every call (a plan's weights); without it, a call
  // with such arrays is not remembered.
  explicit Cache(bool constants) : constants_(constants) {}

  // A new reference to the result; nullptr without an error set: not known.
  PyObject* lookup(PyObject* const* args, Py_ssize_t count) {
    Key key;
    if (!this_thread.knows_settings() || !build(key, args, count)) return nullptr;
    std::shared_ptr<const Entry> entry = find(key);
    if (!entry) return nullptr;
    PyObject* arrays[Key::kMostArrays];
    for (int i = 0; i < entry->program->inputs; i++)
      arrays[i] = entry->source[i] == kNoSlot ? entry->constant[i].ptr() : key.array[entry->source[i]];
    for (const Result& result : entry->program->results)
      if (result.into != kNoSlot && overlap(result.into, arrays, entry->program->inputs)) return nullptr;
    return entry->program->run(arrays).release().ptr();
  }

  // Keep `program` under the key if its arrays are the key's own, each once: then equal keys mean equal calls.
  void remember(std::shared_ptr<Program> program, const py::tuple& arrays, PyObject* const* args, Py_ssize_t count) {
    auto entry = std::make_shared<Entry>();
    Key key;
    if (!build(key, args, count)) return;
    for (int i = 0; i < key.arrays; i++)
      for (int j = 0; j < i; j++)
        if (key.array[i] == key.array[j]) return;
    for (const auto& array : arrays) {
      int source = kNoSlot;
      for (int i = 0; i < key.arrays; i++)
        if (key.array[i] == array.ptr()) source = i;
      if (source == kNoSlot && !array.is_none() && !constants_) return;
      entry->source.push_back(source);
      entry->constant.push_back(source == kNoSlot ? py::reinterpret_borrow<py::object>(array) : py::none());
    }
    entry->program = std::move(program);
    entry->tokens.assign(key.token, key.token + key.count);
    // What goes dies after the lock: the end of a Python object may run any code, this function too.
    decltype(entries_) old_entries;
    std::shared_ptr<const Entry> old_entry;
    std::lock_guard<std::mutex> lock(mutex_);
    if (entries_.size() >= kMost) old_entries.swap(entries_);  // rare: many shapes, and then one more miss each
    auto& place = entries_[key.hash()];
    old_entry = std::move(place);
    place = std::move(entry);
  }

  size_t size() {
    std::lock_guard<std::mutex> lock(mutex_);
    return entries_.size();
  }

 private:
  static constexpr size_t kMost = 2048;

  struct Entry {
    std::vector<int64_t> tokens;
    std::vector<int> source;           // per input slot: which array of the key, or
    std::vector<py::object> constant;  // this one (None where the operand is absent)
    std::shared_ptr<Program> program;
  };

  static bool build(Key& key, PyObject* const* args, Py_ssize_t count) {
    key.put(this_thread.settings);
    for (Py_ssize_t i = 0; i < count; i++)
      if (!key.add(args[i])) return false;
    return true;
  }

  std::shared_ptr<const Entry> find(const Key& key) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = entries_.find(key.hash());
    if (found == entries_.end()) return nullptr;
    const auto& tokens = found->second->tokens;
    if (tokens.size() != size_t(key.count) || std::memcmp(tokens.data(), key.token, tokens.size() * sizeof(int64_t)))
      return nullptr;
    return found->second;
  }

  static bool overlap(int out, PyObject* const* arrays, int count) {
    const Extent written(arrays[out]);
    for (int i = 0; i < count; i++)
      if (i != out && arrays[i] != Py_None && written.overlaps(Extent(arrays[i]))) return true;
    return false;
  }

  const bool constants_;
  std::unordered_map<size_t, std::shared_ptr<const Entry>> entries_;
  std::mutex mutex_;
};

}  // namespace cnnkern
