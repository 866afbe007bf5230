// A Program: table ops bound to operand slots, strides and row functions, run by one call without Python objects but
// the results. Part of the binding (bind.cpp includes it); everything below the row functions is plain C.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "bind_buffers.h"
#include "cnnkern.h"

namespace cnnkern {

namespace py = pybind11;

constexpr int kNoSlot = -1;

// Scratch of this thread: grows to what calls need; more than kKept bytes are given back after the call.
class Workspace {
 public:
  void* get(size_t bytes) {
    if (bytes > size_) {
      buffer_.reset();
      size_ = 0;
      buffer_.reset(aligned_bytes(bytes));
      size_ = bytes;
    }
    return buffer_.get();
  }
  void trim() {
    if (size_ > kKept) buffer_.reset(), size_ = 0;
  }

 private:
  static constexpr size_t kKept = size_t(64) << 20;
  Buffer buffer_;
  size_t size_ = 0;
};

// What the calling thread asked for, pushed by cnnkern/config.py, and what it ran last.
constexpr int64_t kSettingsUnknown = -1;
inline std::atomic<int64_t> settings_generation{0};  // counts changes that concern all threads
struct ThreadState {
  int64_t settings = kSettingsUnknown;  // in the key of every lookup
  int64_t generation = 0;               // when they were pushed
  int threads = 1;
  std::vector<const ck_row*> last_rows;
  Workspace workspace;

  // If not, every lookup misses, and the slow path asks config.py.
  bool knows_settings() const {
    return settings != kSettingsUnknown && generation == settings_generation.load(std::memory_order_relaxed);
  }
};
inline thread_local ThreadState this_thread;

// A call takes its thread's workspace along: a signal handler that runs inside the call may call a kernel too, and gets
// one of its own.
struct BorrowedWorkspace {
  explicit BorrowedWorkspace(ThreadState& t) : thread(t) { std::swap(workspace, thread.workspace); }
  ~BorrowedWorkspace() {
    workspace.trim();
    std::swap(workspace, thread.workspace);
  }
  BorrowedWorkspace(const BorrowedWorkspace&) = delete;
  ThreadState& thread;
  Workspace workspace;
};

struct Step {
  const ck_row* row;
  std::string params;              // bytes of the family's struct
  std::vector<ck_tensor> tensors;  // data filled in at each run
  std::vector<int> slots;          // one per tensor, kNoSlot if the operand is absent
  std::vector<int64_t> offsets;    // bytes from the array's first element
  std::shared_ptr<void> packed;    // weights packed by the caller's plan, or null
};

struct Result {
  py::object descr;  // numpy.dtype
  std::vector<Py_ssize_t> shape;
  size_t bytes = 0;
  int into = kNoSlot;  // the caller's array in this slot is written instead
};

// Ctrl-C: PyErr_CheckSignals at chunk borders, at most every 100 ms, and from the main thread only: no other thread
// handles signals, and waiting for the GIL here could wait for ever (its holder may wait for this call).
inline std::atomic<unsigned long> main_thread{0};
struct Poll {
  std::chrono::steady_clock::time_point next = std::chrono::steady_clock::now() + std::chrono::milliseconds(100);
  static int ask(void* self) {
    auto& poll = *static_cast<Poll*>(self);
    const auto now = std::chrono::steady_clock::now();
    if (now < poll.next || PyThread_get_thread_ident() != main_thread.load(std::memory_order_relaxed)) return 0;
    poll.next = now + std::chrono::milliseconds(100);
    py::gil_scoped_acquire gil;
    return PyErr_CheckSignals() ? 1 : 0;
  }
};

class Program {
 public:
  int inputs = 0;
  std::vector<Result> results;
  std::vector<Step> steps;
  std::vector<int> returns;
  bool returns_tuple = false;
  py::object failure;  // (step, "label" | "index", value, place) -> the exception to raise

  // `arrays`: ndarrays or None, already checked against what the program was built for.
  py::object run(PyObject* const* arrays) const {
    std::vector<py::object> made;
    made.reserve(results.size());
    PyObject* fixed[16];
    std::vector<PyObject*> many;
    const size_t slots = size_t(inputs) + results.size();
    PyObject** slot = fixed;
    if (slots > 16) many.resize(slots), slot = many.data();
    for (int i = 0; i < inputs; i++) slot[i] = arrays[i];
    for (size_t i = 0; i < results.size(); i++) {
      if (results[i].into == kNoSlot) made.push_back(new_array(results[i]));
      slot[size_t(inputs) + i] = results[i].into == kNoSlot ? made.back().ptr() : slot[results[i].into];
    }
    ThreadState& thread = this_thread;
    thread.last_rows.clear();
    {
      BorrowedWorkspace scratch(thread);
      for (size_t i = 0; i < steps.size(); i++) run_step(i, slot, thread, scratch.workspace);
    }
    if (!returns_tuple) return py::reinterpret_borrow<py::object>(slot[returns[0]]);
    py::tuple all(returns.size());
    for (size_t i = 0; i < returns.size(); i++)
      all[i] = returns[i] == kNoSlot ? py::object(py::none()) : py::reinterpret_borrow<py::object>(slot[returns[i]]);
    return std::move(all);
  }

