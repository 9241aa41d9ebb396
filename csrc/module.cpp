// The Python module nnmf_cuda._C. Importing it loads the kernels, which register themselves with
// torch; no tensor passes through here. It uses CPython's limited API alone: one object serves
// every Python from 3.11 on, as it serves every torch from the stable ABI's first on.
#ifndef Py_LIMITED_API  // torch's build defines it for the oldest Python that it knows
#define Py_LIMITED_API 0x030b0000
#endif
#include <Python.h>
#include <exception>

#include "common/cpu/isa.h"

namespace {

PyObject* cpu_isa(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(nnmf_cuda::isa_name(nnmf_cuda::cpu_isa()));
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyObject* cpu_instruction_sets(PyObject*, PyObject*) {
#ifdef NNMF_CUDA_X86_VARIANTS
  return PyUnicode_FromString("avx512 avx2 baseline");
#else
  return PyUnicode_FromString("baseline");
#endif
}

PyMethodDef functions[] = {
    {"cpu_isa", cpu_isa, METH_NOARGS, "The variant of the CPU kernels that runs on this machine."},
    {"cpu_instruction_sets", cpu_instruction_sets, METH_NOARGS, "The variants that were built."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "_C",
                          "Compiled kernels of nnmf_cuda; importing it registers them with torch.",
                          -1,
                          functions,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() {
  return PyModule_Create(&definition);
}
