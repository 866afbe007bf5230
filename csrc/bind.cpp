// The Python module cnnkern._cnnkern_core: a thin shell over cnnkern.h.
#include <time.h>

#include "bind_cache.h"
#include "cpu/parallel.h"

namespace py = pybind11;
using namespace cnnkern;

namespace {

Cache& cache() {
  static Cache* instance = new Cache(false);  // never destroyed: programs hold Python objects
  return *instance;
}

struct NamedRow {
  const ck_row* row;
  const char* missing;
};

std::vector<NamedRow> all_rows() {
  std::vector<NamedRow> rows;
  const char* missing = nullptr;
  for (int t = 0; const ck_table* table = cnnkern_table(t, &missing); t++)
    for (int i = 0; i < table->count; i++) rows.push_back({&table->rows[i], missing});
  return rows;
}

const NamedRow& row_at(size_t index) {
  static const std::vector<NamedRow>* rows = new std::vector<NamedRow>(all_rows());
  if (index >= rows->size()) throw py::index_error("no such row");
  return (*rows)[index];
}

py::list list_rows() {
  py::list list;
  size_t index = 0;
  for (const NamedRow& r : all_rows()) {
    list.append(py::make_tuple(index++, r.row->op, r.row->algorithm, r.row->isa, r.row->dtype, r.row->family,
                               r.row->operands, r.missing, r.row->pack != nullptr, r.row->precision));
  }
  return list;
}

size_t struct_size(const std::string& family) {
  if (family == "conv") return sizeof(ck_conv);
  if (family == "pool") return sizeof(ck_pool);
  if (family == "resize") return sizeof(ck_resize);
  if (family == "channel") return sizeof(ck_channel);
  if (family == "pointwise") return sizeof(ck_pointwise);
  return sizeof(ck_class);
}

void check_params(const ck_row& row, std::string_view params) {
  if (params.size() != struct_size(row.family)) throw std::invalid_argument("params of another size than the struct");
}

py::object why_not(size_t row, const py::bytes& params) {
  const NamedRow& named = row_at(row);
  check_params(*named.row, std::string_view(params));
  if (named.missing) return py::str(named.missing);
  const char* sentence = named.row->why_not ? named.row->why_not(std::string_view(params).data()) : nullptr;
  return sentence ? py::object(py::str(sentence)) : py::object(py::none());
}

py::dict struct_sizes() {
  py::dict sizes;
  for (const char* family : {"conv", "pool", "resize", "channel", "pointwise", "class"})
    sizes[family] = struct_size(family);
  return sizes;
}

// outputs: (dtype, shape, into or -1); steps: (row, params, [(slot or -1, offset in bytes, strides)]).
std::shared_ptr<Program> make_program(int inputs, const py::list& outputs, const py::list& steps, py::object returns,
                                      py::object failure) {
  auto program = std::make_shared<Program>();
  program->inputs = inputs;
  program->failure = std::move(failure);
  for (const auto& item : outputs) {
    const auto output = item.cast<py::tuple>();
    Result result;
    result.descr = output[0].cast<py::dtype>();
    result.shape = output[1].cast<std::vector<Py_ssize_t>>();
    result.bytes = size_t(output[0].cast<py::dtype>().itemsize());
    for (Py_ssize_t extent : result.shape) result.bytes *= size_t(extent);
    result.into = output[2].cast<int>();
    program->results.push_back(std::move(result));
  }
  for (const auto& item : steps) {
    const auto tuple = item.cast<py::tuple>();
    const NamedRow& named = row_at(tuple[0].cast<size_t>());
    if (named.missing) throw std::invalid_argument(named.missing);
    Step step{};
    step.row = named.row;
    step.params = tuple[1].cast<py::bytes>();
    check_params(*step.row, step.params);
    const char* refusal = step.row->why_not ? step.row->why_not(step.params.data()) : nullptr;
    if (refusal) throw std::invalid_argument(std::string("this row cannot serve: ") + refusal);
    for (const auto& operand : tuple[2].cast<py::list>()) {
      const auto triple = operand.cast<py::tuple>();
      const auto strides = triple[2].cast<std::vector<int64_t>>();
      if (strides.size() != 5) throw std::invalid_argument("an operand needs 5 strides");
      ck_tensor tensor{};
      std::memcpy(tensor.stride, strides.data(), sizeof tensor.stride);
      const int slot = triple[0].cast<int>();
      if (slot < kNoSlot || slot >= inputs + int(outputs.size())) throw std::invalid_argument("no such slot");
      step.slots.push_back(slot);
      step.offsets.push_back(triple[1].cast<int64_t>());
      step.tensors.push_back(tensor);
    }
    if (int(step.tensors.size()) != step.row->operands) throw std::invalid_argument("wrong number of operands");
    program->steps.push_back(std::move(step));
  }
  program->returns_tuple = py::isinstance<py::tuple>(returns);
  if (program->returns_tuple)
    for (const auto& slot : returns) program->returns.push_back(slot.is_none() ? kNoSlot : slot.cast<int>());
  else program->returns.push_back(returns.cast<int>());
  return program;
}

// lookup(*key) and remember(program, arrays, *key) bypass pybind11's argument handling: 0.1 instead of 0.5 us.
PyObject* lookup(PyObject*, PyObject* const* args, Py_ssize_t count) {
  try {
    PyObject* result = cache().lookup(args, count);
    if (result) return result;
    return Py_NewRef(Py_NotImplemented);
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (py::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyObject* remember(PyObject*, PyObject* const* args, Py_ssize_t count) {
  try {
    if (count < 2) throw std::invalid_argument("remember needs a program and its arrays");
    auto program = py::reinterpret_borrow<py::object>(args[0]).cast<std::shared_ptr<Program>>();
    cache().remember(program, py::reinterpret_borrow<py::tuple>(args[1]), args + 2, count - 2);
    Py_RETURN_NONE;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyMethodDef fast_methods[] = {
    {"lookup", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&lookup)), METH_FASTCALL,
     "lookup(*key: object) -> object\n\nThe result of the program remembered under an equal key, or NotImplemented."},
    {"remember", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&remember)), METH_FASTCALL,
     "remember(program: Program, arrays: tuple, *key: object) -> None\n\nRun this program for calls with an equal "
     "key."},
    {nullptr, nullptr, 0, nullptr},
};

double seconds() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// Multiply-adds in registers on all threads at once, best of several: GFLOP/s.
double measure_peak(const std::string& isa, int dtype, int threads) {
  const ck_table* table = nullptr;
  const char* missing = nullptr;
  for (int t = 0; const ck_table* found = cnnkern_table(t, &missing); t++)
    if (isa == found->isa && !missing) table = found;
  if (!table) throw std::invalid_argument("isa " + isa + " is not available here");
  struct Job {
    const ck_table* table;
    int dtype;
    std::vector<double> operations;
  } job{table, dtype, std::vector<double>(size_t(threads), 0.0)};
  py::gil_scoped_release release;
  double best = 0;
  for (int repeat = 0; repeat < 12; repeat++) {
    const double start = seconds();
    ck_parallel(
        threads, threads,
        [](void* arg, int chunk, int) {
          auto& j = *static_cast<Job*>(arg);
          j.operations[size_t(chunk)] = j.table->peak(j.dtype, 200000);
        },
        &job, nullptr, nullptr);
    const double elapsed = seconds() - start;
    double operations = 0;
    for (double o : job.operations) operations += o;
    best = operations / elapsed > best ? operations / elapsed : best;
  }
  return best * 1e-9;
}

// memcpy of `bytes` split over the threads, pages touched before, best of several: GB/s read plus written.
double measure_copy(int threads, int64_t bytes) {
  const size_t size = size_t(bytes);
  struct Job {
    Buffer from, to;
    size_t size;
    int pieces;
  } job{Buffer(aligned_bytes(size)), Buffer(aligned_bytes(size)), size, threads};
  py::gil_scoped_release release;
  std::memset(job.from.get(), 1, size);
  std::memset(job.to.get(), 1, size);
  double best = 0;
  for (int repeat = 0; repeat < 12; repeat++) {
    const double start = seconds();
    ck_parallel(
        threads, threads,
        [](void* arg, int chunk, int) {
          auto& j = *static_cast<Job*>(arg);
          const size_t begin = j.size * size_t(chunk) / size_t(j.pieces);
          const size_t end = j.size * size_t(chunk + 1) / size_t(j.pieces);
          std::memcpy(static_cast<char*>(j.to.get()) + begin, static_cast<char*>(j.from.get()) + begin, end - begin);
        },
        &job, nullptr, nullptr);
    const double rate = 2.0 * double(size) / (seconds() - start);
    best = rate > best ? rate : best;
  }
  return best * 1e-9;
}

// A buffer read over and over by this thread, best of several: GB/s. Loads of 16 bytes, two in a cycle, are more than
// any last-level cache gives.
double measure_read(int64_t bytes) {
  typedef uint64_t Vector __attribute__((vector_size(16)));
  const size_t steps = (size_t(bytes) + 63) / 64;
  const int64_t passes = 1 + (int64_t(1) << 26) / bytes;
  const Buffer buffer(aligned_bytes(steps * 64));
  py::gil_scoped_release release;
  std::memset(buffer.get(), 1, steps * 64);
  double best = 0;
  volatile uint64_t sink = 0;  // or nothing would be read
  for (int repeat = 0; repeat < 12; repeat++) {
    const double start = seconds();
    Vector a{}, b{}, c{}, d{};
    for (int64_t pass = 0; pass < passes; pass++) {
      const Vector* p = static_cast<const Vector*>(buffer.get());
      for (size_t i = 0; i < steps; i++, p += 4) a += p[0], b += p[1], c += p[2], d += p[3];
    }
    a += b + c + d;
    sink = sink + a[0] + a[1];
    const double rate = double(steps) * 64 * double(passes) / (seconds() - start);
    best = rate > best ? rate : best;
  }
  return best * 1e-9;
}

// The function table for other glue (JAX handlers, C++ users): found under the capsule's name, versioned.
struct CApi {
  int64_t size, version;
  decltype(&cnnkern_table) table;
  decltype(&cnnkern_status_text) status_text;
  decltype(&ck_parallel) parallel;
};
const CApi c_api{sizeof(CApi), CNNKERN_API_VERSION, cnnkern_table, cnnkern_status_text, ck_parallel};

}  // namespace

PYBIND11_MODULE(_cnnkern_core, m, py::mod_gil_not_used()) {
  m.doc() = "Native kernels of cnnkern. Use the functions of the package cnnkern instead.";
  py::class_<Program, std::shared_ptr<Program>>(m, "Program", "Table ops bound to slots, strides and row functions.")
      .def(py::init(&make_program), py::arg("inputs"), py::arg("outputs"), py::arg("steps"), py::arg("returns"),
           py::arg("failure"))
      .def(
          "run",
          [](const Program& program, const py::tuple& arrays) {
            if (int(arrays.size()) != program.inputs) throw std::invalid_argument("wrong number of arrays");
            return program.run(PySequence_Fast_ITEMS(arrays.ptr()));
          },
          py::arg("arrays"), "Run on the caller's arrays: ndarrays, or None where the operand is absent.")
      .def("pack", &Program::pack, py::arg("step"), py::arg("weight"), "Pack the weights of one step now.")
      .def("share_packed", &Program::share_packed, py::arg("step"), py::arg("other"),
           "Use the weights that another program of the same request packed.")
      .def_property_readonly("packs", &Program::packs, "Whether the first step's row packs weights.")
      .def_property_readonly("packed_bytes", &Program::packed_bytes)
      .def("workspace_bytes", &Program::workspace_bytes, py::arg("threads"));
  py::class_<Cache>(m, "Cache", "Programs of one plan, by the strides and presence of its arrays.")
      .def(py::init([] { return new Cache(true); }))
      .def(
          "lookup",
          [](Cache& self, const py::args& key) -> py::object {
            PyObject* result = self.lookup(PySequence_Fast_ITEMS(key.ptr()), Py_ssize_t(key.size()));
            if (!result) return py::reinterpret_borrow<py::object>(Py_NotImplemented);
            return py::reinterpret_steal<py::object>(result);
          },
          "The result of the program remembered under an equal key, or NotImplemented.")
      .def(
          "remember",
          [](Cache& self, std::shared_ptr<Program> program, const py::tuple& arrays, const py::args& key) {
            self.remember(std::move(program), arrays, PySequence_Fast_ITEMS(key.ptr()), Py_ssize_t(key.size()));
          },
          py::arg("program"), py::arg("arrays"), "Arrays that are not in the key are constants.");
  m.def("rows", &list_rows,
        "(index, op, algorithm, isa, dtype, family, operands, why this CPU lacks it, packs, precision)");
  m.def("why_not", &why_not, py::arg("row"), py::arg("params"));
  m.def("struct_sizes", &struct_sizes, "Bytes of each family's params struct.");
  m.def(
      "set_settings",
      [](int64_t id, int threads, int process_threads) {
        this_thread.settings = id;
        this_thread.generation = settings_generation.load(std::memory_order_relaxed);
        this_thread.threads = threads;
        ck_parallel_set_default(process_threads);
      },
      py::arg("id"), py::arg("threads"), py::arg("process_threads"),
      "Settings of the calling thread; id -1: every lookup of this thread misses.");
  m.def(
      "forget_all_settings", [] { settings_generation.fetch_add(1, std::memory_order_relaxed); },
      "Let every lookup of every thread miss until its next set_settings.");
  m.def(
      "last_rows",
      [] {
        py::list names;
        for (const ck_row* row : this_thread.last_rows)
          names.append(py::make_tuple(row->op, row->algorithm, row->isa, row->dtype));
        return names;
      },
      "Rows this thread's last program ran: (op, algorithm, isa, dtype).");
  m.def("forget_rows", [] { this_thread.last_rows.clear(); });
  m.def("cache_size", [] { return cache().size(); }, "Programs remembered.");
  m.def("set_spin_us", &ck_parallel_set_spin_us, py::arg("microseconds"));
  m.def(
      "set_result_cache", [](size_t bytes) { result_cache().set_limit(bytes); }, py::arg("bytes"),
      "Memory of dead results that is kept for the next ones.");
  m.def("result_cache_bytes", [] { return result_cache().kept(); }, "Memory of dead results that is kept now.");
  m.def("measure_peak", &measure_peak, py::arg("isa"), py::arg("dtype"), py::arg("threads"));
  m.def("measure_copy", &measure_copy, py::arg("threads"), py::arg("bytes"));
  m.def("measure_read", &measure_read, py::arg("bytes"));
  m.attr("c_api") = py::capsule(static_cast<const void*>(&c_api), "cnnkern.c_api.v1");
  if (PyModule_AddFunctions(m.ptr(), fast_methods)) throw py::error_already_set();
  main_thread.store(py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>());
  if (hasattr(py::module_::import("os"), "register_at_fork")) {
    // The child of a fork may have to run with another number of threads: its first call asks config.py again.
    py::module_::import("os").attr("register_at_fork")(py::arg("after_in_child") = py::cpp_function([] {
                                                         this_thread.settings = kSettingsUnknown;
                                                         main_thread.store(PyThread_get_thread_ident());
                                                       }));
  }
}
