"""The engine starts sooner in a cluster, with the same functions."""

from __future__ import annotations

from tests.transport.harness import Cluster

CODE = """
import openquake.baselib
from numba.core import codegen
from oq_celery import startup
parsed = 0
parse = codegen.ll.parse_bitcode
def counted(code):
    global parsed
    parsed += 1
    return parse(code)
codegen.ll.parse_bitcode = counted
libraries = []
set_object = codegen.CPUCodeLibrary._set_compiled_object
def noted(self, code):
    libraries.append((self, code))
    set_object(self, code)
codegen.CPUCodeLibrary._set_compiled_object = noted
import numba, numpy
import openquake.engine.engine
from openquake.baselib.performance import idx_start_stop
print(len(libraries) > 40, parsed < 5)
print(idx_start_stop(numpy.uint32([7, 7, 9])).tolist())
before = parsed
@numba.njit
def caller(ids):
    return idx_start_stop(ids)[1, 2]
print(caller(numpy.uint32([7, 7, 9])), parsed > before)
for library, code in libraries:
    llvm_code = vars(library).get("_llvm_code")
    module = library._shared_module
    there = {gv.name for gvs in (module.functions, module.global_variables) for gv in gvs if not gv.is_declaration}
    symbols = startup.defined_symbols(code)
    assert symbols and symbols <= there, symbols - there
    assert llvm_code is None or all(name.encode() in llvm_code for name in there)
print("symbols are numba's", idx_start_stop(numpy.uint8([1])).tolist())
"""


def test_what_only_a_compilation_needs_is_loaded_for_one_only(cluster: Cluster) -> None:
    """The symbols that are known without it are numba's own, and a function that calls one from the cache compiles."""
    found = cluster.python(CODE, fresh=True, OQ_DISTRIBUTE="no").splitlines()
    assert found[-4:] == ["True True", "[[7, 0, 2], [9, 2, 3]]", "3 True", "symbols are numba's [[1, 0, 1]]"]


def test_numba_stays_as_it_is_in_a_program_without_the_engine(cluster: Cluster) -> None:
    code = "from numba.core import codegen; print('_shared_module' in vars(codegen.JITCodeLibrary))"
    assert cluster.python(code, fresh=True) == "False\n"
    assert cluster.python(f"import openquake.baselib; {code}", fresh=True) == "True\n"