  // Pack the weights of one step now; later runs read them and not the weight operand.
  void pack(size_t index, py::array weight) {
    Step& step = steps.at(index);
    if (!step.row->pack) throw std::invalid_argument("this row has nothing to pack");
    std::shared_ptr<void> packed(aligned_bytes(step.row->packed_size(step.params.data())), Free());
    ck_tensor tensor = step.tensors[1];
    tensor.data = static_cast<char*>(const_cast<void*>(weight.data())) + step.offsets[1];
    ck_exec exec = new_exec(this_thread);
    ck_status status;
    {
      py::gil_scoped_release release;
      status = step.row->pack(step.params.data(), &tensor, packed.get(), &exec);
    }
    check(status, exec, index);
    step.packed = packed;
  }

  // Use the weights that another program of the same request packed.
  void share_packed(size_t index, const Program& other) { steps.at(index).packed = other.steps.at(index).packed; }

  bool packs() const { return !steps.empty() && steps[0].row->pack; }

  size_t packed_bytes() const {
    size_t sum = 0;
    for (const Step& s : steps)
      if (s.packed) sum += s.row->packed_size(s.params.data());
    return sum;
  }
  size_t workspace_bytes(int threads) const {
    size_t most = 0;
    for (const Step& s : steps) {
      const size_t bytes = s.row->workspace(s.params.data(), threads);
      most = bytes > most ? bytes : most;
    }
    return most;
  }

 private:
  static ck_exec new_exec(const ThreadState& thread) {
    ck_exec exec{};
    exec.size = sizeof exec;
    exec.threads = thread.threads;
    return exec;
  }

  static py::object new_array(const Result& result) {
    auto& api = py::detail::npy_api::get();
    size_t size;
    void* data = result_cache().take(result.bytes, &size);
    PyObject* owner = PyCapsule_New(data, nullptr, [](PyObject* c) {
      result_cache().give(PyCapsule_GetPointer(c, nullptr), reinterpret_cast<size_t>(PyCapsule_GetContext(c)));
    });
    if (!owner || PyCapsule_SetContext(owner, reinterpret_cast<void*>(size))) {
      if (owner) Py_DECREF(owner);  // without its size, data is simply freed
      else result_cache().give(data, size);
      throw py::error_already_set();
    }
    PyObject* array =
        api.PyArray_NewFromDescr_(api.PyArray_Type_, result.descr.inc_ref().ptr(), int(result.shape.size()),
                                  reinterpret_cast<const Py_intptr_t*>(result.shape.data()), nullptr, data,
                                  py::detail::npy_api::NPY_ARRAY_WRITEABLE_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_ |
                                      py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_,
                                  nullptr);
    if (!array) {
      Py_DECREF(owner);
      throw py::error_already_set();
    }
    api.PyArray_SetBaseObject_(array, owner);
    return py::reinterpret_steal<py::object>(array);
  }

  void run_step(size_t index, PyObject* const* slot, ThreadState& thread, Workspace& workspace) const {
    const Step& step = steps[index];
    constexpr int kMostOperands = 10;
    ck_tensor tensors[kMostOperands];
    const size_t count = step.tensors.size();
    for (size_t i = 0; i < count; i++) {
      tensors[i] = step.tensors[i];
      const int number = step.slots[i];
      PyObject* array = number == kNoSlot ? nullptr : slot[number];
      tensors[i].data = array && array != Py_None ? py::detail::array_proxy(array)->data + step.offsets[i] : nullptr;
    }
    ck_exec exec = new_exec(thread);
    exec.packed = step.packed.get();
    exec.workspace_size = step.row->workspace(step.params.data(), exec.threads);
    exec.workspace = exec.workspace_size ? workspace.get(exec.workspace_size) : nullptr;
    Poll poll;
    exec.poll = &Poll::ask;
    exec.poll_arg = &poll;
    thread.last_rows.push_back(step.row);
    ck_status status;
    {
      py::gil_scoped_release release;
      status = step.row->run(step.params.data(), tensors, &exec);
    }
    check(status, exec, index);
  }

  void check(ck_status status, const ck_exec& exec, size_t index) const {
    if (status == CK_OK) return;
    if (PyErr_Occurred()) throw py::error_already_set();
    if (status == CK_INDEX_RANGE || status == CK_LABEL_RANGE) {
      const py::object error =
          failure(index, status == CK_LABEL_RANGE ? "label" : "index", exec.bad_index, exec.bad_place);
      PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
      throw py::error_already_set();
    }
    throw std::runtime_error(cnnkern_status_text(status));
  }
};

}  // namespace cnnkern
